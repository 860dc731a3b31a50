"""The Python twins of ``src/kernels/*.hpp``, and the compiled kernels themselves. Nothing of ours is imported here."""
