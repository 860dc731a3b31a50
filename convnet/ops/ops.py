"""One checked function per kernel: arguments are compared with the problem's shape before anything is launched.

Every function takes the stream first, then what the kernel table (``_kernels.pyi``) takes, in the same order, as
``Array``s of the stream's device; a count follows from the arrays. Nothing here allocates. A wrong shape, dtype or
device raises ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..devices.protocol import Array, Stream
from ..kernels.control import WORDS
from ..kernels.precision import BF16, activation_dtype, copy_columns, dtype_name
from ..kernels.shapes import ConvShape, DropoutShape, IngestShape, LinearShape, LrnShape, PoolShape, SoftmaxShape

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
                f"{op}: {name} must have {wanted} of {dtype_name(dtype)}, "
                f"got shape {array.shape} of {dtype_name(array.dtype)}"
            )


def _check_workspace(op: str, workspace: Array | None, needed: int) -> None:
    if needed and (workspace is None or workspace.nbytes < needed):
        raise ValueError(f"{op}: needs a workspace of {needed} bytes, got {workspace.nbytes if workspace else 0}")


F32, I32, U8 = np.float32, np.int32, np.uint8


def _weight(shape: ConvShape | LinearShape, precision: str, weight: Array) -> Operand:
    """What a product reads: the weights, or their copy in bfloat16."""
    like = shape.weight_copy if precision == "bf16" else shape.weight
    return ("weight", weight, like, activation_dtype(precision))


def _copy(weight: Array, copy: Array | None) -> tuple[int, Operand]:
    """The length of a row of ``weight``, and its copy in bfloat16 as an operand."""
    *rows, columns = weight.shape or (1,)
    return columns, ("copy", copy, (*rows, copy_columns(columns)), BF16)


def _control(control: Array | None) -> Operand:
    return ("control", control, (WORDS,), np.uint32)


def conv_forward(
    stream: Stream,
    shape: ConvShape,
    precision: str,
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    relu: bool = False,
) -> None:
    """y = weight * x + bias, then ReLU where asked."""
    dtype = activation_dtype(precision)
    _check(
        "conv2d",
        stream,
        ("x", x, shape.x, dtype),
        _weight(shape, precision, weight),
        ("bias", bias, shape.K, F32),
        ("y", y, shape.y, dtype),
    )
    stream.launch(stream.device.kernels.conv_forward, shape, precision, x, weight, bias, y, relu)


def conv_backward_data(
    stream: Stream, shape: ConvShape, precision: str, dy: Array, weight: Array, dx: Array, mask: Array | None
) -> None:
    """dx from dy; with ``mask``, the layer's input x, 0 where x is not positive."""
    dtype = activation_dtype(precision)
    _check(
        "conv2d_backward",
        stream,
        ("dy", dy, shape.y, dtype),
        _weight(shape, precision, weight),
        ("dx", dx, shape.x, dtype),
        ("mask", mask, shape.x, dtype),
    )
    stream.launch(stream.device.kernels.conv_backward_data, shape, precision, dy, weight, dx, mask)


def conv_backward_filter(
    stream: Stream,
    shape: ConvShape,
    precision: str,
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array | None,
    workspace: Array | None,
) -> None:
    """dweight and dbias from dy and x, summed over the images."""
    dtype = activation_dtype(precision)
    kernels = stream.device.kernels
    _check(
        "conv2d_backward",
        stream,
        ("dy", dy, shape.y, dtype),
        ("x", x, shape.x, dtype),
        ("dweight", dweight, shape.weight, F32),
        ("dbias", dbias, shape.K, F32),
    )
    _check_workspace("conv2d_backward", workspace, kernels.conv_backward_filter_workspace(shape, precision))
    stream.launch(kernels.conv_backward_filter, shape, precision, dy, x, dweight, dbias, workspace)


