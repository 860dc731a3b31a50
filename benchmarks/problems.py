"""Every layer and pass of a network as a timed problem: buffers with fresh random numbers, the kernel call, a check.

The checks are independent of the kernels and in float64. Sums are compared at random places (and the corners), each
computed from the formula with the operands as the kernel reads them (rounded to the precision), within the bound for a
sum of so many products; normalisation, where pixels know nothing of each other, in some rows of pixels; everything else
is compared whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convnet.devices.protocol import Array, Device, Stream, padded
from convnet.kernels.control import control_words
from convnet.kernels.precision import BF16, copy_columns
from convnet.kernels.shapes import (
    BlurShape,
    ConvShape,
    DropoutShape,
    LinearShape,
    LocalShape,
    LrnShape,
    NailbedShape,
    PoolShape,
    SoftmaxShape,
    SpatialNormShape,
)
from convnet.network.assemble import Group, build, input_fold, pool_shape
from convnet.network.layers import Fusion, LayerOnDevice, Side
from convnet.network.maps import DropoutLayer, LrnLayer, PoolLayer
from convnet.network.products import ConvLayer, LinearLayer
from convnet.network.spec import NetworkSpec, Pool, parameter_count, placed_layers
from convnet.ops import ops
from convnet.ops.layout import to_bf16, to_float32

Values = np.ndarray[Any, Any]
PLACES = 100  # at which a sum is checked
ROWS = 6  # of pixels in which normalisation is
UNIT = 2.0**-24


class WrongResult(RuntimeError):
    """A kernel's result is outside its bound: it is not timed."""


@dataclass
class Problem:
    """``run`` queues on ``stream``. ``flops`` and ``bytes`` are the least there is to do: every operand read and every
    result written once. ``shape`` is that of a product, for comparisons with others'.
    """

    stream: Stream
    layer: str
    name: str
    flops: float
    bytes: float
    run: Callable[[], None]
    check: Callable[[], None]
    shape: ConvShape | LinearShape | None = None


