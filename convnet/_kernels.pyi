"""The kernel table: what every device offers, under one set of names.

``_gpu`` and ``_emu`` (compiled) take addresses as integers, ``blas_kernels`` (NumPy) takes arrays; ``None`` stands for
an output or operand that is not wanted. ``stream`` is the CUDA stream's address, 0 elsewhere. What each function
computes is said once, in the header of the same name under ``src/kernels``. All raise ``ValueError`` for shapes they
cannot take.
"""

from typing import Any

import numpy as np

from .shapes import ConvShape, DropoutShape, IngestShape, LinearShape, LrnShape, PoolShape, SoftmaxShape

Handle = int | np.ndarray[Any, Any]

def conv_forward(
    shape: ConvShape, x: Handle, weight: Handle, bias: Handle | None, y: Handle, relu: bool, stream: int
) -> None: ...
def conv_backward_data(shape: ConvShape, dy: Handle, weight: Handle, dx: Handle, stream: int) -> None: ...
def conv_backward_filter(
    shape: ConvShape,
    dy: Handle,
    x: Handle,
    dweight: Handle,
    dbias: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def conv_backward_filter_workspace(shape: ConvShape) -> int: ...
def linear_forward(
    shape: LinearShape,
    x: Handle,
    weight: Handle,
    bias: Handle | None,
    y: Handle,
    relu: bool,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_backward_data(
    shape: LinearShape, dy: Handle, weight: Handle, dx: Handle, workspace: Handle | None, stream: int
) -> None: ...
def linear_backward_filter(
    shape: LinearShape,
    dy: Handle,
    x: Handle,
    dweight: Handle,
    dbias: Handle | None,
    workspace: Handle | None,
    stream: int,
) -> None: ...
def linear_workspace(shape: LinearShape) -> int: ...
def max_pool_forward(shape: PoolShape, x: Handle, y: Handle, argmax: Handle | None, stream: int) -> None: ...
def max_pool_backward(shape: PoolShape, dy: Handle, argmax: Handle, dx: Handle, stream: int) -> None: ...
def lrn_forward(shape: LrnShape, x: Handle, y: Handle, stream: int) -> None: ...
def lrn_backward(shape: LrnShape, dy: Handle, x: Handle, dx: Handle, stream: int) -> None: ...
def relu_forward(count: int, x: Handle, y: Handle, stream: int) -> None: ...
def relu_backward(count: int, dy: Handle, y: Handle, dx: Handle, stream: int) -> None: ...
def add(count: int, a: Handle, b: Handle, y: Handle, stream: int) -> None: ...
def scale(count: int, x: Handle, factor: float, y: Handle, stream: int) -> None: ...
def dropout_forward(shape: DropoutShape, x: Handle, y: Handle, mask: Handle, stream: int) -> None: ...
def dropout_backward(count: int, dy: Handle, mask: Handle, dx: Handle, stream: int) -> None: ...
def softmax_cross_entropy(
    shape: SoftmaxShape,
    logits: Handle,
    labels: Handle,
    losses: Handle,
    ranks: Handle,
    probs: Handle | None,
    dlogits: Handle | None,
    stream: int,
) -> None: ...
def sgd(
    count: int,
    weight: Handle,
    velocity: Handle,
    gradient: Handle,
    lr: float,
    momentum: float,
    weight_decay: float,
    stream: int,
) -> None: ...
def ingest(
    shape: IngestShape, images: Handle, windows: Handle, noise: Handle, mean: Handle, y: Handle, stream: int
) -> None: ...
def build_info() -> dict[str, str]:
    """Compiler, CUDA version ("" in the emulator), architectures as a comma-separated list, package version."""
