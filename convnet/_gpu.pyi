"""The kernels on CUDA devices; they run in the context that is current. Failures of CUDA are ``RuntimeError``."""

from ._kernels import *
