"""Where kernels run: one protocol, the devices that speak it, and the one place that opens them by name."""
