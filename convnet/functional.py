"""Every operation of the network on NumPy arrays, on any device: NumPy in, NumPy out, nothing kept in between.

Images are (N, C, H, W), filters (K, C/groups, R, S), features (N, F), matrices (out, in), all float32. ``device`` is
"cpu", "emu[:i]" or "cuda[:i]"; a device is opened by its first use and kept. ``precision`` is "fp32". A wrong shape,
dtype, value or device name raises ``ValueError`` and a missing device ``DeviceError``, before anything is launched.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from . import ops
from .backend import Array, Device, Stream, open_device, padded
from .layout import pack_activations, pack_weight, unpack_activations, unpack_weight
from .shapes import ConvShape, DropoutShape, LinearShape, LrnShape, Padding, PoolShape, SoftmaxShape

Values = np.ndarray[Any, Any]
Shape = TypeVar("Shape")


@cache
def _open(name: str) -> Stream:
    return open_device(name).stream()


class _Call:
    """One call on a device, for a batch of N images: padding and lanes, arrays in, arrays out."""

    def __init__(self, device: str, N: int = 1):
        self.stream = _open(device)
        self.device: Device = self.stream.device
        self.lanes = self.device.lanes(N)
        self.n, self.N = N, padded(N, self.lanes)

    def padded(self, shape: Shape) -> Shape:
        """The problem shape of N images as it is on the device."""
        return replace(shape, N=self.N, lanes=self.lanes)  # type: ignore[type-var]

    def put(self, values: Values) -> Array:
        array = self.device.empty(values.shape, values.dtype)
        self.stream.upload(array, values)
        return array

    def put_images(self, values: Values) -> Array:
        return self.put(pack_activations(values, self.lanes))

    def put_optional(self, values: Values | None) -> Array | None:
        return None if values is None else self.put(values)

    def images(self, array: Array) -> Values:
        return unpack_activations(array.download(), self.n)

    def workspace(self, nbytes: int) -> Array | None:
        return self.device.empty((nbytes,), np.uint8) if nbytes else None


def _floats(op: str, name: str, values: Values, like: str | tuple[int, ...] | None = None) -> None:
    """Checks the dtype, and the shape where it matters: the letters of its axes, or the sizes themselves."""
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{op}: {name} must be a float32 NumPy array, got {found}; convert it with np.float32(...)")
    if isinstance(like, tuple) and values.shape != like:
        raise ValueError(f"{op}: {name} must have shape {like} to fit the other arguments, got {values.shape}")
    if isinstance(like, str) and (values.ndim != len(like) or values.size == 0):
        axes = ", ".join(like)
        raise ValueError(f"{op}: {name} must have shape ({axes}), no size 0, got {values.shape}; reshape it")


def _integer(op: str, name: str, value: int, low: int, high: int) -> int:
    """``value`` as an int from ``low`` to ``high``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{op}: {name} must be a whole number, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{op}: {name} must lie between {low} and {high}, got {number}")
    return number


_LARGE = 2**31 - 1


def _padding(op: str, padding: Padding) -> Padding:
    if isinstance(padding, (tuple, list)):
        if len(padding) != 4:
            raise ValueError(f"{op}: padding must be a number or (top, bottom, left, right), got {padding}")
        top, bottom, left, right = (_integer(op, "padding", value, 0, _LARGE) for value in padding)
        return (top, bottom, left, right)
    return _integer(op, "padding", padding, 0, _LARGE)


def _fp32(op: str, precision: str) -> None:
    if precision != "fp32":
        raise ValueError(f'{op}: precision must be "fp32", the only one there is so far, got "{precision}"')


def _geometry(op: str, build: Callable[..., Shape], *sizes: int, **options: Any) -> Shape:
    """A problem shape; the error of an impossible one names the operation that the user called."""
    try:
        return build(*sizes, **options)
    except ValueError as error:
        _, named, text = str(error).rpartition("2d: ")
        raise ValueError(f"{op}: {text if named else error}") from None


