"""The kernels of the device ``cpu``, on NumPy and BLAS."""
