"""Every operation of the network on arrays, on any device: arrays in, NumPy out, nothing kept in between.

Images are (N, C, H, W), filters (K, C/groups, R, S), features (N, F), matrices (out, in), all float32. ``device`` is
"cpu", "emu[:i]" or "cuda[:i]"; a device is opened by its first use and kept. ``precision`` is "fp32", and on "emu" and
"cuda" also "tf32" or "bf16": then inputs are rounded to bfloat16 on their way in, and so is what comes back but for
probabilities, losses and the gradients of weights and biases. A wrong shape, dtype, value or device name raises
``ValueError`` and a missing device ``DeviceError``, before anything is launched.

Arrays are NumPy's, or of any library that has ``__array__`` or ``__dlpack__`` for host memory (PyTorch on the CPU), or,
on "cuda" devices, ``__cuda_array_interface__`` for memory of the same GPU (PyTorch, CuPy, pycuda): they are read where
they lie. On its way to the layout of a device an array is copied once, on the device where it lies there; what is to
lie as it is, is not copied at all on "cpu" and "cuda". Memory of a GPU is refused by other devices, and nothing is
converted but the order of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .devices.protocol import Array
from .kernels.activations import ACTIVATIONS
from .kernels.control import control_words
from .kernels.costs import COSTS
from .kernels.shapes import ConvShape, DropoutShape, GatherShape, Padding, PoolShape, SoftmaxShape
from .ops import arguments, ops
from .ops.arguments import floats, integer, taken
from .ops.call import Call
from .ops.layout import places_of_channels, unpack_local_weight, unpack_weight

Values = np.ndarray[Any, Any]
Given = Any  # an array of any library


def conv2d(
    x: Given,
    weight: Given,
    bias: Given | None = None,
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
    op = "conv2d"
    x, weight, bias = taken(op, device, x=x, weight=weight, bias=bias)
    shape = arguments.conv(op, x, weight, stride, padding, groups, ceil_mode)
    if bias is not None:
        floats(op, "bias", bias, (shape.K,))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    w, b = call.put_weight(weight, shape.groups), call.put_optional(bias)
    y = call.empty(shape.y)
    ops.conv_forward(call.stream, shape, precision, call.put_images(x), w, b, y, relu)
    return call.images(y)


def conv2d_backward(
    dy: Given,
    x: Given,
    weight: Given,
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
    dy, x, weight = taken(op, device, dy=dy, x=x, weight=weight)
    shape = arguments.conv(op, x, weight, stride, padding, groups, ceil_mode)
    floats(op, "dy", dy, (shape.N, shape.K, shape.P, shape.Q))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    d, w = call.put_images(dy), call.put_weight(weight, shape.groups)
    dx, dw, db = call.empty(shape.x), call.device.empty(shape.weight), call.device.empty((shape.K,))
    workspace = call.workspace(call.device.kernels.conv_backward_filter_workspace(shape, precision))
    ops.conv_backward_data(call.stream, shape, precision, d, w, dx, None)
    ops.conv_backward_filter(call.stream, shape, precision, d, call.put_images(x), dw, db, workspace)
    return call.images(dx), unpack_weight(dw.look()), db.look()


def local2d(
    x: Given,
    weight: Given,
    bias: Given | None = None,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    relu: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """``conv2d`` with filters and biases of their own at every output pixel ("local", "unshared").

    ``x`` (N, C, H, W), ``weight`` (P, Q, K, C/groups, R, S), ``bias`` (K, P, Q) -> (N, K, P, Q). ``padding`` as in
    ``conv2d``. P = 1 + ceil((H + padding above and below - R) / stride), and Q likewise: cuda-convnet's rounding, by
    which the last window may overhang and reads zeros there.
    """
    op = "local2d"
    x, weight, bias = taken(op, device, x=x, weight=weight, bias=bias)
    shape = arguments.local(op, x, weight, stride, padding, groups)
    if bias is not None:
        floats(op, "bias", bias, shape.position_bias)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    w, b = call.put_weight(weight, shape.groups), call.put_optional(bias)
    y = call.empty(shape.y)
    ops.local_forward(call.stream, shape, precision, call.put_images(x), w, b, y, relu)
    return call.images(y)


def local2d_backward(
    dy: Given,
    x: Given,
    weight: Given,
    *,
    stride: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    device: str = "cpu",
    precision: str = "fp32",
) -> tuple[Values, Values, Values]:
    """Gradients of ``local2d`` without ReLU for ``dy`` (N, K, P, Q): (dx, dweight, dbias), like x, weight and
    (K, P, Q).
    """
    op = "local2d_backward"
    dy, x, weight = taken(op, device, dy=dy, x=x, weight=weight)
    shape = arguments.local(op, x, weight, stride, padding, groups)
    floats(op, "dy", dy, (shape.N, shape.K, shape.P, shape.Q))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    d, w = call.put_images(dy), call.put_weight(weight, shape.groups)
    dx, dw, db = call.empty(shape.x), call.device.empty(shape.weight), call.device.empty(shape.position_bias)
    ops.local_backward_data(call.stream, shape, precision, d, w, dx, None)
    ops.local_backward_filter(call.stream, shape, precision, d, call.put_images(x), dw, db)
    return call.images(dx), unpack_local_weight(dw.look()), db.look()


def add_position_bias(x: Given, bias: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """``x`` (N, K, P, Q) plus ``bias`` (K, P, Q), one for every filter and pixel: (N, K, P, Q).

    Behind a ``conv2d`` without bias it gives the filters that pixels share biases that they do not.
    """
    op = "add_position_bias"
    x, bias = taken(op, device, x=x, bias=bias)
    floats(op, "x", x, "NKPQ")
    floats(op, "bias", bias, x.shape[1:])
    call = Call(op, device, precision, x.shape[0])
    shape = _pixels(call, x.shape)
    y = call.empty(shape.y)
    ops.add_position_bias(call.stream, shape, precision, call.put_images(x), call.put(bias), y)
    return call.images(y)


def add_position_bias_backward(dy: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """The gradient of the bias of ``add_position_bias`` for ``dy`` (N, K, P, Q): (K, P, Q). That of x is dy."""
    op = "add_position_bias_backward"
    (dy,) = taken(op, device, dy=dy)
    floats(op, "dy", dy, "NKPQ")
    call = Call(op, device, precision, dy.shape[0])
    shape = _pixels(call, dy.shape)
    dbias = call.device.empty(shape.position_bias)
    ops.add_position_bias_backward(call.stream, shape, precision, call.put_images(dy), dbias)
    return dbias.look()


def _pixels(call: Call, shape: tuple[int, ...]) -> ConvShape:
    """A convolution whose output has this shape."""
    N, K, P, Q = shape
    return call.padded(ConvShape.of(N, K, P, Q, K, 1, 1, lanes=N))


def max_pool2d(
    x: Given,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """Maximum over windows of ``size`` x ``size`` (at most 15), ``stride`` apart: (N, C, H, W) -> (N, C, P, Q).

    Windows are clipped to the image; with ``ceil_mode`` the last one may overhang.
    """
    op = "max_pool2d"
    (x,) = taken(op, device, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.y)
    ops.max_pool_forward(call.stream, shape, precision, call.put_images(x), y, None)
    return call.images(y)


def max_pool2d_backward(
    dy: Given,
    x: Given,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx for ``dy`` (N, C, P, Q): each window's gradient goes to its first maximum in row order."""
    op = "max_pool2d_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    floats(op, "dy", dy, (shape.N, shape.C, shape.P, shape.Q))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y, argmax, dx = call.empty(shape.y), call.device.empty(shape.y, np.uint8), call.empty(shape.x)
    ops.max_pool_forward(call.stream, shape, precision, call.put_images(x), y, argmax)
    ops.max_pool_backward(call.stream, shape, precision, call.put_images(dy), argmax, None, dx)
    return call.images(dx)