class Bench:
    """One device with its stream, a precision and a source of random numbers."""

    def __init__(self, device: Device, precision: str, seed: int):
        self.device, self.precision, self.random = device, precision, np.random.default_rng(seed)
        self.side = Side(device, precision, 0, 1, shared=False)
        self.stream: Stream = self.side.stream

    def normal(self, shape: tuple[int, ...], spread: float = 1.0) -> Array:
        """An activation."""
        return self.refill(self.device.empty(shape, self.side.dtype), spread)

    def activation(self, shape: tuple[int, ...]) -> Array:
        """An activation that somebody has to write: NaN until then."""
        return self.poisoned(shape, self.side.dtype)

    def operand(self, array: Array) -> Values:
        """What a product reads of an activation or a weight, as float64."""
        values = to_float32(array.download())
        if self.precision == "tf32":  # rounded to nearest, ties away from zero
            bits = values.view(np.uint32)
            values = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
        return values.astype(np.float64)

    def poisoned(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An output: NaN (or -1) until somebody writes it."""
        array = self.device.empty(shape, dtype)
        self.stream.upload(array, np.full(array.nbytes, 0xFF, np.uint8).view(array.dtype).reshape(shape))
        return array

    def refill(self, array: Array, spread: float = 1.0) -> Array:
        values = self.random.standard_normal(array.shape, dtype=np.float32) * np.float32(spread)
        self.stream.upload(array, values if array.dtype == np.float32 else to_bf16(values))
        return array


def problems(
    device: Device, spec: NetworkSpec, batch_size: int, precision: str, seed: int, layers: list[str] | None = None
) -> Iterator[Problem]:
    """All problems in the order of the network, one at a time: a layer's memory is free again behind its last pass.
    Then those of no network: ``WINDOWS``, softmax and sgd.

    The random numbers of a layer depend on ``seed`` and the layer alone, so that devices of one layout get the same.
    """
    lanes = device.lanes(batch_size)
    N = padded(batch_size, lanes)
    all_placed = list(placed_layers(spec))
    for placed in all_placed:
        if layers and placed.layer.name not in layers:
            continue
        bench = Bench(device, precision, seed + placed.index)
        fold = input_fold(spec, precision) if placed.index == 0 else 1
        x = bench.normal((N // lanes, placed.C * fold**2, placed.H // fold, placed.W // fold, lanes))
        below = 0 if placed.index else None  # the images need no gradient
        alone = Fusion(0, 1, (below,) * len(placed.inputs), 1, (False,) * len(placed.inputs), masked=False)
        layer = build(Group((placed,), (), learns=True), bench.side, alone, N, lanes, spec, seed)
        bench.side.allocate()
        for read in layer.inputs:
            read.x = x.view(read.shape)
        for parameter in layer.parameters:
            bench.refill(parameter.value, 1 / math.sqrt(max(1, parameter.value.shape[0])))
        layer.copy_weights()
        yield from _passes(bench, layer)
        behind = all_placed[placed.index + 1 : placed.index + 2]
        if isinstance(layer, LrnLayer) and behind and isinstance(behind[0].layer, Pool):
            yield from _lrn_pool(bench, layer, pool_shape(behind[0], 1, N, lanes))
    for name, make in WINDOWS.items():
        if not layers or name in layers:
            yield from make(Bench(device, precision, seed), name, N, lanes)
    bench = Bench(device, precision, seed)
    if not layers or "softmax" in layers:
        yield _softmax(bench, SoftmaxShape(N, batch_size, spec.classes, lanes))
    if not layers or "sgd" in layers:
        yield _sgd(bench, parameter_count(spec))
    if layers and "local" in layers:  # the first one of a net of 2012 for CIFAR-10
        yield from _local(bench, LocalShape.of(N, 64, 6, 6, 32, 3, 3, padding=1, lanes=lanes))


def _passes(bench: Bench, layer: LayerOnDevice) -> Iterator[Problem]:
    if isinstance(layer, ConvLayer):
        yield from _conv(bench, layer)
    elif isinstance(layer, LinearLayer):
        yield from _linear(bench, layer)
    elif isinstance(layer, PoolLayer):
        yield from _pool(bench, layer)
    elif isinstance(layer, LrnLayer):
        yield from _lrn(bench, layer)
    elif isinstance(layer, DropoutLayer):
        yield from _dropout(bench, layer)


# ---- comparisons ----


def _within(what: str, actual: Values, expected: Values, limit: Values | float) -> None:
    if actual.shape != expected.shape:
        raise WrongResult(f"{what}: has the shape {actual.shape}, not {expected.shape}")
    if isinstance(limit, float) and limit == 0:  # spares large arrays of float64
        right = actual == expected
    else:
        right = np.abs(actual.astype(np.float64) - expected) <= limit
    if not np.all(right):
        raise WrongResult(f"{what}: {int((~right).sum())} of {right.size} compared values are wrong")


def _finite(what: str, actual: Values) -> None:
    if not np.isfinite(actual).all():
        raise WrongResult(f"{what}: {int((~np.isfinite(actual)).sum())} values are not finite")


def _sum_limit(magnitude: Values | float, terms: int, precision: str = "fp32") -> Any:
    """Rounding of a float32 sum of so many products whose absolute values add up to ``magnitude`` (random data).

    Tensor cores cut towards zero instead of rounding, once for every 8 (tf32) or 16 (bf16) products: 2^-23 each, all to
    the same side.
    """
    cuts = {"fp32": 0, "tf32": terms / 8 + 1, "bf16": terms / 16 + 1}[precision]
    return ((8 if terms < 16 else 4) * UNIT * math.sqrt(terms) + 2 * UNIT * cuts) * magnitude


def _output_limit(value: Values | float, precision: str) -> Any:
    """Half a unit in the last place of a bfloat16 output."""
    return 2.0**-8 * np.abs(value) if precision == "bf16" else 0.0


def _places(random: np.random.Generator, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Random positions, and the first and last of all."""
    inside = [tuple(int(random.integers(0, size)) for size in shape) for _ in range(PLACES)]
    return [tuple(0 for _ in shape), tuple(size - 1 for size in shape), *inside]


def _sampled(
    bench: Bench, what: str, result: Array, terms: int, products: Callable[..., tuple[Values, float]]
) -> Callable[[], None]:
    """Compares ``result`` with the sums of ``products(*place)``, which returns the products and a value to add."""

    def check() -> None:
        stored = result.download()
        actual = to_float32(stored)
        _finite(what, actual)
        for place in _places(bench.random, actual.shape):
            parts, offset = products(*place)
            expected, magnitude = parts.sum() + offset, np.abs(parts).sum() + abs(offset)
            limit = _sum_limit(magnitude, terms, bench.precision)
            if stored.dtype != np.float32:
                limit += _output_limit(abs(expected) + limit, "bf16")
            _within(f"{what} at {place}", actual[place], expected, limit)

    return check


# ---- layers ----


def _conv(bench: Bench, layer: ConvLayer) -> Iterator[Problem]:
    whole, filters = layer.shapes[0], layer.filters[0]
    shape: ConvShape = layer.products[0]  # folded where the layer is
    stream, side, g = bench.stream, bench.side, shape.groups
    c, k = shape.C // g, shape.K // g
    x, w, b = bench.operand(layer.x), bench.operand(filters), layer.bias.value.download()
    gradient = bench.normal(shape.y)
    dy = bench.operand(gradient)
    problem = stream, shape, bench.precision
    # The unfolded layer is what there is to do. Filters are read in the operands' type, their gradient is float32.
    flops, outer = 2.0 * whole.macs, layer.x.nbytes + gradient.nbytes
    read = math.prod(whole.weight) * layer.x.dtype.itemsize

    def window(block: int, group: int, p: int, q: int, lane: int) -> Values:
        part = np.zeros((c, shape.R, shape.S))
        for r in range(shape.R):
            for s in range(shape.S):
                h, v = p * shape.stride + r - shape.pad_top, q * shape.stride + s - shape.pad_left
                if 0 <= h < shape.H and 0 <= v < shape.W:
                    part[:, r, s] = x[block, group * c : (group + 1) * c, h, v, lane]
        return part

    def forward(block: int, f: int, p: int, q: int, lane: int) -> tuple[Values, float]:
        return window(block, f // k, p, q, lane) * w[f // k, ..., f % k], float(b[f])

    def backward_data(block: int, channel: int, h: int, v: int, lane: int) -> tuple[Values, float]:
        group, parts = channel // c, [np.zeros(1)]
        for r in range(shape.R):
            for s in range(shape.S):
                p, p_rest = divmod(h + shape.pad_top - r, shape.stride)
                q, q_rest = divmod(v + shape.pad_left - s, shape.stride)
                if not (p_rest or q_rest) and 0 <= p < shape.P and 0 <= q < shape.Q:
                    parts.append(dy[block, group * k : (group + 1) * k, p, q, lane] * w[group, channel % c, r, s])
        return np.concatenate(parts), 0.0

    def backward_filter(group: int, channel: int, r: int, s: int, f: int) -> tuple[Values, float]:
        h = np.arange(shape.P) * shape.stride + r - shape.pad_top
        v = np.arange(shape.Q) * shape.stride + s - shape.pad_left
        p, q = np.flatnonzero((h >= 0) & (h < shape.H)), np.flatnonzero((v >= 0) & (v < shape.W))
        pixels = x[:, group * c + channel][:, h[p]][:, :, v[q]]
        return pixels * dy[:, group * k + f][:, p][:, :, q], 0.0

    y = bench.activation(shape.y)
    yield Problem(
        stream, layer.name, "forward", flops, outer + read,
        lambda: ops.conv_forward(*problem, layer.x, filters, layer.bias.value, y),
        _sampled(bench, f"{layer.name} forward", y, c * shape.R * shape.S, forward), whole,
    )  # fmt: skip
    if layer.fusion.inputs[0] is not None:
        dx = bench.activation(shape.x)
        yield Problem(
            stream, layer.name, "backward data", flops, outer + read,
            lambda: ops.conv_backward_data(*problem, gradient, filters, dx, None),
            _sampled(bench, f"{layer.name} backward data", dx, k * shape.R * shape.S, backward_data), whole,
        )  # fmt: skip
    dweight, dbias = bench.poisoned(shape.weight), bench.poisoned((shape.K,))
    yield Problem(
        stream, layer.name, "backward filter", flops, outer + 4 * math.prod(whole.weight),
        lambda: ops.conv_backward_filter(*problem, gradient, layer.x, dweight, dbias, side.workspace),
        _sampled(bench, f"{layer.name} backward filter", dweight, shape.N * shape.P * shape.Q, backward_filter),
        whole,
    )  # fmt: skip
    yield _relu_backward(bench, layer.name, shape.y)


def _local(bench: Bench, shape: LocalShape) -> Iterator[Problem]:
    g = shape.groups
    c, k = shape.C // g, shape.K // g
    images, gradient, bias = bench.normal(shape.x), bench.normal(shape.y), bench.device.empty(shape.position_bias)
    filters = bench.normal(shape.weight_copy if bench.precision == "bf16" else shape.weight, 1 / math.sqrt(c))
    x, dy, w, b = bench.operand(images), bench.operand(gradient), bench.operand(filters), bench.refill(bias).download()
    problem = bench.stream, shape, bench.precision
    flops, outer, weights = 2.0 * shape.macs, images.nbytes + gradient.nbytes, math.prod(shape.weight)

    def pixel(group: int, p: int, q: int, r: int, s: int) -> Any:
        """Of the channels of a group under a tap, (block, channel, lane); None outside of the image."""
        h, v = p * shape.stride + r - shape.pad_top, q * shape.stride + s - shape.pad_left
        inside = 0 <= h < shape.H and 0 <= v < shape.W
        return x[:, group * c : (group + 1) * c, h, v] if inside else None

    def forward(block: int, f: int, p: int, q: int, lane: int) -> tuple[Values, float]:
        parts = [np.zeros(1)]
        for r, s in np.ndindex(shape.R, shape.S):
            if (channels := pixel(f // k, p, q, r, s)) is not None:
                parts.append(channels[block, :, lane] * w[p, q, f // k, :, r, s, f % k])
        return np.concatenate(parts), float(b[f, p, q])

    def backward_data(block: int, channel: int, h: int, v: int, lane: int) -> tuple[Values, float]:
        group, parts = channel // c, [np.zeros(1)]
        for p, q in np.ndindex(shape.P, shape.Q):
            r, s = h + shape.pad_top - p * shape.stride, v + shape.pad_left - q * shape.stride
            if 0 <= r < shape.R and 0 <= s < shape.S:
                parts.append(dy[block, group * k : (group + 1) * k, p, q, lane] * w[p, q, group, channel % c, r, s, :k])
        return np.concatenate(parts), 0.0

    def backward_filter(p: int, q: int, group: int, channel: int, r: int, s: int, f: int) -> tuple[Values, float]:
        channels = pixel(group, p, q, r, s)
        return (np.zeros(1) if channels is None else channels[:, channel] * dy[:, group * k + f, p, q]), 0.0

    y, dx = bench.activation(shape.y), bench.activation(shape.x)
    yield Problem(
        bench.stream, "local", "forward", flops, outer + weights * images.dtype.itemsize,
        lambda: ops.local_forward(*problem, images, filters, bias, y),
        _sampled(bench, "local forward", y, c * shape.R * shape.S, forward),
    )  # fmt: skip
    yield Problem(
        bench.stream, "local", "backward data", flops, outer + weights * images.dtype.itemsize,
        lambda: ops.local_backward_data(*problem, gradient, filters, dx, None),
        _sampled(bench, "local backward data", dx, k * shape.R * shape.S, backward_data),
    )  # fmt: skip
    dweight, dbias = bench.poisoned(shape.weight), bench.poisoned(shape.position_bias)
    yield Problem(
        bench.stream, "local", "backward filter", flops, outer + 4 * weights,
        lambda: ops.local_backward_filter(*problem, gradient, images, dweight, dbias),
        _sampled(bench, "local backward filter", dweight, shape.N, backward_filter),
    )  # fmt: skip


def _linear(bench: Bench, layer: LinearLayer) -> Iterator[Problem]:
    matrix = layer.matrices[0]
    shape, stream, side = layer.shapes[0], bench.stream, bench.side
    gradient = bench.normal(shape.y)
    x, dy = bench.operand(layer.x), bench.operand(gradient)
    w, b = bench.operand(matrix), layer.bias.value.download()
    problem = stream, shape, bench.precision
    flops, outer = 2.0 * shape.macs, layer.x.nbytes + gradient.nbytes
    nbytes = shape.C * shape.K * layer.x.dtype.itemsize
    y, dx, dweight = bench.activation(shape.y), bench.activation(shape.x), bench.poisoned(shape.weight)
    dbias = bench.poisoned((shape.K,))
    yield Problem(
        stream, layer.name, "forward", flops, outer + nbytes,
        lambda: ops.linear_forward(
            *problem, layer.x, matrix, layer.bias.value, y, False, None, None, side.workspace
        ),
        _sampled(bench, f"{layer.name} forward", y, shape.C,
                 lambda block, f, lane: (x[block, :, lane] * w[:, f], float(b[f]))), shape,
    )  # fmt: skip
    yield Problem(
        stream, layer.name, "backward data", flops, outer + nbytes,
        lambda: ops.linear_backward_data(*problem, gradient, matrix, dx, None, side.workspace),
        _sampled(bench, f"{layer.name} backward data", dx, shape.K,
                 lambda block, c, lane: (dy[block, :, lane] * w[c, : shape.K], 0.0)), shape,
    )  # fmt: skip
    yield Problem(
        stream, layer.name, "backward filter", flops, outer + 4 * shape.C * shape.K,
        lambda: ops.linear_backward_filter(*problem, gradient, layer.x, dweight, dbias, side.workspace),
        _sampled(bench, f"{layer.name} backward filter", dweight, shape.N,
                 lambda c, f: (x[:, c] * dy[:, f], 0.0)), shape,
    )  # fmt: skip
    yield _linear_update(bench, layer, gradient, x, dy)
    if layer.activation == "relu":
        yield _relu_backward(bench, layer.name, shape.y)


def _linear_update(bench: Bench, layer: LinearLayer, gradient: Array, x: Values, dy: Values) -> Problem:
    """The velocity behind exactly one step, as a sum of products: momentum v - rate (decay w + gradient)."""
    shape, weight, rate, momentum, decay = layer.shapes[0], layer.weights[0], 2.0**-10, 0.5, 2.0**-11
    bench.stream.upload(bench.side.control, control_words(0, rate, momentum, decay))
    w, v = (array.download() for array in (weight.value, bench.refill(weight.velocity)))
    dbias, workspace = bench.poisoned((shape.K,)), bench.side.workspace
    tensors = weight.value, weight.velocity, weight.copy, dbias, bench.side.control, 1.0, 1.0, 1.0, workspace
    nbytes = layer.x.nbytes + gradient.nbytes + 4 * weight.value.nbytes
    return Problem(
        bench.stream, layer.name, "backward filter and update", 2.0 * shape.macs,
        nbytes + (weight.copy.nbytes if weight.copy else 0),
        lambda: ops.linear_backward_filter_update(
            bench.stream, shape, bench.precision, gradient, layer.x, *tensors),
        _sampled(bench, f"{layer.name} update", weight.velocity, shape.N,
                 lambda c, f: (-rate * x[:, c] * dy[:, f], momentum * v[c, f] - rate * decay * w[c, f])),
    )  # fmt: skip


def _relu_backward(bench: Bench, layer: str, shape: tuple[int, ...]) -> Problem:
    dy, y, dx = bench.normal(shape), bench.normal(shape), bench.activation(shape)

    def check() -> None:
        found, given, positive = (to_float32(array.download()) for array in (dx, dy, y))
        _within(f"{layer} relu backward", found, np.where(positive > 0, given, 0), 0.0)

    return Problem(
        bench.stream,
        layer,
        "relu backward",
        dy.size,
        3 * dy.nbytes,
        lambda: ops.relu_backward(bench.stream, bench.precision, dy, y, dx),
        check,
    )


def _pool(bench: Bench, layer: PoolLayer) -> Iterator[Problem]:
    shape: PoolShape = layer.shape
    gradient, y = bench.normal(shape.y), bench.activation(shape.y)
    argmax, dx = bench.poisoned(shape.y, np.uint8), bench.activation(shape.x)
    x = to_float32(layer.x.download())
    height, width = ((n - 1) * shape.stride + shape.size for n in (shape.P, shape.Q))
    rows, columns = max(height, shape.pad_top + shape.H), max(width, shape.pad_left + shape.W)

    def taps(framed: Values) -> list[Values]:
        step = shape.stride
        return [framed[:, :, r : r + height - shape.size + 1 : step, s : s + width - shape.size + 1 : step]
                for r in range(shape.size) for s in range(shape.size)]  # fmt: skip

    inner = (slice(None), slice(None), slice(shape.pad_top, shape.pad_top + shape.H),
             slice(shape.pad_left, shape.pad_left + shape.W))  # fmt: skip

    def check_forward() -> None:
        framed = np.full((*x.shape[:2], rows, columns, shape.lanes), -np.inf, np.float32)
        framed[inner] = x
        best, place = np.full(shape.y, -np.inf, np.float32), np.zeros(shape.y, np.uint8)
        for number, values in enumerate(taps(framed)):
            place[values > best] = number
            best = np.maximum(best, values)
        _within(f"{layer.name} forward", to_float32(y.download()), best, 0.0)
        _within(f"{layer.name} argmax", argmax.download(), place, 0.0)

    def check_backward() -> None:
        framed, magnitude = (np.zeros((*x.shape[:2], rows, columns, shape.lanes)) for _ in range(2))
        dy, place = to_float32(gradient.download()), argmax.download()
        for number, (sums, sizes) in enumerate(zip(taps(framed), taps(magnitude), strict=True)):
            sums += np.where(place == number, dy, 0)
            sizes += np.where(place == number, np.abs(dy), 0)
        limit = _sum_limit(magnitude[inner], shape.size**2)
        limit += _output_limit(np.abs(framed[inner]) + limit, bench.precision)
        _within(f"{layer.name} backward", to_float32(dx.download()), framed[inner], limit)

    nbytes = layer.x.nbytes + y.nbytes + argmax.nbytes
    compared = y.size * shape.size**2
    yield Problem(bench.stream, layer.name, "forward", compared, nbytes,
                  lambda: ops.max_pool_forward(bench.stream, shape, bench.precision, layer.x, y, argmax),
                  check_forward)  # fmt: skip
    ops.max_pool_forward(bench.stream, shape, bench.precision, layer.x, y, argmax)
    yield Problem(bench.stream, layer.name, "backward", y.size, nbytes,
                  lambda: ops.max_pool_backward(bench.stream, shape, bench.precision, gradient, argmax, None, dx),
                  check_backward)  # fmt: skip


def _channel_sums(shape: LrnShape, values: Values, before: int) -> Values:
    """Of ``size`` channels from ``before`` channels before each, inside its group."""
    c = shape.C // shape.groups
    grouped = values.reshape(values.shape[0], shape.groups, c, -1)
    total = np.zeros_like(grouped)
    for shift in range(-before, shape.size - before):
        low, high = max(0, -shift), min(c, c - shift)
        if high > low:
            total[:, :, low:high] += grouped[:, :, low + shift : high + shift]
    return total.reshape(values.shape)


def _lrn_denominator(shape: LrnShape, x: Values) -> Values:
    return shape.k + shape.alpha * _channel_sums(shape, x * x, shape.size // 2)


def _lrn_gradient(shape: LrnShape, dy: Values, x: Values) -> tuple[Values, Values]:
    """dx and the sum of the absolute values of its terms, in float64."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    d = _lrn_denominator(shape, x)
    direct, shared = dy * d**-shape.beta, dy * x * d ** (-shape.beta - 1)
    after, factor = shape.size - 1 - shape.size // 2, 2 * shape.alpha * shape.beta
    magnitude = np.abs(direct) + factor * np.abs(x) * _channel_sums(shape, np.abs(shared), after)
    return direct - factor * x * _channel_sums(shape, shared, after), magnitude


def _rows(bench: Bench, H: int) -> Values:
    """Some rows of an image, the first and the last among them."""
    return np.unique([0, H - 1, *bench.random.integers(0, H, ROWS - 2)])


def _lrn(bench: Bench, layer: LrnLayer) -> Iterator[Problem]:
    shape: LrnShape = layer.shape
    bench.refill(layer.x, 30.0)  # so large that the sum matters beside k
    gradient, y, dx = bench.normal(shape.x), bench.activation(shape.x), bench.activation(shape.x)

    def check_forward() -> None:
        found, rows = to_float32(y.download()), _rows(bench, shape.H)
        _finite(f"{layer.name} forward", found)
        x = to_float32(layer.x.download()[:, :, rows]).astype(np.float64)
        expected = x * _lrn_denominator(shape, x) ** -shape.beta
        limit = 16 * UNIT * np.abs(expected)
        limit += _output_limit(np.abs(expected) + limit, bench.precision)
        _within(f"{layer.name} forward", found[:, :, rows], expected, limit)

    def check_backward() -> None:
        found, rows = to_float32(dx.download()), _rows(bench, shape.H)
        _finite(f"{layer.name} backward", found)
        x, dy = (to_float32(array.download()[:, :, rows]) for array in (layer.x, gradient))
        expected, magnitude = _lrn_gradient(shape, dy, x)
        limit = 32 * UNIT * magnitude
        limit += _output_limit(np.abs(expected) + limit, bench.precision)
        _within(f"{layer.name} backward", found[:, :, rows], expected, limit)

    yield Problem(bench.stream, layer.name, "forward", 2.0 * shape.size * y.size, 2 * y.nbytes,
                  lambda: ops.lrn_forward(bench.stream, shape, bench.precision, layer.x, y),
                  check_forward)  # fmt: skip
    yield Problem(bench.stream, layer.name, "backward", 4.0 * shape.size * y.size, 3 * y.nbytes,
                  lambda: ops.lrn_backward(bench.stream, shape, bench.precision, gradient, layer.x, dx),
                  check_backward)  # fmt: skip


def _lrn_pool(bench: Bench, layer: LrnLayer, pool: PoolShape) -> Iterator[Problem]:
    """The normalisation and the pooling behind it in one kernel, checked against the two alone."""
    shape: LrnShape = layer.shape
    name, problem = f"{layer.name}+pool", (bench.stream, shape, pool, bench.precision)
    gradient, p, dx = bench.normal(pool.y), bench.activation(pool.y), bench.activation(shape.x)
    argmax = bench.poisoned(pool.y, np.uint8)

    def check_forward() -> None:
        y, expected = bench.activation(shape.x), bench.activation(pool.y)
        ops.lrn_forward(bench.stream, shape, bench.precision, layer.x, y)
        ops.max_pool_forward(bench.stream, pool, bench.precision, y, expected, None)
        _within(f"{name} forward", to_float32(p.download()), to_float32(expected.download()), 0.0)

    def check_backward() -> None:
        dy = bench.activation(shape.x)
        ops.max_pool_backward(bench.stream, pool, bench.precision, gradient, argmax, None, dy)
        found, rows = to_float32(dx.download()), _rows(bench, shape.H)
        _finite(f"{name} backward", found)
        expected, magnitude = _lrn_gradient(
            shape, to_float32(dy.download()[:, :, rows]), to_float32(layer.x.download()[:, :, rows])
        )
        limit = 32 * UNIT * magnitude + _output_limit(magnitude, bench.precision)  # dy alone is rounded
        limit += _output_limit(np.abs(expected) + limit, bench.precision)
        _within(f"{name} backward", found[:, :, rows], expected, limit)

    nbytes, operations = layer.x.nbytes + p.nbytes + argmax.nbytes, 2.0 * shape.size * layer.x.size
    yield Problem(bench.stream, name, "forward", operations, nbytes,
                  lambda: ops.lrn_pool_forward(*problem, layer.x, p, argmax), check_forward)  # fmt: skip
    ops.lrn_pool_forward(*problem, layer.x, p, argmax)
    yield Problem(bench.stream, name, "backward", 2 * operations, nbytes + dx.nbytes,
                  lambda: ops.lrn_pool_backward(*problem, gradient, argmax, layer.x, dx),
                  check_backward)  # fmt: skip


def _dropout(bench: Bench, layer: DropoutLayer) -> Iterator[Problem]:
    def check() -> None:
        mask, p = layer.kept.download(), layer.shape.p
        kept, deviation = mask.mean(), math.sqrt(p * (1 - p) / mask.size)
        if not (np.isin(mask, (0, 1)).all() and abs(kept - (1 - p)) < 6 * deviation):
            raise WrongResult(f"{layer.name} forward: the mask keeps {kept:.3f} of its elements, not {1 - p}")
        _within(f"{layer.name} forward", to_float32(layer.y.download()), to_float32(layer.x.download()) * mask, 0.0)

    yield Problem(
        bench.stream, layer.name, "forward", layer.x.size, 2 * layer.x.nbytes + layer.kept.nbytes,
        lambda: layer.forward(True), check,
    )  # fmt: skip


# ---- windows of one map, on the maps of the CIFAR networks: 32 of 16 x 16, and pictures of 3 x 32 x 32 ----


def _compared(
    bench: Bench, what: str, result: Array, expected: Callable[[], tuple[Values, Values]]
) -> Callable[[], None]:
    """Compares ``result`` with a value and a limit for its error in float32, in float64."""

    def check() -> None:
        found, (value, limit) = to_float32(result.download()), expected()
        _finite(what, found)
        _within(what, found, value, limit + _output_limit(np.abs(value) + limit, bench.precision))

    return check


def _float64(array: Array) -> Values:
    return to_float32(array.download()).astype(np.float64)


def _avg_pool(bench: Bench, name: str, N: int, lanes: int) -> Iterator[Problem]:
    shape = PoolShape.of(N, 32, 16, 16, 3, 2, ceil_mode=True, lanes=lanes)
    x, dy = bench.normal(shape.x), bench.normal(shape.y)
    y, dx = bench.activation(shape.y), bench.activation(shape.x)
    windows = [(slice(2 * p, 2 * p + 3), slice(2 * q, 2 * q + 3)) for p in range(shape.P) for q in range(shape.Q)]

    def means() -> tuple[Values, Values]:
        values = _float64(x)
        parts = [values[:, :, rows, columns] for rows, columns in windows]
        mean, size = (np.stack([part.mean((2, 3)) for part in some], 2) for some in (parts, map(np.abs, parts)))
        return mean.reshape(shape.y), _sum_limit(size, 10).reshape(shape.y)

    def shares() -> tuple[Values, Values]:
        slopes = _float64(dy).reshape(*shape.y[:2], -1, lanes)
        gradient, size = np.zeros(shape.x), np.zeros(shape.x)
        for number, (rows, columns) in enumerate(windows):
            part = gradient[:, :, rows, columns]
            share = slopes[:, :, number, None, None] / (part.shape[2] * part.shape[3])
            part += share
            size[:, :, rows, columns] += np.abs(share)
        return gradient, _sum_limit(size, 6)

    problem, nbytes = (bench.stream, shape, bench.precision), x.nbytes + y.nbytes
    yield Problem(bench.stream, name, "forward", 9.0 * y.size, nbytes,
                  lambda: ops.avg_pool_forward(*problem, x, y),
                  _compared(bench, f"{name} forward", y, means))  # fmt: skip
    yield Problem(bench.stream, name, "backward", 9.0 * y.size, nbytes,
                  lambda: ops.avg_pool_backward(*problem, dy, None, dx),
                  _compared(bench, f"{name} backward", dx, shares))  # fmt: skip


def _rand_pool(bench: Bench, name: str, N: int, lanes: int) -> Iterator[Problem]:
    shape = PoolShape.of(N, 32, 16, 16, 3, 2, ceil_mode=True, lanes=lanes)
    features = shape.C * shape.P * shape.Q
    draw = DropoutShape(N, features, lanes, 0, features, 0.0, 1, 0)
    x = bench.normal(shape.x)
    y, mean = bench.activation(shape.y), bench.activation(shape.y)
    places = bench.poisoned(shape.y, np.uint8)
    rows, columns = (np.arange(side)[:, None] * 2 + np.arange(3) for side in (shape.P, shape.Q))

    def windows() -> Values:
        """[N/L][C][P][Q][9][L], -inf outside of the image."""
        values = np.pad(_float64(x), ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
        found = values[:, :, rows[:, None, :, None], columns[None, :, None, :]]
        return found.reshape(*shape.y[:4], 9, lanes)

    def check_draw() -> None:
        """Everything that is drawn is where it is said to lie, and positive where anything is."""
        values, place = windows(), places.download()[..., None, :]
        expected = np.take_along_axis(values, place.astype(np.int64), 4)[..., 0, :]
        _within(f"{name} forward", _float64(y), expected, 0.0)
        if ((expected > 0) != (values.max(4) > 0)).any():
            raise ValueError(f"{name} forward: a value was drawn that is not positive")

    def means() -> tuple[Values, Values]:
        values = windows()
        weights = np.maximum(values, 0)
        total = weights.sum(4)
        expected = np.where(total > 0, (weights**2).sum(4) / np.where(total > 0, total, 1), values.max(4))
        return expected, _sum_limit(np.abs(expected), 18)

    on = bench.stream, shape
    yield Problem(bench.stream, name, "forward", 0.0, x.nbytes + y.nbytes + places.nbytes,
                  lambda: ops.rand_pool_forward(*on, draw, bench.precision, x, y, places, bench.side.control),
                  check_draw)  # fmt: skip
    yield Problem(bench.stream, name, "mean", 27.0 * y.size, x.nbytes + y.nbytes,
                  lambda: ops.rand_pool_mean(*on, bench.precision, x, mean),
                  _compared(bench, f"{name} mean", mean, means))  # fmt: skip


def _map_sums(values: Values, size: int, before: int) -> Values:
    """Of ``size`` rows and columns from ``before`` before each pixel, inside the map."""
    for axis in (2, 3):
        values = np.moveaxis(values, axis, 0)
        total = np.zeros_like(values)
        for shift in range(-before, size - before):
            low, high = max(0, -shift), min(len(values), len(values) - shift)
            if high > low:
                total[low:high] += values[low + shift : high + shift]
        values = np.moveaxis(total, 0, axis)
    return values


def _spatial_norm(bench: Bench, name: str, N: int, lanes: int) -> Iterator[Problem]:
    """ "rnorm" and "cnorm"."""
    shape = SpatialNormShape(N, 32, 16, 16, lanes, 3, 0.02, 0.75, 1.0)
    size, before, after = shape.size, shape.size // 2, shape.size - 1 - shape.size // 2
    x, dy = bench.normal(shape.x, 4.0), bench.normal(shape.x)
    y, dx = bench.activation(shape.x), bench.activation(shape.x)
    nbytes = getattr(bench.device.kernels, f"{name}_workspace")(shape, bench.precision)
    workspace = bench.device.empty((nbytes,), np.uint8) if nbytes else None
    centred = name == "cnorm"

    def divided() -> tuple[Values, Values, Values]:
        """x, u and d."""
        values = _float64(x)
        pixels = _map_sums(np.ones((1, 1, *shape.x[2:4], 1)), size, before)
        u = values - _map_sums(values, size, before) / pixels if centred else values
        return values, u, shape.k + shape.alpha * _map_sums(u * u, size, before)

    def normalised() -> tuple[Values, Values]:
        values, _, d = divided()
        expected = values * d**-shape.beta
        return expected, 64 * UNIT * np.abs(expected)

    def gradient() -> tuple[Values, Values]:
        values, u, d = divided()
        slopes, factor = _float64(dy), 2 * shape.alpha * shape.beta
        direct, terms = slopes * d**-shape.beta, slopes * values * d ** (-shape.beta - 1)
        magnitude = np.abs(direct) + factor * (np.abs(u) + 1) * _map_sums(np.abs(terms), size, after)
        return direct - factor * u * _map_sums(terms, size, after), 64 * UNIT * magnitude

    problem = bench.stream, shape, bench.precision
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    scratch = (workspace,) if centred else ()
    yield Problem(bench.stream, name, "forward", 2.0 * size**2 * y.size, 2 * y.nbytes,
                  lambda: forward(*problem, x, y, *scratch),
                  _compared(bench, f"{name} forward", y, normalised))  # fmt: skip
    yield Problem(bench.stream, name, "backward", 4.0 * size**2 * y.size, 3 * y.nbytes,
                  lambda: backward(*problem, dy, x, dx, workspace),
                  _compared(bench, f"{name} backward", dx, gradient))  # fmt: skip


def _blur(bench: Bench, name: str, N: int, lanes: int) -> Iterator[Problem]:
    shape = BlurShape(N, 3, 32, 32, lanes, 9, 2.0)
    x, y = bench.normal(shape.x), bench.activation(shape.x)
    taps = np.exp(-((np.arange(9) - 4) ** 2) / 8)
    taps /= taps.sum()

    def blurred() -> tuple[Values, Values]:
        framed = np.pad(_float64(x), ((0, 0), (0, 0), (4, 4), (4, 4), (0, 0)))
        sums, sizes = (
            sum(taps[r] * taps[s] * values[:, :, r : r + 32, s : s + 32] for r in range(9) for s in range(9))
            for values in (framed, np.abs(framed))
        )
        return sums, 2 * _sum_limit(sizes, 9)

    yield Problem(bench.stream, name, "forward", 36.0 * y.size, 2 * y.nbytes,
                  lambda: ops.blur(bench.stream, shape, bench.precision, x, y),
                  _compared(bench, f"{name} forward", y, blurred))  # fmt: skip


def _nailbed(bench: Bench, name: str, N: int, lanes: int) -> Iterator[Problem]:
    shape = NailbedShape.of(N, 3, 32, 32, 4, lanes=lanes)
    x, dy = bench.normal(shape.x), bench.normal(shape.y)
    y, dx = bench.activation(shape.y), bench.activation(shape.x)

    def check_forward() -> None:
        _within(f"{name} forward", to_float32(y.download()), to_float32(x.download())[:, :, 2::4, 2::4], 0.0)

    def check_backward() -> None:
        expected = np.zeros(shape.x, np.float32)
        expected[:, :, 2::4, 2::4] = to_float32(dy.download())
        _within(f"{name} backward", to_float32(dx.download()), expected, 0.0)

    problem = bench.stream, shape, bench.precision
    yield Problem(bench.stream, name, "forward", 0.0, 2 * y.nbytes,
                  lambda: ops.nailbed_forward(*problem, x, y), check_forward)  # fmt: skip
    yield Problem(bench.stream, name, "backward", 0.0, dx.nbytes + dy.nbytes,
                  lambda: ops.nailbed_backward(*problem, dy, dx), check_backward)  # fmt: skip


WINDOWS: dict[str, Callable[[Bench, str, int, int], Iterator[Problem]]] = {
    "avg-pool": _avg_pool,
    "rand-pool": _rand_pool,
    "rnorm": _spatial_norm,
    "cnorm": _spatial_norm,
    "blur": _blur,
    "nailbed": _nailbed,
}


def _softmax(bench: Bench, shape: SoftmaxShape) -> Problem:
    logits, dlogits = bench.normal(shape.x, 3.0), bench.activation(shape.x)
    labels = bench.device.empty((shape.N,), np.int32)
    true = bench.random.integers(0, shape.K, shape.N).astype(np.int32)
    bench.stream.upload(labels, true)
    losses, ranks = bench.poisoned((shape.N,)), bench.poisoned((shape.N,), np.int32)

    def check() -> None:
        rows = (
            np.moveaxis(to_float32(logits.download()), 2, 1).reshape(shape.N, shape.K)[: shape.valid].astype(np.float64)
        )
        p = np.exp(rows - rows.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        image = np.arange(shape.valid)
        expected = p.copy()
        expected[image, true[: shape.valid]] -= 1
        found = np.moveaxis(to_float32(dlogits.download()), 2, 1).reshape(shape.N, shape.K)[: shape.valid]
        own = p[image, true[: shape.valid]]
        # exp of a rounded difference of logits, relative; and the rounding of p - 1
        limit = (64 * UNIT * p + 4 * UNIT) / shape.valid
        limit += _output_limit(np.abs(expected) / shape.valid + limit, bench.precision)
        _within("softmax dlogits", found, expected / shape.valid, limit)
        _within("softmax losses", losses.download()[: shape.valid], -np.log(own), 64 * UNIT * (1 - np.log(own)))

    return Problem(bench.stream, "softmax", "loss", 4.0 * logits.size, 2 * logits.nbytes,
                   lambda: ops.softmax_cross_entropy(
                       bench.stream, shape, bench.precision, logits, labels, losses, ranks, None, dlogits,
                       bench.side.control),
                   check)  # fmt: skip


def _sgd(bench: Bench, count: int) -> Problem:
    weight, velocity, gradient = (bench.refill(bench.device.empty((count,))) for _ in range(3))
    copy = bench.poisoned((copy_columns(count),), BF16) if bench.precision == "bf16" else None
    w, v, g = (array.download() for array in (weight, velocity, gradient))
    lr, momentum, decay = 1e-3, 0.9, 5e-4
    bench.stream.upload(bench.side.control, control_words(0, lr, momentum, decay))

    def check() -> None:  # behind exactly one update
        expected = (np.float32(momentum) * v) - (np.float32(lr) * ((np.float32(decay) * w) + g))
        _within("sgd velocity", velocity.download(), expected, 0.0)
        _within("sgd weight", weight.download(), w + expected, 0.0)
        if copy is not None:
            _within("sgd copy", copy.download()[:count], to_bf16(w + expected), 0.0)

    return Problem(bench.stream, "sgd", "update", 6.0 * count, 5 * weight.nbytes + (2 * count if copy else 0),
                   lambda: ops.sgd(bench.stream, weight, velocity, gradient, copy, bench.side.control, 1.0, 1.0, 1.0),
                   check)  # fmt: skip