def linear_forward(
    stream: Stream,
    shape: LinearShape,
    precision: str,
    x: Array,
    weight: Array,
    bias: Array | None,
    y: Array,
    relu: bool,
    dropout: DropoutShape | None,
    control: Array | None,
    workspace: Array | None,
) -> None:
    """y = weight^T x + bias, then ReLU and ``dropout`` of y where asked.

    Elements are dropped as by ``dropout_forward`` at the step in ``control``, to the same bits, but no mask is kept:
    behind a ReLU y > 0 says as much. At test, without ``control``, y is multiplied by 1 - p instead.
    """
    dtype = activation_dtype(precision)
    kernels = stream.device.kernels
    _check(
        "linear",
        stream,
        ("x", x, shape.x, dtype),
        _weight(shape, precision, weight),
        ("bias", bias, shape.K, F32),
        ("y", y, shape.y, dtype),
        _control(control),
    )
    if dropout is not None and dropout.x != shape.y:
        raise ValueError(f"linear: dropout must be that of y, of shape {shape.y}, got {dropout}")
    _check_workspace("linear", workspace, kernels.linear_workspace(shape, precision))
    operands = (x, weight, bias, y, relu, dropout, control, workspace)
    stream.launch(kernels.linear_forward, shape, precision, *operands)


def linear_backward_data(
    stream: Stream,
    shape: LinearShape,
    precision: str,
    dy: Array,
    weight: Array,
    dx: Array,
    mask: Array | None,
    workspace: Array | None,
) -> None:
    """dx = weight dy; with ``mask``, the layer's input x, 0 where x is not positive."""
    dtype = activation_dtype(precision)
    kernels = stream.device.kernels
    _check(
        "linear_backward",
        stream,
        ("dy", dy, shape.y, dtype),
        _weight(shape, precision, weight),
        ("dx", dx, shape.x, dtype),
        ("mask", mask, shape.x, dtype),
    )
    _check_workspace("linear_backward", workspace, kernels.linear_workspace(shape, precision))
    stream.launch(kernels.linear_backward_data, shape, precision, dy, weight, dx, mask, workspace)


def linear_backward_filter(
    stream: Stream,
    shape: LinearShape,
    precision: str,
    dy: Array,
    x: Array,
    dweight: Array,
    dbias: Array | None,
    workspace: Array | None,
) -> None:
    """dweight = x dy^T and dbias, summed over the images."""
    dtype = activation_dtype(precision)
    kernels = stream.device.kernels
    _check(
        "linear_backward",
        stream,
        ("dy", dy, shape.y, dtype),
        ("x", x, shape.x, dtype),
        ("dweight", dweight, shape.weight, F32),
        ("dbias", dbias, shape.K, F32),
    )
    _check_workspace("linear_backward", workspace, kernels.linear_workspace(shape, precision))
    stream.launch(kernels.linear_backward_filter, shape, precision, dy, x, dweight, dbias, workspace)


def linear_backward_filter_update(
    stream: Stream,
    shape: LinearShape,
    precision: str,
    dy: Array,
    x: Array,
    weight: Array,
    velocity: Array,
    copy: Array | None,
    dbias: Array | None,
    control: Array,
    rate: float,
    decays: bool,
    workspace: Array | None,
) -> None:
    """``linear_backward_filter``, then ``sgd`` of the weight, to the same bits; the weight's gradient is stored
    nowhere.

    ``weight`` is the float32 one, ``copy`` what products in bfloat16 read. ``dbias`` is the bias's gradient, for an
    update of its own.
    """
    op, dtype, kernels = "linear_backward_filter_update", activation_dtype(precision), stream.device.kernels
    _check(
        op,
        stream,
        ("dy", dy, shape.y, dtype),
        ("x", x, shape.x, dtype),
        ("weight", weight, shape.weight, F32),
        ("velocity", velocity, shape.weight, F32),
        ("copy", copy, shape.weight_copy, BF16),
        ("dbias", dbias, shape.K, F32),
        _control(control),
    )
    _check_workspace(op, workspace, kernels.linear_workspace(shape, precision))
    operands = (dy, x, weight, velocity, copy, dbias, control, rate, decays, workspace)
    stream.launch(kernels.linear_backward_filter_update, shape, precision, *operands)


def max_pool_forward(
    stream: Stream, shape: PoolShape, precision: str, x: Array, y: Array, argmax: Array | None
) -> None:
    """y and the position of each maximum in its window."""
    dtype = activation_dtype(precision)
    _check("max_pool2d", stream, ("x", x, shape.x, dtype), ("y", y, shape.y, dtype), ("argmax", argmax, shape.y, U8))
    stream.launch(stream.device.kernels.max_pool_forward, shape, precision, x, y, argmax)