def rand_pool2d(
    x: Given,
    size: int,
    stride: int,
    *,
    seed: int,
    step: int,
    layer: int,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """Stochastic pooling (Zeiler and Fergus 2013): of each window as in ``max_pool2d`` a value, drawn with a
    probability proportional to max(x, 0); where none is positive, its maximum.

    The draw depends on the window's place in ``x``, seed (64 bits), step and layer (32 bits each) alone:
    Philox4x32-10, see ``src/kernels/randpool.hpp``.
    """
    op = "rand_pool2d"
    (x,) = taken(op, device, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    numbers = arguments.draw(op, seed, step, layer)
    call = Call(op, device, precision, shape.N)
    y, _ = _drawn(call, call.padded(shape), x, **numbers)
    return call.images(y)


def rand_pool2d_mean(
    x: Given,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """What ``rand_pool2d`` draws on average, for use at test: the sum of x^2 over that of x, of the positive x."""
    op = "rand_pool2d_mean"
    (x,) = taken(op, device, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.y)
    ops.rand_pool_mean(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def rand_pool2d_backward(
    dy: Given,
    x: Given,
    size: int,
    stride: int,
    *,
    seed: int,
    step: int,
    layer: int,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx of ``rand_pool2d`` for ``dy`` (N, C, P, Q): each window's gradient goes to the value that was drawn."""
    op = "rand_pool2d_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    floats(op, "dy", dy, (shape.N, shape.C, shape.P, shape.Q))
    numbers = arguments.draw(op, seed, step, layer)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    _, places = _drawn(call, shape, x, **numbers)
    dx = call.empty(shape.x)
    ops.max_pool_backward(call.stream, shape, precision, call.put_images(dy), places, None, dx)
    return call.images(dx)


def _drawn(call: Call, shape: PoolShape, x: Given, seed: int, step: int, layer: int) -> tuple[Array, Array]:
    """Of every window a value, and its position."""
    features = shape.C * shape.P * shape.Q
    draw = DropoutShape(call.N, features, call.lanes, 0, features, 0.0, seed, layer)
    y, places = call.empty(shape.y), call.device.empty(shape.y, np.uint8)
    control = call.own(control_words(step=step))
    ops.rand_pool_forward(call.stream, shape, draw, call.precision, call.put_images(x), y, places, control)
    return y, places


def local_response_norm(
    x: Given,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """x / (k + alpha * sum of squares over ``size`` <= 16 neighbouring channels) ** beta, (N, C, H, W) -> the same.

    The window of channel c is [c - size//2, c - size//2 + size), clipped. As in section 3.3 of Krizhevsky et al.
    (2012), alpha is not divided by ``size``; PyTorch and ONNX divide: give them alpha * size.
    """
    op = "local_response_norm"
    (x,) = taken(op, device, x=x)
    shape = arguments.lrn(op, x, size, alpha, beta, k)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.x)
    ops.lrn_forward(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def local_response_norm_backward(
    dy: Given,
    x: Given,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx of ``local_response_norm`` for ``dy`` (N, C, H, W)."""
    op = "local_response_norm_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.lrn(op, x, size, alpha, beta, k)
    floats(op, "dy", dy, x.shape)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx = call.empty(shape.x)
    ops.lrn_backward(call.stream, shape, precision, call.put_images(dy), call.put_images(x), dx)
    return call.images(dx)


def avg_pool2d(
    x: Given,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """Mean over windows of ``size`` x ``size`` (at most 15), ``stride`` apart: (N, C, H, W) -> (N, C, P, Q).

    Windows are clipped to the image, and a sum is divided by the number of pixels that are left of its window: padding
    counts for nothing, as with PyTorch's ``count_include_pad=False``. With ``ceil_mode`` the last window may overhang.
    """
    op = "avg_pool2d"
    (x,) = taken(op, device, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.y)
    ops.avg_pool_forward(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def avg_pool2d_backward(
    dy: Given,
    x: Given,
    size: int,
    stride: int,
    *,
    padding: Padding = 0,
    ceil_mode: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx of ``avg_pool2d`` for ``dy`` (N, C, P, Q): each pixel gets the same share of its windows' gradients. Of ``x``
    only the shape matters."""
    op = "avg_pool2d_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.pool(op, x, size, stride, padding, ceil_mode)
    floats(op, "dy", dy, (shape.N, shape.C, shape.P, shape.Q))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx = call.empty(shape.x)
    ops.avg_pool_backward(call.stream, shape, precision, call.put_images(dy), None, dx)
    return call.images(dx)


def spatial_response_norm(
    x: Given,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """x / (k + alpha * sum of squares over ``size`` x ``size`` pixels of its map) ** beta, (N, C, H, W) -> the same.

    The window of a pixel at p has the rows and columns [p - size//2, p - size//2 + size), clipped; ``size`` is at most
    the larger side of the image. alpha is not divided: the "rnorm" of cuda-convnet is this with alpha = scale / size^2.
    """
    op = "spatial_response_norm"
    (x,) = taken(op, device, x=x)
    shape = arguments.spatial_norm(op, x, size, alpha, beta, k)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.x)
    ops.rnorm_forward(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def spatial_response_norm_backward(
    dy: Given,
    x: Given,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx of ``spatial_response_norm`` for ``dy`` (N, C, H, W)."""
    op = "spatial_response_norm_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.spatial_norm(op, x, size, alpha, beta, k)
    floats(op, "dy", dy, x.shape)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx, workspace = call.empty(shape.x), call.workspace(call.device.kernels.rnorm_workspace(shape, precision))
    ops.rnorm_backward(call.stream, shape, precision, call.put_images(dy), call.put_images(x), dx, workspace)
    return call.images(dx)


def local_contrast_norm(
    x: Given,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """x / (k + alpha * sum of u^2 over ``size`` x ``size`` pixels of its map) ** beta, (N, C, H, W) -> the same.

    u is x less the mean of x over the window around it. Windows and constants are those of ``spatial_response_norm``;
    this is the "cnorm" of cuda-convnet, in which x itself is divided, not u.
    """
    op = "local_contrast_norm"
    (x,) = taken(op, device, x=x)
    shape = arguments.spatial_norm(op, x, size, alpha, beta, k)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y, workspace = call.empty(shape.x), call.workspace(call.device.kernels.cnorm_workspace(shape, precision))
    ops.cnorm_forward(call.stream, shape, precision, call.put_images(x), y, workspace)
    return call.images(y)


def local_contrast_norm_backward(
    dy: Given,
    x: Given,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """What cuda-convnet takes for dx of ``local_contrast_norm``, for ``dy`` (N, C, H, W).

    dx_p = dy_p d_p^-beta - 2 alpha beta u_p * sum of dy_o x_o d_o^(-beta-1) over the o whose windows hold p: the
    gradient but for how the means depend on x, which is left out.
    """
    op = "local_contrast_norm_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.spatial_norm(op, x, size, alpha, beta, k)
    floats(op, "dy", dy, x.shape)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx, workspace = call.empty(shape.x), call.workspace(call.device.kernels.cnorm_workspace(shape, precision))
    ops.cnorm_backward(call.stream, shape, precision, call.put_images(dy), call.put_images(x), dx, workspace)
    return call.images(dx)


def blur2d(x: Given, size: int, std: float, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """x blurred by a gaussian of ``size`` x ``size`` taps (3, 5, 7 or 9), (N, C, H, W) -> the same.

    The taps are exp(-d^2 / (2 std^2)) at the distance d from the middle along each axis, divided by their sum; outside
    of the image is 0.
    """
    op = "blur2d"
    (x,) = taken(op, device, x=x)
    shape = arguments.blur(op, "x", x, size, std)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.x)
    ops.blur(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def blur2d_backward(dy: Given, size: int, std: float, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """dx of ``blur2d`` for ``dy`` (N, C, H, W): the same blur of it, since the taps are symmetric."""
    op = "blur2d_backward"
    (dy,) = taken(op, device, dy=dy)
    shape = arguments.blur(op, "dy", dy, size, std)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx = call.empty(shape.x)
    ops.blur(call.stream, shape, precision, call.put_images(dy), dx)
    return call.images(dx)


def nailbed2d(x: Given, stride: int, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """Every ``stride``-th pixel of every ``stride``-th row, (N, C, H, W) -> (N, C, P, Q), sizes / stride rounded up.

    The first has row and column (size - stride * (count - 1)) // 2, so that they lie in the middle of the image.
    """
    op = "nailbed2d"
    (x,) = taken(op, device, x=x)
    shape = arguments.nailbed(op, x, stride)
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    y = call.empty(shape.y)
    ops.nailbed_forward(call.stream, shape, precision, call.put_images(x), y)
    return call.images(y)


def nailbed2d_backward(dy: Given, x: Given, stride: int, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """dx of ``nailbed2d`` for ``dy`` (N, C, P, Q): dy at its pixels, 0 at all others. Of ``x`` only the shape
    matters."""
    op = "nailbed2d_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    shape = arguments.nailbed(op, x, stride)
    floats(op, "dy", dy, (shape.N, shape.C, shape.P, shape.Q))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    dx = call.empty(shape.x)
    ops.nailbed_backward(call.stream, shape, precision, call.put_images(dy), dx)
    return call.images(dx)


def linear(
    x: Given,
    weight: Given,
    bias: Given | None = None,
    *,
    relu: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """x weight^T + bias, then ReLU where asked: ``x`` (N, C), ``weight`` (K, C), ``bias`` (K,) -> (N, K)."""
    op = "linear"
    x, weight, bias = taken(op, device, x=x, weight=weight, bias=bias)
    shape = arguments.linear(op, x, weight)
    if bias is not None:
        floats(op, "bias", bias, (shape.K,))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    w, b = call.put_weight(weight), call.put_optional(bias)
    y, workspace = call.empty(shape.y), call.workspace(call.device.kernels.linear_workspace(shape, precision))
    ops.linear_forward(call.stream, shape, precision, call.put_images(x), w, b, y, relu, None, None, workspace)
    return call.images(y)


def linear_backward(
    dy: Given, x: Given, weight: Given, *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, Values, Values]:
    """Gradients of ``linear`` without ReLU: (dx, dweight, dbias) for ``dy`` (N, K), shaped like x, weight and (K,)."""
    op = "linear_backward"
    dy, x, weight = taken(op, device, dy=dy, x=x, weight=weight)
    shape = arguments.linear(op, x, weight)
    floats(op, "dy", dy, (shape.N, shape.K))
    call = Call(op, device, precision, shape.N)
    shape = call.padded(shape)
    d, w = call.put_images(dy), call.put_weight(weight)
    dx, dw, db = call.empty(shape.x), call.device.empty(shape.weight), call.device.empty((shape.K,))
    workspace = call.workspace(call.device.kernels.linear_workspace(shape, precision))
    ops.linear_backward_data(call.stream, shape, precision, d, w, dx, None, workspace)
    ops.linear_backward_filter(call.stream, shape, precision, d, call.put_images(x), dw, db, workspace)
    return call.images(dx), dw.look().T.copy(), db.look()


def relu(x: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """max(x, 0), any shape."""
    op = "relu"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x)
    call = Call(op, device, precision)
    y = call.empty(x.shape)
    ops.relu_forward(call.stream, precision, call.put_rounded(x), y)
    return call.get(y)


def relu_backward(dy: Given, y: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """dy where the output ``y`` is positive, else 0 (also at 0); any shape."""
    op = "relu_backward"
    dy, y = taken(op, device, dy=dy, y=y)
    floats(op, "y", y)
    floats(op, "dy", dy, y.shape)
    call = Call(op, device, precision)
    dx = call.empty(y.shape)
    ops.relu_backward(call.stream, precision, call.put_rounded(dy), call.put_rounded(y), dx)
    return call.get(dx)


def tanh(x: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """The hyperbolic tangent within 2.5 units in the last place, any shape."""
    op = "tanh"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x)
    call = Call(op, device, precision)
    y = call.empty(x.shape)
    ops.activation_forward(call.stream, precision, "tanh", 1.0, 1.0, call.put_rounded(x), y)
    return call.get(y)


def tanh_backward(dy: Given, y: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """dy (1 - y^2) from the output ``y``; any shape."""
    op = "tanh_backward"
    dy, y = taken(op, device, dy=dy, y=y)
    floats(op, "y", y)
    floats(op, "dy", dy, y.shape)
    call = Call(op, device, precision)
    dx = call.empty(y.shape)
    d = call.put_rounded(dy)
    ops.activation_backward(call.stream, precision, "tanh", 1.0, 1.0, d, call.put_rounded(y), dx)
    return call.get(dx)


def activation(
    x: Given, kind: str, a: float | None = None, b: float | None = None, *, device: str = "cpu", precision: str = "fp32"
) -> Values:
    """One of the activations of the 2012 program, any shape, such as ``activation(x, "tanh", 1.7159, 0.6667)``.

    ``kind`` is "relu", "tanh" (a tanh(b x), a not 0), "logistic" (1 / (1 + e^-x)), "linear" (a x + b), "softrelu"
    (log(1 + e^x), and x itself above 4), "brelu" (min(a, max(0, x)), a above 0), "abs", "square" or "sqrt"; ``a`` and
    ``b`` are for those that have them.
    """
    op = "activation"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x)
    first, second = arguments.activation(op, kind, a, b)
    call = Call(op, device, precision)
    y = call.empty(x.shape)
    ops.activation_forward(call.stream, precision, kind, first, second, call.put_rounded(x), y)
    return call.get(y)


def activation_backward(
    dy: Given,
    x: Given,
    kind: str,
    a: float | None = None,
    b: float | None = None,
    *,
    device: str = "cpu",
    precision: str = "fp32",
) -> Values:
    """dx of ``activation`` for ``dy``, any shape. At a kink the slope is the 2012 program's: 0 for relu and brelu,
    -1 for abs."""
    op = "activation_backward"
    dy, x = taken(op, device, dy=dy, x=x)
    floats(op, "x", x)
    floats(op, "dy", dy, x.shape)
    first, second = arguments.activation(op, kind, a, b)
    call = Call(op, device, precision)
    saved, dx = call.put_rounded(x), call.empty(x.shape)
    if ACTIVATIONS[kind].reads == "y":
        y = call.empty(x.shape)
        ops.activation_forward(call.stream, precision, kind, first, second, saved, y)
        saved = y
    ops.activation_backward(call.stream, precision, kind, first, second, call.put_rounded(dy), saved, dx)
    return call.get(dx)


def weighted_sum(
    xs: Sequence[Given], coefficients: Sequence[float], *, device: str = "cpu", precision: str = "fp32"
) -> Values:
    """The sum of arrays of one shape, each times its coefficient, added from the first on: the 2012 program's eltsum.

    In bfloat16 every partial sum is rounded.
    """
    op = "weighted_sum"
    arrays = arguments.alike(op, device, xs)
    arguments.coefficients(op, coefficients, len(arrays))
    call = Call(op, device, precision)
    first, *rest = (call.put_rounded(x) for x in arrays)
    y = call.empty(first.shape)
    ops.scale(call.stream, precision, first, coefficients[0], y)
    for x, coefficient in zip(rest, coefficients[1:], strict=True):
        ops.weighted_add(call.stream, precision, y, 1.0, x, coefficient, y)
    return call.get(y)


def weighted_sum_backward(
    dy: Given, coefficients: Sequence[float], *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, ...]:
    """The gradients of ``weighted_sum`` for ``dy``: dy times each coefficient."""
    op = "weighted_sum_backward"
    (dy,) = taken(op, device, dy=dy)
    floats(op, "dy", dy)
    arguments.coefficients(op, coefficients, len(coefficients) if isinstance(coefficients, (list, tuple)) else 1)
    call = Call(op, device, precision)
    slope, results = call.put_rounded(dy), [call.empty(dy.shape) for _ in coefficients]
    for coefficient, dx in zip(coefficients, results, strict=True):
        ops.scale(call.stream, precision, slope, coefficient, dx)
    return tuple(call.get(dx) for dx in results)


def elementwise_max(xs: Sequence[Given], *, device: str = "cpu", precision: str = "fp32") -> Values:
    """The largest of arrays of one shape, value by value, NaN where one is: the 2012 program's eltmax."""
    call, _, y = _maximum("elementwise_max", xs, device, precision)
    return call.get(y)


def elementwise_max_backward(
    dy: Given, xs: Sequence[Given], *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, ...]:
    """The gradients of ``elementwise_max`` for ``dy``: arrays that are equal to the maximum get it, others 0."""
    op = "elementwise_max_backward"
    (dy,) = taken(op, device, dy=dy)
    call, arrays, y = _maximum(op, xs, device, precision)
    floats(op, "dy", dy, y.shape)
    slope, results = call.put_rounded(dy), [call.empty(y.shape) for _ in arrays]
    for x, dx in zip(arrays, results, strict=True):
        ops.maximum_backward(call.stream, precision, slope, x, y, dx)
    return tuple(call.get(dx) for dx in results)


def _maximum(op: str, xs: Sequence[Given], device: str, precision: str) -> tuple[Call, list[Array], Array]:
    """The call, its arrays, and the largest of them."""
    arrays = arguments.alike(op, device, xs)
    call = Call(op, device, precision)
    put = [call.put_rounded(x) for x in arrays]
    y = call.empty(put[0].shape)
    ops.maximum(call.stream, precision, put[0], put[0], y)
    for x in put[1:]:
        ops.maximum(call.stream, precision, y, x, y)
    return call, put, y


def gather_channels(x: Given, table: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """Channels picked by ``table`` (K,): y[:, i] = x[:, table[i]], (N, C, H, W) -> (N, K, H, W).

    Its whole numbers from 0 to C - 1 may stand there several times or never. This is what the groups of a convolution
    with random sparse connections read.
    """
    op = "gather_channels"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x, "NCHW")
    table = arguments.channels(op, table, x.shape[1])
    call = Call(op, device, precision, x.shape[0])
    N, C, H, W = x.shape
    shape = call.padded(GatherShape(N, C, H, W, len(table), 1))
    y = call.empty(shape.y)
    ops.gather_channels(call.stream, shape, precision, call.put_images(x), call.put(table), y)
    return call.images(y)


def mirror2d(x: Given, *, device: str = "cpu", precision: str = "fp32") -> Values:
    """``x`` (N, C, H, W) with its columns in reverse: the 2012 program's href. Its gradient is mirrored alike."""
    op = "mirror2d"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x, "NCHW")
    call = Call(op, device, precision, x.shape[0])
    _, C, H, W = x.shape
    shape, reverse = GatherShape.mirror(call.N, C, H, W, call.lanes), np.arange(W, dtype=np.int32)[::-1]
    images = call.put_images(x)
    y = call.empty(images.shape)
    rows, mirrored = images.view(shape.x), y.view(shape.y)
    ops.gather_channels(call.stream, shape, precision, rows, call.put(reverse.copy()), mirrored)
    return call.images(y)


def gather_channels_backward(
    dy: Given, table: Given, channels: int, *, device: str = "cpu", precision: str = "fp32"
) -> Values:
    """dx (N, ``channels``, H, W) of ``gather_channels`` for ``dy`` (N, K, H, W): the sum over all places of a channel,
    in ascending order, 0 where there is none.
    """
    op = "gather_channels_backward"
    (dy,) = taken(op, device, dy=dy)
    floats(op, "dy", dy, "NKHW")
    channels = integer(op, "channels", channels, 1, 2**31 - 1)
    table = arguments.channels(op, table, channels)
    N, K, H, W = dy.shape
    if len(table) != K:
        raise ValueError(f"{op}: dy must have a channel for each entry of table, got {K} and {len(table)}")
    call = Call(op, device, precision, N)
    shape = call.padded(GatherShape(N, channels, H, W, K, 1))
    starts, places = map(call.put, places_of_channels(table, channels))
    dx = call.empty(shape.x)
    ops.gather_channels_backward(call.stream, shape, precision, call.put_images(dy), starts, places, dx)
    return call.images(dx)


def dropout(
    x: Given, p: float, *, seed: int, step: int, layer: int, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, Values]:
    """Zeroes every element with probability ``p``, without scaling the others: (y, mask), mask True where kept.

    ``x`` is (N, features) or (N, C, H, W). The mask depends on the element's place in ``x``, seed (64 bits), step and
    layer (32 bits each) alone: Philox4x32-10, see ``src/kernels/dropout.hpp``.
    """
    op = "dropout"
    (x,) = taken(op, device, x=x)
    floats(op, "x", x, "NCHW" if getattr(x, "ndim", 0) == 4 else "NC")
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in [0, 1), got {p}; 0 keeps everything")
    numbers = arguments.draw(op, seed, step, layer)
    call = Call(op, device, precision, x.shape[0])
    features = x.size // x.shape[0]
    control = call.own(control_words(step=numbers.pop("step")))
    shape = DropoutShape(call.N, features, call.lanes, 0, features, float(np.float32(p)), **numbers)
    y, mask = call.empty(shape.x), call.device.empty(shape.x, np.uint8)
    rows = call.put_images(x).view(shape.x)
    ops.dropout_forward(call.stream, shape, precision, rows, y, mask, control)
    return call.images(y).reshape(x.shape), call.images(mask).reshape(x.shape).astype(bool)


def softmax_cross_entropy(
    logits: Given, labels: Given, *, device: str = "cpu", precision: str = "fp32"
) -> tuple[Values, Values, Values]:
    """(losses, dlogits, probs) for ``logits`` (N, K) and integer ``labels`` (N,) from 0 to K - 1.

    ``losses`` (N,) = -log softmax(logits)[label]; ``dlogits`` (N, K) is the gradient of their mean; ``probs`` (N, K).
    """
    op = "softmax_cross_entropy"
    (logits,) = taken(op, device, logits=logits)
    floats(op, "logits", logits, "NK")
    N, K = logits.shape
    classes = arguments.classes(op, labels, N, K)
    call = Call(op, device, precision, N)
    shape = SoftmaxShape(call.N, N, K, call.lanes)
    losses, ranks = call.device.empty((call.N,)), call.device.empty((call.N,), np.int32)
    probs, dlogits = call.device.empty(shape.x), call.empty(shape.x)
    control = call.own(control_words())
    tensors = (call.put_images(logits), _classes(call, classes), losses, ranks, probs, dlogits, control)
    ops.softmax_cross_entropy(call.stream, shape, precision, *tensors)
    return losses.look()[:N], call.images(dlogits), call.images(probs)


def cost(
    x: Given,
    kind: str,
    labels: Given | None = None,
    *,
    coefficient: float = 1.0,
    device: str = "cpu",
    precision: str = "fp32",
) -> tuple[Values, Values]:
    """(losses, dx) for ``x`` (N, K) and integer ``labels`` (N,) from 0 to K - 1. With t 1 for the feature of an image's
    label and 0 for the others, losses (N,) are the sums over the features of what ``kind`` says:

    - "squares": x^2, of an x (N, C, H, W) too; it takes no labels;
    - "squared-error", "log-squared-error": (x - t)^2, log(1 + (x - t)^2);
    - "cross-entropy": -t log x - (1 - t) log(1 - x), each logarithm at least -50, as in the 2012 program, and with
      gradient 0 there; x from 0 to 1;
    - "logistic-cross-entropy": the same of y = 1 / (1 + e^-x), whose gradient is that without the -50, y - t.

    dx is the gradient of ``coefficient`` times the mean of the losses.
    """
    op = "cost"
    if kind not in COSTS:
        raise ValueError(f'{op}: kind must be one of {", ".join(COSTS)}, got "{kind}"')
    (x,) = taken(op, device, x=x)
    images = kind == "squares" and getattr(x, "ndim", 0) == 4
    floats(op, "x", x, "NCHW" if images else "NK")
    arguments.number(op, "coefficient", coefficient)
    if kind == "squares" and labels is not None:
        raise ValueError(f'{op}: "squares" takes no labels')
    classes = None if kind == "squares" else arguments.classes(op, labels, *x.shape)
    call = Call(op, device, precision, x.shape[0])
    shape = SoftmaxShape(call.N, call.n, x.size // call.n, call.lanes)
    losses, dx, control = call.device.empty((call.N,)), call.empty(shape.x), call.own(control_words())
    given = call.put_images(x).view(shape.x), None if classes is None else _classes(call, classes)
    ops.cost(call.stream, shape, precision, kind, coefficient, *given, losses, dx, control)
    return losses.look()[: call.n], call.images(dx).reshape(x.shape)


def _classes(call: Call, labels: Values) -> Array:
    """Those of images that do not exist are 0."""
    return call.put(np.pad(labels, (0, call.N - call.n)))


def sgd(
    weight: Given,
    velocity: Given,
    gradient: Given,
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
    op = "sgd"
    weight, velocity, gradient = taken(op, device, weight=weight, velocity=velocity, gradient=gradient)
    floats(op, "weight", weight)
    floats(op, "velocity", velocity, weight.shape)
    floats(op, "gradient", gradient, weight.shape)
    call = Call(op, device, "fp32")
    w, v = call.own(weight), call.own(velocity)
    control = call.own(control_words(lr=lr, momentum=momentum, weight_decay=weight_decay))
    ops.sgd(call.stream, w, v, call.put(gradient), None, control, rate=1.0, decay=1.0, momentum=1.0)
    return w.look(), v.look()
