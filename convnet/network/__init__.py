"""Networks as data, and on devices: layers, where they lie, what crosses between them, what a step is."""
