"""The kernel table: what every device offers, under one set of names.

For every op there is the kernel that ``convnet/ops/ops.py`` declares: it takes the same arguments, the stream last
instead of first. Where an op has no shape, the number of elements comes in front; ``sgd``, ``sgd_many`` and
``cast_weight`` say there what they pass. ``_cpu``, ``_emu`` and ``_gpu`` take addresses as integers; ``None`` stands
for an output or operand that is not wanted. ``stream`` is the CUDA stream's
address, 0 elsewhere. ``precision`` is "fp32", "tf32" or "bf16" and decides what activations and the weights of products
are made of (``precision.py``); the rest is float32. What each computes is said once, in the header of the same name
under ``src/kernels``. All raise ``ValueError`` for shapes and precisions they cannot take.

What is no op is here.
"""

from typing import Any

from .shapes import ConvShape, LinearShape, LocalShape, SpatialNormShape

def conv_backward_filter_workspace(shape: ConvShape, precision: str) -> int:
    """Bytes of the workspace that ``conv_backward_filter`` needs."""

def linear_workspace(shape: LinearShape, precision: str) -> int:
    """The same for the three passes of a fully-connected layer."""

def rnorm_workspace(shape: SpatialNormShape, precision: str) -> int:
    """The same for ``rnorm_backward``."""

def cnorm_workspace(shape: SpatialNormShape, precision: str) -> int:
    """The same for ``cnorm_forward`` and ``cnorm_backward``."""

def conv_variant(op: str, shape: ConvShape, precision: str) -> str:
    """The name of the kernel that "conv_forward", "conv_backward_data" or "conv_backward_filter" takes."""

def local_variant(op: str, shape: LocalShape, precision: str) -> str:
    """The same for "local_forward", "local_backward_data" and "local_backward_filter"."""

def linear_variant(op: str, shape: LinearShape, precision: str) -> str:
    """The same for "linear_forward", "linear_backward_data" and "linear_backward_filter"."""

def variants() -> list[dict[str, Any]]:
    """The tables these names stand in, in the order of preference: op, name, precision, architecture, tile, when."""

def force_variant(op: str, name: str) -> None:
    """``op`` takes this kernel from now on, and raises ``ValueError`` where it cannot; "" gives the choice back."""

def build_info() -> dict[str, str]:
    """Compiler, CUDA version ("" in the emulator), architectures as a comma-separated list, package version."""
