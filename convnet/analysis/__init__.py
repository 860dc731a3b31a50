"""What one does with trained networks: errors, predictions, neighbours, figures; and what one asks of the machine."""
