"""Checked calls of kernels, and the layouts that they read and write."""