def max_pool_backward(
    stream: Stream, shape: PoolShape, precision: str, dy: Array, argmax: Array, mask: Array | None, dx: Array
) -> None:
    """dx from dy and the positions of the maxima; with ``mask``, the pooled y of a ReLU, 0 where it is not positive."""
    dtype = activation_dtype(precision)
    _check(
        "max_pool2d_backward",
        stream,
        ("dy", dy, shape.y, dtype),
        ("argmax", argmax, shape.y, U8),
        ("mask", mask, shape.y, dtype),
        ("dx", dx, shape.x, dtype),
    )
    stream.launch(stream.device.kernels.max_pool_backward, shape, precision, dy, argmax, mask, dx)


def lrn_forward(stream: Stream, shape: LrnShape, precision: str, x: Array, y: Array) -> None:
    """y = x (k + alpha sum x^2)^-beta."""
    dtype = activation_dtype(precision)
    _check("local_response_norm", stream, ("x", x, shape.x, dtype), ("y", y, shape.x, dtype))
    stream.launch(stream.device.kernels.lrn_forward, shape, precision, x, y)


def lrn_backward(stream: Stream, shape: LrnShape, precision: str, dy: Array, x: Array, dx: Array) -> None:
    """dx from dy and x."""
    dtype = activation_dtype(precision)
    operands = (("dy", dy, shape.x, dtype), ("x", x, shape.x, dtype), ("dx", dx, shape.x, dtype))
    _check("local_response_norm_backward", stream, *operands)
    stream.launch(stream.device.kernels.lrn_backward, shape, precision, dy, x, dx)


def lrn_pool_forward(
    stream: Stream, lrn: LrnShape, pool: PoolShape, precision: str, x: Array, p: Array, argmax: Array | None
) -> None:
    """p = the pooled lrn_forward of x, and the position of each maximum in its window."""
    dtype = activation_dtype(precision)
    _check(
        "lrn_pool",
        stream,
        ("x", x, lrn.x, dtype),
        ("x", x, pool.x, dtype),
        ("p", p, pool.y, dtype),
        ("argmax", argmax, pool.y, U8),
    )
    stream.launch(stream.device.kernels.lrn_pool_forward, lrn, pool, precision, x, p, argmax)


def lrn_pool_backward(
    stream: Stream,
    lrn: LrnShape,
    pool: PoolShape,
    precision: str,
    dp: Array,
    argmax: Array,
    x: Array,
    dx: Array,
    relu: bool = False,
) -> None:
    """dx from dp, the positions of the maxima and x; behind a ReLU, 0 where its output x is not positive."""
    dtype = activation_dtype(precision)
    _check(
        "lrn_pool_backward",
        stream,
        ("dp", dp, pool.y, dtype),
        ("argmax", argmax, pool.y, U8),
        ("x", x, lrn.x, dtype),
        ("x", x, pool.x, dtype),
        ("dx", dx, lrn.x, dtype),
    )
    stream.launch(stream.device.kernels.lrn_pool_backward, lrn, pool, precision, dp, argmax, x, dx, relu)


def relu_forward(stream: Stream, precision: str, x: Array, y: Array) -> None:
    """y = max(x, 0)."""
    dtype = activation_dtype(precision)
    _check("relu", stream, ("x", x, y.size, dtype), ("y", y, x.size, dtype))
    stream.launch(stream.device.kernels.relu_forward, x.size, precision, x, y)


def relu_backward(stream: Stream, precision: str, dy: Array, y: Array, dx: Array) -> None:
    """dx = dy where y > 0."""
    dtype = activation_dtype(precision)
    _check("relu_backward", stream, ("dy", dy, y.size, dtype), ("y", y, y.size, dtype), ("dx", dx, y.size, dtype))
    stream.launch(stream.device.kernels.relu_backward, y.size, precision, dy, y, dx)