def _conv(
    op: str, x: Values, weight: Values, stride: int, padding: Padding, groups: int, ceil_mode: bool, precision: str
) -> ConvShape:
    """The checked shape of a convolution, every image a lane of its own."""
    _fp32(op, precision)
    _floats(op, "x", x, "NCHW")
    _floats(op, "weight", weight, "KCRS")
    (N, C, H, W), (K, group_C, R, S) = x.shape, weight.shape
    groups = _integer(op, "groups", groups, 1, _LARGE)
    if group_C * groups != C:
        raise ValueError(
            f"{op}: weight must have C/groups channels, got x {x.shape}, weight {weight.shape}, groups={groups}; "
            "choose groups so that weight.shape[1] * groups = x.shape[1]"
        )
    stride, padding = _integer(op, "stride", stride, 1, _LARGE), _padding(op, padding)
    options = {"stride": stride, "padding": padding, "groups": groups, "ceil_mode": ceil_mode, "lanes": N}
    return _geometry(op, ConvShape.of, N, C, H, W, K, R, S, **options)


def conv2d(
    x: Values,
    weight: Values,
    bias: Values | None = None,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    ceil_mode: bool = False,
    relu: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """Grouped 2-D cross-correlation, plus bias, then ReLU where asked.

    ``x`` (N, C, H, W), ``weight`` (K, C/groups, R, S), ``bias`` (K,) -> (N, K, P, Q). ``padding`` counts the zeros
    on every side, or (top, bottom, left, right). ``ceil_mode`` is cuda-convnet's rounding: the last window may overhang
    and reads zeros there.
    """
    shape = _conv("conv2d", x, weight, stride, padding, groups, ceil_mode, precision)
    if bias is not None:
        _floats("conv2d", "bias", bias, (shape.K,))
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    w, b = call.put(pack_weight(weight, shape.groups)), call.put_optional(bias)
    y = call.device.empty(shape.y)
    ops.conv_forward(call.stream, shape, call.put_images(x), w, b, y, relu)
    return call.images(y)


def conv2d_backward(
    dy: Values,
    x: Values,
    weight: Values,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> tuple[Values, Values, Values]:
    """Gradients of ``conv2d`` without ReLU for ``dy`` (N, K, P, Q): (dx, dweight, dbias), like x, weight and (K,)."""
    op = "conv2d_backward"
    shape = _conv(op, x, weight, stride, padding, groups, ceil_mode, precision)
    _floats(op, "dy", dy, (shape.N, shape.K, shape.P, shape.Q))
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    d, w = call.put_images(dy), call.put(pack_weight(weight, shape.groups))
    dx, dw, db = (call.device.empty(like) for like in (shape.x, shape.weight, (shape.K,)))
    workspace = call.workspace(call.device.kernels.conv_backward_filter_workspace(shape))
    ops.conv_backward_data(call.stream, shape, d, w, dx)
    ops.conv_backward_filter(call.stream, shape, d, call.put_images(x), dw, db, workspace)
    return call.images(dx), unpack_weight(dw.download()), db.download()


def _pool(op: str, x: Values, size: int, stride: int, padding: Padding, ceil_mode: bool) -> PoolShape:
    _floats(op, "x", x, "NCHW")
    size, stride = _integer(op, "size", size, 1, 15), _integer(op, "stride", stride, 1, _LARGE)
    options = {"padding": _padding(op, padding), "ceil_mode": ceil_mode, "lanes": x.shape[0]}
    return _geometry(op, PoolShape.of, *x.shape, size, stride, **options)


def max_pool2d(
    x: Values, size: int, stride: int, *, padding: Padding = 0, ceil_mode: bool = False, device: str = "cpu"
) -> Values:
    """Maximum over windows of ``size`` x ``size`` (at most 15), ``stride`` apart: (N, C, H, W) -> (N, C, P, Q).

    Windows are clipped to the image; with ``ceil_mode`` the last one may overhang.
    """
    shape = _pool("max_pool2d", x, size, stride, padding, ceil_mode)
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    y = call.device.empty(shape.y)
    ops.max_pool_forward(call.stream, shape, call.put_images(x), y, None)
    return call.images(y)


def max_pool2d_backward(
    dy: Values,
    x: Values,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
) -> Values:
    """dx for ``dy`` (N, C, P, Q): each window's gradient goes to its first maximum in row order."""
    op = "max_pool2d_backward"
    shape = _pool(op, x, size, stride, padding, ceil_mode)
    _floats(op, "dy", dy, (shape.N, shape.C, shape.P, shape.Q))
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    y, argmax, dx = call.device.empty(shape.y), call.device.empty(shape.y, np.uint8), call.device.empty(shape.x)
    ops.max_pool_forward(call.stream, shape, call.put_images(x), y, argmax)
    ops.max_pool_backward(call.stream, shape, call.put_images(dy), argmax, dx)
    return call.images(dx)


def _lrn(op: str, x: Values, size: int, alpha: float, beta: float, k: float) -> LrnShape:
    _floats(op, "x", x, "NCHW")
    if not (alpha >= 0 and k > 0 and np.isfinite([alpha, beta, k]).all()):
        raise ValueError(
            f"{op}: needs finite alpha >= 0, k > 0 and beta, got alpha={alpha} beta={beta} k={k}; "
            "the denominator would not be positive"
        )
    N, C, H, W = x.shape
    return LrnShape(N, C, H, W, 1, N, _integer(op, "size", size, 1, 16), float(alpha), float(beta), float(k))


def local_response_norm(
    x: Values, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, *, device: str = "cpu"
) -> Values:
    """x / (k + alpha * sum of squares over ``size`` <= 16 neighbouring channels) ** beta, (N, C, H, W) -> the same.

    The window of channel c is [c - size//2, c - size//2 + size), clipped. As in section 3.3 of Krizhevsky et al.
    (2012), alpha is not divided by ``size``; PyTorch and ONNX divide: give them alpha * size.
    """
    shape = _lrn("local_response_norm", x, size, alpha, beta, k)
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    y = call.device.empty(shape.x)
    ops.lrn_forward(call.stream, shape, call.put_images(x), y)
    return call.images(y)


def local_response_norm_backward(
    dy: Values,
    x: Values,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    device: str = "cpu",
) -> Values:
    """dx of ``local_response_norm`` for ``dy`` (N, C, H, W)."""
    op = "local_response_norm_backward"
    shape = _lrn(op, x, size, alpha, beta, k)
    _floats(op, "dy", dy, x.shape)
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    dx = call.device.empty(shape.x)
    ops.lrn_backward(call.stream, shape, call.put_images(dy), call.put_images(x), dx)
    return call.images(dx)


def _linear(op: str, x: Values, weight: Values, precision: str) -> LinearShape:
    _fp32(op, precision)
    _floats(op, "x", x, "NC")
    _floats(op, "weight", weight, "KC")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: x (N, C) and weight (K, C) must have the same C, got x {x.shape} and weight {weight.shape}; "
            "a weight stored as (in, out) must be transposed"
        )
    return LinearShape(x.shape[0], x.shape[1], weight.shape[0], x.shape[0])


def linear(
    x: Values,
    weight: Values,
    bias: Values | None = None,
    *,
    relu: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """x weight^T + bias, then ReLU where asked: ``x`` (N, C), ``weight`` (K, C), ``bias`` (K,) -> (N, K)."""
    shape = _linear("linear", x, weight, precision)
    if bias is not None:
        _floats("linear", "bias", bias, (shape.K,))
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    w, b = call.put(weight.T.copy()), call.put_optional(bias)
    y, workspace = call.device.empty(shape.y), call.workspace(call.device.kernels.linear_workspace(shape))
    ops.linear_forward(call.stream, shape, call.put_images(x), w, b, y, relu, workspace)
    return call.images(y)


def linear_backward(
    dy: Values, x: Values, weight: Values, *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, Values, Values]:
    """Gradients of ``linear`` without ReLU: (dx, dweight, dbias) for ``dy`` (N, K), shaped like x, weight and (K,)."""
    op = "linear_backward"
    shape = _linear(op, x, weight, precision)
    _floats(op, "dy", dy, (shape.N, shape.K))
    call = _Call(device, shape.N)
    shape = call.padded(shape)
    d, w = call.put_images(dy), call.put(weight.T.copy())
    dx, dw, db = (call.device.empty(like) for like in (shape.x, shape.weight, (shape.K,)))
    workspace = call.workspace(call.device.kernels.linear_workspace(shape))
    ops.linear_backward_data(call.stream, shape, d, w, dx, workspace)
    ops.linear_backward_filter(call.stream, shape, d, call.put_images(x), dw, db, workspace)
    return call.images(dx), dw.download().T.copy(), db.download()


def relu(x: Values, *, device: str = "cpu") -> Values:
    """max(x, 0), any shape."""
    _floats("relu", "x", x)
    call = _Call(device)
    y = call.device.empty(x.shape)
    ops.relu_forward(call.stream, call.put(x), y)
    return y.download()


def relu_backward(dy: Values, y: Values, *, device: str = "cpu") -> Values:
    """dy where the output ``y`` is positive, else 0 (also at 0); any shape."""
    _floats("relu_backward", "y", y)
    _floats("relu_backward", "dy", dy, y.shape)
    call = _Call(device)
    dx = call.device.empty(y.shape)
    ops.relu_backward(call.stream, call.put(dy), call.put(y), dx)
    return dx.download()


def dropout(x: Values, p: float, *, seed: int, step: int, layer: int, device: str = "cpu") -> tuple[Values, Values]:
    """Zeroes every element with probability ``p``, without scaling the others: (y, mask), mask True where kept.

    ``x`` is (N, features) or (N, C, H, W). The mask depends on the element's place in ``x``, seed (64 bits), step and
    layer (32 bits each) alone: Philox4x32-10, see ``src/kernels/dropout.hpp``.
    """
    _floats("dropout", "x", x, "NCHW" if isinstance(x, np.ndarray) and x.ndim == 4 else "NC")
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in [0, 1), got {p}; 0 keeps everything")
    numbers = {"seed": _integer("dropout", "seed", seed, 0, 2**64 - 1)}
    numbers |= {name: _integer("dropout", name, n, 0, 2**32 - 1) for name, n in (("step", step), ("layer", layer))}
    call = _Call(device, x.shape[0])
    features = x[0].size
    shape = DropoutShape(call.N, features, call.lanes, 0, features, float(np.float32(p)), **numbers)
    y, mask = call.device.empty(shape.x), call.device.empty(shape.x, np.uint8)
    ops.dropout_forward(call.stream, shape, call.put_images(x.reshape(x.shape[0], features)), y, mask)
    return call.images(y).reshape(x.shape), call.images(mask).reshape(x.shape).astype(bool)


def softmax_cross_entropy(logits: Values, labels: Values, *, device: str = "cpu") -> tuple[Values, Values, Values]:
    """(losses, dlogits, probs) for ``logits`` (N, K) and integer ``labels`` (N,) from 0 to K - 1.

    ``losses`` (N,) = -log softmax(logits)[label]; ``dlogits`` (N, K) is the gradient of their mean; ``probs`` (N, K).
    """
    op = "softmax_cross_entropy"
    _floats(op, "logits", logits, "NK")
    N, K = logits.shape
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (N,):
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise ValueError(f"{op}: labels must be whole numbers of shape ({N},), one for each row of logits, got {found}")
    if labels.min() < 0 or labels.max() >= K:
        raise ValueError(f"{op}: labels must lie between 0 and {K - 1}, got {labels.min()} to {labels.max()}")
    call = _Call(device, N)
    shape = SoftmaxShape(call.N, N, K, call.lanes)
    classes = np.zeros(call.N, np.int32)
    classes[:N] = labels
    losses, ranks = call.device.empty((call.N,)), call.device.empty((call.N,), np.int32)
    probs, dlogits = call.device.empty(shape.x), call.device.empty(shape.x)
    tensors = (call.put_images(logits), call.put(classes), losses, ranks, probs, dlogits)
    ops.softmax_cross_entropy(call.stream, shape, *tensors)
    return losses.download()[:N], call.images(dlogits), call.images(probs)


def sgd(
    weight: Values,
    velocity: Values,
    gradient: Values,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    device: str = "cpu",
) -> tuple[Values, Values]:
    """One step of momentum SGD with weight decay, any shape: new (weight, velocity); the arguments stay as they are.

    velocity = momentum * velocity - lr * (weight_decay * weight + gradient); weight = weight + velocity
    (section 5 of Krizhevsky et al., 2012), every operation rounded to float32 in this order.
    """
    _floats("sgd", "weight", weight)
    _floats("sgd", "velocity", velocity, weight.shape)
    _floats("sgd", "gradient", gradient, weight.shape)
    call = _Call(device)
    w, v = call.put(weight), call.put(velocity)
    ops.sgd(call.stream, w, v, call.put(gradient), lr, momentum, weight_decay)
    return w.download(), v.download()
