"""The kernel table: what every device offers, under one set of names.

``_gpu`` and ``_emu`` (compiled) take addresses as integers, ``blas_kernels`` (NumPy) takes arrays; ``None`` stands for
an output or operand that is not wanted. ``stream`` is the CUDA stream's address, 0 elsewhere. ``precision`` is "fp32",
"tf32" or "bf16" and decides what activations and the weights of products are made of (``precision.py``); the rest is
float32. What each function computes is said once, in the header of the same name under ``src/kernels``. All raise
``ValueError`` for shapes and precisions they cannot take.
"""

from typing import Any

import numpy as np

from .shapes import ConvShape, DropoutShape, IngestShape, LinearShape, LrnShape, PoolShape, SoftmaxShape

Handle = int | np.ndarray[Any, Any]
# count, weight, velocity, gradient, copy, columns, rate, decays: of ``sgd``
Update = tuple[int, Handle, Handle, Handle, Handle | None, int, float, bool]

def conv_forward(
    shape: ConvShape, precision: str, x: Handle, weight: Handle, bias: Handle | None, y: Handle, relu: bool, stream: int
) -> None: ...
def conv_backward_data(
    shape: ConvShape, precision: str, dy: Handle, weight: Handle, dx: Handle, mask: Handle | None, stream: int
) -> None: ...
def conv_backward_filter(
    shape: ConvShape,
    precision: str,
    dy: Handle,
    x: Handle,
    dweight: Handle,
    dbias: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def conv_backward_filter_workspace(shape: ConvShape, precision: str) -> int: ...
def linear_forward(
    shape: LinearShape,
    precision: str,
    x: Handle,
    weight: Handle,
    bias: Handle | None,
    y: Handle,
    relu: bool,
    dropout: DropoutShape | None,
    control: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_backward_data(
    shape: LinearShape,
    precision: str,
    dy: Handle,
    weight: Handle,
    dx: Handle,
    mask: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_backward_filter(
    shape: LinearShape,
    precision: str,
    dy: Handle,
    x: Handle,
    dweight: Handle,
    dbias: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_backward_filter_update(
    shape: LinearShape,
    precision: str,
    dy: Handle,
    x: Handle,
    weight: Handle,
    velocity: Handle,
    copy: Handle | None,
    dbias: Handle | None,
    control: Handle,
    rate: float,
    decays: bool,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_workspace(shape: LinearShape, precision: str) -> int: ...
def max_pool_forward(
    shape: PoolShape, precision: str, x: Handle, y: Handle, argmax: Handle | None, stream: int
) -> None: ...
def max_pool_backward(
    shape: PoolShape, precision: str, dy: Handle, argmax: Handle, mask: Handle | None, dx: Handle, stream: int
) -> None: ...
def lrn_forward(shape: LrnShape, precision: str, x: Handle, y: Handle, stream: int) -> None: ...
def lrn_backward(shape: LrnShape, precision: str, dy: Handle, x: Handle, dx: Handle, stream: int) -> None: ...
def lrn_pool_forward(
    lrn: LrnShape, pool: PoolShape, precision: str, x: Handle, p: Handle, argmax: Handle | None, stream: int
) -> None: ...
def lrn_pool_backward(
    lrn: LrnShape,
    pool: PoolShape,
    precision: str,
    dp: Handle,
    argmax: Handle,
    x: Handle,
    dx: Handle,
    relu: bool,
    stream: int,
) -> None: ...
def relu_forward(count: int, precision: str, x: Handle, y: Handle, stream: int) -> None: ...
def relu_backward(count: int, precision: str, dy: Handle, y: Handle, dx: Handle, stream: int) -> None: ...
def tanh_forward(count: int, precision: str, x: Handle, y: Handle, stream: int) -> None: ...
def tanh_backward(count: int, precision: str, dy: Handle, y: Handle, dx: Handle, stream: int) -> None: ...
def add(count: int, precision: str, a: Handle, b: Handle, y: Handle, stream: int) -> None: ...
def scale(count: int, precision: str, x: Handle, factor: float, y: Handle, stream: int) -> None: ...
def dropout_forward(
    shape: DropoutShape, precision: str, x: Handle, y: Handle, mask: Handle, control: Handle, stream: int
) -> None: ...
def dropout_backward(count: int, precision: str, dy: Handle, mask: Handle, dx: Handle, stream: int) -> None: ...
def softmax_cross_entropy(
    shape: SoftmaxShape,
    precision: str,
    logits: Handle,
    labels: Handle,
    losses: Handle,
    ranks: Handle,
    probs: Handle | None,
    dlogits: Handle | None,
    control: Handle,
    stream: int,
) -> None: ...
def sgd(
    count: int,
    weight: Handle,
    velocity: Handle,
    gradient: Handle,
    copy: Handle | None,
    columns: int,
    control: Handle,
    rate: float,
    decays: bool,
    stream: int,
) -> None: ...
def sgd_many(updates: tuple[Update, ...], control: Handle, stream: int) -> None: ...
def cast_weight(count: int, columns: int, weight: Handle, copy: Handle, stream: int) -> None: ...
def fold_weight(shape: ConvShape, weight: Handle, copy: Handle, stream: int) -> None: ...
def unfold_gradient(shape: ConvShape, folded: Handle, gradient: Handle, stream: int) -> None: ...
def ingest(
    shape: IngestShape,
    precision: str,
    images: Handle,
    windows: Handle,
    noise: Handle,
    mean: Handle,
    y: Handle,
    stream: int,
) -> None: ...
def ingest_planar(
    shape: IngestShape,
    precision: str,
    luma: Handle,
    cb: Handle,
    cr: Handle,
    index: Handle,
    windows: Handle,
    noise: Handle,
    mean: Handle,
    y: Handle,
    stream: int,
) -> None: ...
def conv_variant(op: str, shape: ConvShape, precision: str) -> str:
    """The name of the kernel that "conv_forward", "conv_backward_data" or "conv_backward_filter" takes."""

def linear_variant(op: str, shape: LinearShape, precision: str) -> str:
    """The same for "linear_forward", "linear_backward_data" and "linear_backward_filter"."""

def variants() -> list[dict[str, Any]]:
    """The tables these names stand in, in the order of preference: op, name, precision, architecture, tile, when."""

def force_variant(op: str, name: str) -> None:
    """``op`` takes this kernel from now on, and raises ``ValueError`` where it cannot; "" gives the choice back."""

def build_info() -> dict[str, str]:
    """Compiler, CUDA version ("" in the emulator), architectures as a comma-separated list, package version."""