def tanh_forward(stream: Stream, precision: str, x: Array, y: Array) -> None:
    """y = tanh(x)."""
    dtype = activation_dtype(precision)
    _check("tanh", stream, ("x", x, y.size, dtype), ("y", y, x.size, dtype))
    stream.launch(stream.device.kernels.tanh_forward, x.size, precision, x, y)


def tanh_backward(stream: Stream, precision: str, dy: Array, y: Array, dx: Array) -> None:
    """dx = dy (1 - y^2)."""
    dtype = activation_dtype(precision)
    operands = (("dy", dy, y.size, dtype), ("y", y, y.size, dtype), ("dx", dx, y.size, dtype))
    _check("tanh_backward", stream, *operands)
    stream.launch(stream.device.kernels.tanh_backward, y.size, precision, dy, y, dx)


def add(stream: Stream, precision: str, a: Array, b: Array, y: Array) -> None:
    """y = a + b."""
    dtype = activation_dtype(precision)
    _check("add", stream, ("a", a, y.size, dtype), ("b", b, y.size, dtype), ("y", y, y.size, dtype))
    stream.launch(stream.device.kernels.add, y.size, precision, a, b, y)


def scale(stream: Stream, precision: str, x: Array, factor: float, y: Array) -> None:
    """y = x * factor."""
    dtype = activation_dtype(precision)
    _check("scale", stream, ("x", x, y.size, dtype), ("y", y, y.size, dtype))
    stream.launch(stream.device.kernels.scale, y.size, precision, x, factor, y)


def dropout_forward(
    stream: Stream, shape: DropoutShape, precision: str, x: Array, y: Array, mask: Array, control: Array
) -> None:
    """y = x * mask, which depends on the step in ``control``."""
    dtype = activation_dtype(precision)
    operands = (("x", x, shape.x, dtype), ("y", y, shape.x, dtype), ("mask", mask, shape.x, U8), _control(control))
    _check("dropout", stream, *operands)
    stream.launch(stream.device.kernels.dropout_forward, shape, precision, x, y, mask, control)


def dropout_backward(stream: Stream, precision: str, dy: Array, mask: Array, dx: Array) -> None:
    """dx = dy * mask."""
    dtype = activation_dtype(precision)
    size = mask.size
    _check("dropout_backward", stream, ("dy", dy, size, dtype), ("mask", mask, size, U8), ("dx", dx, size, dtype))
    stream.launch(stream.device.kernels.dropout_backward, size, precision, dy, mask, dx)


def softmax_cross_entropy(
    stream: Stream,
    shape: SoftmaxShape,
    precision: str,
    logits: Array,
    labels: Array,
    losses: Array,
    ranks: Array,
    probs: Array | None,
    dlogits: Array | None,
    control: Array,
) -> None:
    """Losses, ranks of the true classes, probabilities, and the gradient of the mean loss. A loss that is not finite
    sets ``stopped`` in ``control``."""
    dtype = activation_dtype(precision)
    _check(
        "softmax_cross_entropy",
        stream,
        ("logits", logits, shape.x, dtype),
        ("labels", labels, (shape.N,), I32),
        ("losses", losses, (shape.N,), F32),
        ("ranks", ranks, (shape.N,), I32),
        ("probs", probs, shape.x, F32),
        ("dlogits", dlogits, shape.x, dtype),
        _control(control),
    )
    operands = (logits, labels, losses, ranks, probs, dlogits, control)
    stream.launch(stream.device.kernels.softmax_cross_entropy, shape, precision, *operands)


@dataclass(frozen=True)
class Update:
    """What an update does to one tensor, in place on weight and velocity; ``copy`` becomes the new weight in bfloat16.

    ``rate`` multiplies the learning rate in the control block; ``decays``: takes part in weight decay.
    """

    weight: Array
    velocity: Array
    gradient: Array
    copy: Array | None
    rate: float
    decays: bool

    def checked(self, op: str, stream: Stream) -> tuple[Any, ...]:
        """What the kernels take of it."""
        size, (columns, copied) = self.weight.size, _copy(self.weight, self.copy)
        tensors = (("weight", self.weight), ("velocity", self.velocity), ("gradient", self.gradient))
        _check(op, stream, *((name, array, size, F32) for name, array in tensors), copied)
        return (size, *(array for _, array in tensors), self.copy, columns, self.rate, self.decays)


