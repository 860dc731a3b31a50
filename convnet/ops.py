"""One checked function per kernel: arguments are compared with the problem's shape before anything is launched.

Every function takes the stream first, then what the kernel table (``_kernels.pyi``) takes, in the same order, as
``Array``s of the stream's device. Nothing here allocates. A wrong shape, dtype or device raises ``ValueError``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import Array, Stream
from .shapes import ConvShape, DropoutShape, IngestShape, LinearShape, LrnShape, PoolShape, SoftmaxShape

Operand = tuple[str, "Array | None", "tuple[int, ...] | int", Any]


def _check(op: str, stream: Stream, *operands: Operand) -> None:
    """Each operand is (name, array, shape or number of elements, dtype); None is an operand that is not wanted."""
    for name, array, shape, dtype in operands:
        if array is None:
            continue
        if array.device is not stream.device:
            raise ValueError(f"{op}: {name} lies on {array.device.name}, the stream belongs to {stream.device.name}")
        fits = array.size == shape if isinstance(shape, int) else array.shape == shape
        if not fits or array.dtype != dtype:
            wanted = f"{shape} elements" if isinstance(shape, int) else f"shape {shape}"
            raise ValueError(
                f"{op}: {name} must have {wanted} of {np.dtype(dtype).name}, "
                f"got shape {array.shape} of {array.dtype.name}"
            )


def _check_workspace(op: str, workspace: Array | None, needed: int) -> None:
    if needed and (workspace is None or workspace.nbytes < needed):
        raise ValueError(f"{op}: needs a workspace of {needed} bytes, got {workspace.nbytes if workspace else 0}")


F32, I32, U8 = np.float32, np.int32, np.uint8


def conv_forward(
    stream: Stream, shape: ConvShape, x: Array, weight: Array, bias: Array | None, y: Array, relu: bool = False
) -> None:
    """y = weight * x + bias, then ReLU where asked."""
    _check(
        "conv2d",
        stream,
        ("x", x, shape.x, F32),
        ("weight", weight, shape.weight, F32),
        ("bias", bias, shape.K, F32),
        ("y", y, shape.y, F32),
    )
    stream.launch(stream.device.kernels.conv_forward, shape, x, weight, bias, y, relu)


def conv_backward_data(stream: Stream, shape: ConvShape, dy: Array, weight: Array, dx: Array) -> None:
    """dx from dy."""
    _check(
        "conv2d_backward",
        stream,
        ("dy", dy, shape.y, F32),
        ("weight", weight, shape.weight, F32),
        ("dx", dx, shape.x, F32),
    )
    stream.launch(stream.device.kernels.conv_backward_data, shape, dy, weight, dx)


def conv_backward_filter(
    stream: Stream,
    shape: ConvShape,
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array | None,
    workspace: Array | None,
) -> None:
    """dweight and dbias from dy and x, summed over the images."""
    kernels = stream.device.kernels
    _check(
        "conv2d_backward",
        stream,
        ("dy", dy, shape.y, F32),
        ("x", x, shape.x, F32),
        ("dweight", dweight, shape.weight, F32),
        ("dbias", dbias, shape.K, F32),
    )
    _check_workspace("conv2d_backward", workspace, kernels.conv_backward_filter_workspace(shape))
    stream.launch(kernels.conv_backward_filter, shape, dy, x, dweight, dbias, workspace)


def linear_forward(
    stream: Stream,
    shape: LinearShape,
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    relu: bool,
    workspace: Array | None,
) -> None:
    """y = weight^T x + bias, then ReLU where asked."""
    kernels = stream.device.kernels
    _check(
        "linear",
        stream,
        ("x", x, shape.x, F32),
        ("weight", weight, shape.weight, F32),
        ("bias", bias, shape.K, F32),
        ("y", y, shape.y, F32),
    )
    _check_workspace("linear", workspace, kernels.linear_workspace(shape))
    stream.launch(kernels.linear_forward, shape, x, weight, bias, y, relu, workspace)


def linear_backward_data(
    stream: Stream, shape: LinearShape, dy: Array, weight: Array, dx: Array, workspace: Array | None
) -> None:
    """dx = weight dy."""
    kernels = stream.device.kernels
    _check(
        "linear_backward",
        stream,
        ("dy", dy, shape.y, F32),
        ("weight", weight, shape.weight, F32),
        ("dx", dx, shape.x, F32),
    )
    _check_workspace("linear_backward", workspace, kernels.linear_workspace(shape))
    stream.launch(kernels.linear_backward_data, shape, dy, weight, dx, workspace)


def linear_backward_filter(
    stream: Stream,
    shape: LinearShape,
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array | None,
    workspace: Array | None,
) -> None:
    """dweight = x dy^T and dbias, summed over the images."""
    kernels = stream.device.kernels
    _check(
        "linear_backward",
        stream,
        ("dy", dy, shape.y, F32),
        ("x", x, shape.x, F32),
        ("dweight", dweight, shape.weight, F32),
        ("dbias", dbias, shape.K, F32),
    )
    _check_workspace("linear_backward", workspace, kernels.linear_workspace(shape))
    stream.launch(kernels.linear_backward_filter, shape, dy, x, dweight, dbias, workspace)


def max_pool_forward(stream: Stream, shape: PoolShape, x: Array, y: Array, argmax: Array | None) -> None:
    """y and the position of each maximum in its window."""
    _check("max_pool2d", stream, ("x", x, shape.x, F32), ("y", y, shape.y, F32), ("argmax", argmax, shape.y, U8))
    stream.launch(stream.device.kernels.max_pool_forward, shape, x, y, argmax)


def max_pool_backward(stream: Stream, shape: PoolShape, dy: Array, argmax: Array, dx: Array) -> None:
    """dx from dy and the positions of the maxima."""
    operands = (("dy", dy, shape.y, F32), ("argmax", argmax, shape.y, U8), ("dx", dx, shape.x, F32))
    _check("max_pool2d_backward", stream, *operands)
    stream.launch(stream.device.kernels.max_pool_backward, shape, dy, argmax, dx)


def lrn_forward(stream: Stream, shape: LrnShape, x: Array, y: Array) -> None:
    """y = x (k + alpha sum x^2)^-beta."""
    _check("local_response_norm", stream, ("x", x, shape.x, F32), ("y", y, shape.x, F32))
    stream.launch(stream.device.kernels.lrn_forward, shape, x, y)


def lrn_backward(stream: Stream, shape: LrnShape, dy: Array, x: Array, dx: Array) -> None:
    """dx from dy and x."""
    operands = (("dy", dy, shape.x, F32), ("x", x, shape.x, F32), ("dx", dx, shape.x, F32))
    _check("local_response_norm_backward", stream, *operands)
    stream.launch(stream.device.kernels.lrn_backward, shape, dy, x, dx)


def relu_forward(stream: Stream, x: Array, y: Array) -> None:
    """y = max(x, 0)."""
    _check("relu", stream, ("x", x, y.size, F32), ("y", y, x.size, F32))
    stream.launch(stream.device.kernels.relu_forward, x.size, x, y)


def relu_backward(stream: Stream, dy: Array, y: Array, dx: Array) -> None:
    """dx = dy where y > 0."""
    _check("relu_backward", stream, ("dy", dy, y.size, F32), ("y", y, y.size, F32), ("dx", dx, y.size, F32))
    stream.launch(stream.device.kernels.relu_backward, y.size, dy, y, dx)


def add(stream: Stream, a: Array, b: Array, y: Array) -> None:
    """y = a + b."""
    _check("add", stream, ("a", a, y.size, F32), ("b", b, y.size, F32), ("y", y, y.size, F32))
    stream.launch(stream.device.kernels.add, y.size, a, b, y)


def scale(stream: Stream, x: Array, factor: float, y: Array) -> None:
    """y = x * factor."""
    _check("scale", stream, ("x", x, y.size, F32), ("y", y, y.size, F32))
    stream.launch(stream.device.kernels.scale, y.size, x, factor, y)


def dropout_forward(stream: Stream, shape: DropoutShape, x: Array, y: Array, mask: Array) -> None:
    """y = x * mask."""
    _check("dropout", stream, ("x", x, shape.x, F32), ("y", y, shape.x, F32), ("mask", mask, shape.x, U8))
    stream.launch(stream.device.kernels.dropout_forward, shape, x, y, mask)


def dropout_backward(stream: Stream, dy: Array, mask: Array, dx: Array) -> None:
    """dx = dy * mask."""
    size = mask.size
    _check("dropout_backward", stream, ("dy", dy, size, F32), ("mask", mask, size, U8), ("dx", dx, size, F32))
    stream.launch(stream.device.kernels.dropout_backward, size, dy, mask, dx)


def softmax_cross_entropy(
    stream: Stream,
    shape: SoftmaxShape,
    logits: Array,
    labels: Array,
    losses: Array,
    ranks: Array,
    probs: Array | None,
    dlogits: Array | None,
) -> None:
    """Losses, ranks of the true classes, probabilities, and the gradient of the mean loss."""
    _check(
        "softmax_cross_entropy",
        stream,
        ("logits", logits, shape.x, F32),
        ("labels", labels, (shape.N,), I32),
        ("losses", losses, (shape.N,), F32),
        ("ranks", ranks, (shape.N,), I32),
        ("probs", probs, shape.x, F32),
        ("dlogits", dlogits, shape.x, F32),
    )
    stream.launch(stream.device.kernels.softmax_cross_entropy, shape, logits, labels, losses, ranks, probs, dlogits)


def sgd(
    stream: Stream, weight: Array, velocity: Array, gradient: Array, lr: float, momentum: float, weight_decay: float
) -> None:
    """The paper's update, in place on weight and velocity."""
    size = weight.size
    _check(
        "sgd",
        stream,
        ("weight", weight, size, F32),
        ("velocity", velocity, size, F32),
        ("gradient", gradient, size, F32),
    )
    stream.launch(stream.device.kernels.sgd, size, weight, velocity, gradient, lr, momentum, weight_decay)


def ingest(
    stream: Stream, shape: IngestShape, images: Array, windows: Array, noise: Array, mean: Array, y: Array
) -> None:
    """Stored images to network input. That windows lie inside the images is checked where they are made."""
    _check(
        "ingest",
        stream,
        ("images", images, (shape.valid, shape.H, shape.W, 3), U8),
        ("windows", windows, (shape.valid, 3), I32),
        ("noise", noise, (shape.valid, 3), F32),
        ("mean", mean, (3, shape.crop, shape.crop), F32),
        ("y", y, shape.y, F32),
    )
    stream.launch(stream.device.kernels.ingest, shape, images, windows, noise, mean, y)