def sgd(
    stream: Stream,
    weight: Array,
    velocity: Array,
    gradient: Array,
    copy: Array | None,
    control: Array,
    rate: float,
    decays: bool,
) -> None:
    """The paper's update of one tensor: see ``Update``. Nothing changes where ``control`` says ``stopped``; what has a
    gradient that is not finite stays as it is, and ``control`` then says ``spoiled``."""
    *tensors, rate, decays = Update(weight, velocity, gradient, copy, rate, decays).checked("sgd", stream)
    _check("sgd", stream, _control(control))
    stream.launch(stream.device.kernels.sgd, *tensors, control, rate, decays)


def sgd_many(stream: Stream, updates: Sequence[Update], control: Array) -> None:
    """The update of up to 32 tensors in one launch, to the bits of ``sgd`` one by one."""
    checked = tuple(update.checked("sgd_many", stream) for update in updates)
    _check("sgd_many", stream, _control(control))
    stream.launch(stream.device.kernels.sgd_many, checked, control)


def cast_weight(stream: Stream, weight: Array, copy: Array) -> None:
    """copy = weight in bfloat16, its rows padded."""
    columns, copied = _copy(weight, copy)
    _check("cast_weight", stream, ("weight", weight, weight.size, F32), copied)
    stream.launch(stream.device.kernels.cast_weight, weight.size, columns, weight, copy)


def fold_weight(stream: Stream, shape: ConvShape, weight: Array, copy: Array) -> None:
    """copy = the weights of ``shape.folded`` in bfloat16, from those of ``shape``."""
    operands = (("weight", weight, shape.weight, F32), ("copy", copy, shape.folded.weight_copy, BF16))
    _check("fold_weight", stream, *operands)
    stream.launch(stream.device.kernels.fold_weight, shape, weight, copy)


def unfold_gradient(stream: Stream, shape: ConvShape, folded: Array, gradient: Array) -> None:
    """The gradient for the weights of ``shape``, gathered from that for the weights of ``shape.folded``."""
    operands = (("folded", folded, shape.folded.weight, F32), ("gradient", gradient, shape.weight, F32))
    _check("unfold_gradient", stream, *operands)
    stream.launch(stream.device.kernels.unfold_gradient, shape, folded, gradient)


def ingest(
    stream: Stream,
    shape: IngestShape,
    precision: str,
    images: Array,
    windows: Array,
    noise: Array,
    mean: Array,
    y: Array,
) -> None:
    """Stored images to network input. That windows lie inside the images is checked where they are made."""
    dtype = activation_dtype(precision)
    _check(
        "ingest",
        stream,
        ("images", images, (shape.valid, shape.H, shape.W, 3), U8),
        ("windows", windows, (shape.valid, 3), I32),
        ("noise", noise, (shape.valid, 3), F32),
        ("mean", mean, (3, shape.crop, shape.crop), F32),
        ("y", y, shape.y, dtype),
    )
    stream.launch(stream.device.kernels.ingest, shape, precision, images, windows, noise, mean, y)


def ingest_planar(
    stream: Stream,
    shape: IngestShape,
    precision: str,
    luma: Array,
    cb: Array,
    cr: Array,
    index: Array,
    windows: Array,
    noise: Array,
    mean: Array,
    y: Array,
) -> None:
    """The same from planes that stay on the device. That indices are theirs is checked where they are made."""
    count = luma.shape[0] if luma.shape else 0
    chroma = (count, (shape.H + 1) // 2, (shape.W + 1) // 2)
    _check(
        "ingest_planar",
        stream,
        ("luma", luma, (count, shape.H, shape.W), U8),
        ("cb", cb, chroma, U8),
        ("cr", cr, chroma, U8),
        ("index", index, (shape.valid,), I32),
        ("windows", windows, (shape.valid, 3), I32),
        ("noise", noise, (shape.valid, 3), F32),
        ("mean", mean, (3, shape.crop, shape.crop), F32),
        ("y", y, shape.y, activation_dtype(precision)),
    )
    operands = (luma, cb, cr, index, windows, noise, mean, y)
    stream.launch(stream.device.kernels.ingest_planar, shape, precision, *operands)
