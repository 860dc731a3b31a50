"""Max-pooling and local response normalisation on NumPy arrays, alone and the one behind the other.

All go through their maps in blocks that stay in the cache from pass to pass.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...kernels.shapes import LrnShape, PoolShape
from ..parallel import run, scratch
from . import common as blas_common
from .common import F32, U8, fp32_only, inside, keep, pieces, pixels_of

# --- max-pooling ---------------------------------------------------------------------------------------------------


def _pool_taps(shape: PoolShape) -> list[tuple[int, tuple[slice, slice, slice], int, tuple[slice, slice, slice]]]:
    """For every tap of the window in row order: its number, the outputs that have it, and where their pixels lie.

    That is the remainder of the column by the stride, which has its own plane, and the rows and columns of the plane.
    """
    taps = []
    for r in range(shape.size):
        p0, p1 = inside(r, shape.stride, shape.pad_top, shape.H, 0, shape.P)
        h = p0 * shape.stride + r - shape.pad_top
        for s in range(shape.size):
            q0, q1 = inside(s, shape.stride, shape.pad_left, shape.W, 0, shape.Q)
            w, phase = divmod(q0 * shape.stride + s - shape.pad_left, shape.stride)
            if p1 > p0 and q1 > q0:
                outputs = (slice(None), slice(p0, p1), slice(q0, q1))
                rows = slice(h, h + (p1 - p0 - 1) * shape.stride + 1, shape.stride)
                taps.append((r * shape.size + s, outputs, phase, (slice(None), rows, slice(w, w + q1 - q0))))
    return taps


def _channel_blocks(shape: PoolShape) -> list[slice]:
    """The channels of all image blocks, in pieces whose outputs are about blas_common.BLOCK elements."""
    return pieces(shape.N // shape.lanes * shape.C, max(1, blas_common.BLOCK // (shape.P * shape.Q * shape.lanes)))


def _planes(shape: PoolShape, channels: int) -> F32:
    """Scratch memory for some channels of x, with a plane for each remainder of the column by the stride."""
    return scratch("planes", (shape.stride, channels, shape.H, -(-shape.W // shape.stride), shape.lanes))


def _first_places(shape: PoolShape) -> U8:
    """The first tap that lies in the image: where all pixels of a window are -inf, none is larger than the start."""
    rows = np.maximum(0, shape.pad_top - shape.stride * np.arange(shape.P))
    columns = np.maximum(0, shape.pad_left - shape.stride * np.arange(shape.Q))
    return (rows[:, None] * shape.size + columns).astype(np.uint8)[:, :, None]


def _maxima(shape: PoolShape, x: F32, y: F32, argmax: U8 | None) -> None:
    """Of some channels: x (channels, H, W, L), y and argmax (channels, P, Q, L)."""
    pixels_of_x, planes, stride, taps = pixels_of(x), _planes(shape, len(x)), shape.stride, _pool_taps(shape)
    for phase in range(min(stride, shape.W)):
        pixels_of(planes[phase])[:, :, : -(-(shape.W - phase) // stride)] = pixels_of_x[:, :, phase::stride]
    y[...] = -np.inf
    if argmax is not None:
        argmax[...] = _first_places(shape)
    for tap, outputs, phase, pixels in taps:
        best, pixel = y[outputs], planes[phase][pixels]
        if argmax is not None:
            larger = scratch("chosen", best.shape, np.bool_)
            np.greater(pixel, best, out=larger)
            number = larger.view(np.uint8)
            np.multiply(number, tap, out=number)
            best_tap = argmax[outputs]
            np.maximum(best_tap, number, out=best_tap)  # taps come in rising order
        np.maximum(best, pixel, out=best)
    if argmax is not None and np.isnan(y.max()):  # NaN is not greater than anything: the first one of a window
        for tap, outputs, phase, pixels in reversed(taps):
            argmax[outputs][np.isnan(planes[phase][pixels])] = tap


def _gather(shape: PoolShape, dy: F32, argmax: U8, mask: F32 | None, dx: F32) -> None:
    """Of some channels: dy, argmax and mask (channels, P, Q, L), dx (channels, H, W, L)."""
    pixels_of_dx, planes, stride = pixels_of(dx), _planes(shape, len(dx)), shape.stride
    planes[...] = 0
    # the last tap of the first window comes first: every pixel sums its windows in row order
    for tap, outputs, phase, pixels in reversed(_pool_taps(shape)):
        gradient, sums = dy[outputs], planes[phase][pixels]
        chosen = scratch("chosen", gradient.shape, np.bool_)
        np.equal(argmax[outputs], tap, out=chosen)
        if mask is not None:
            positive = scratch("positive", gradient.shape, np.bool_)
            np.greater(mask[outputs], 0, out=positive)
            np.logical_and(chosen, positive, out=chosen)
        np.add(sums, keep(gradient, chosen), out=sums)
    for phase in range(min(stride, shape.W)):
        pixels_of_dx[:, :, phase::stride] = pixels_of(planes[phase])[:, :, : -(-(shape.W - phase) // stride)]


def max_pool_forward(shape: PoolShape, precision: str, x: F32, y: F32, argmax: U8 | None, stream: int) -> None:
    fp32_only(precision)
    xs, ys = x.reshape(-1, *shape.x[2:]), y.reshape(-1, *shape.y[2:])
    args = None if argmax is None else argmax.reshape(ys.shape)
    cuts = _channel_blocks(shape)

    def task(index: int) -> None:
        cut = cuts[index]
        _maxima(shape, xs[cut], ys[cut], None if args is None else args[cut])

    run(len(cuts), task)


def max_pool_backward(
    shape: PoolShape, precision: str, dy: F32, argmax: U8, mask: F32 | None, dx: F32, stream: int
) -> None:
    fp32_only(precision)
    dys, dxs = dy.reshape(-1, *shape.y[2:]), dx.reshape(-1, *shape.x[2:])
    args, masks = argmax.reshape(dys.shape), None if mask is None else mask.reshape(dys.shape)
    cuts = _channel_blocks(shape)

    def task(index: int) -> None:
        cut = cuts[index]
        _gather(shape, dys[cut], args[cut], None if masks is None else masks[cut], dxs[cut])

    run(len(cuts), task)


# --- local response normalisation ----------------------------------------------------------------------------------


def _padded(shape: LrnShape, columns: int, before: int) -> tuple[F32, F32]:
    """Scratch memory for a group's channels between the zeros that windows read beyond them, and the part between."""
    channels = shape.C // shape.groups
    whole = scratch("padded", (channels + shape.size - 1, columns))
    whole[:before], whole[before + channels :] = 0, 0
    return whole, whole[before : before + channels]


def _window_sums(padded: F32, size: int) -> F32:
    """(channels + size - 1, columns) -> (channels, columns): sums of ``size`` neighbours; destroys neither."""
    channels, columns = len(padded) - size + 1, padded.shape[1]
    # sums of 1, 2, 4, ... neighbours, each from two of the one before; those that make up `size` are added
    level, length, start, total = padded, 1, 0, None
    while True:
        if size & length:
            part = level[start : start + channels]
            total = part if total is None else np.add(total, part, out=scratch("sums", part.shape))
            start += length
        if 2 * length > size:
            assert total is not None
            return total
        longer = scratch(f"sums of {2 * length}", (len(level) - length, columns))
        level, length = np.add(level[:-length], level[length:], out=longer), 2 * length


def _lrn_denominators(shape: LrnShape, x: F32) -> tuple[F32, F32]:
    """d = k + alpha * window sum of x^2, and d^beta; beta = 3/4 needs only square roots."""
    padded, inner = _padded(shape, x.shape[1], shape.size // 2)
    np.multiply(x, x, out=inner)
    d, power = scratch("d", x.shape), scratch("power", x.shape)
    np.multiply(_window_sums(padded, shape.size), np.float32(shape.alpha), out=d)
    np.add(d, np.float32(shape.k), out=d)
    if shape.beta == 0.75:
        root = scratch("root", x.shape)
        np.sqrt(d, out=power)
        np.sqrt(power, out=root)
        np.multiply(power, root, out=power)
    else:
        np.power(d, np.float32(shape.beta), out=power)
    return d, power


def _normalise(shape: LrnShape, x: F32, y: F32) -> None:
    """Of one group: x, y (C/g, columns)."""
    for cut in _columns(shape, x.shape[1]):
        _, power = _lrn_denominators(shape, x[:, cut])
        np.divide(x[:, cut], power, out=y[:, cut])


def _lrn_gradient(shape: LrnShape, dy: F32, x: F32, dx: F32) -> None:
    """Of one group: dy, x, dx (C/g, columns)."""
    factor = np.float32(2 * shape.alpha * shape.beta)
    for cut in _columns(shape, x.shape[1]):
        part = x[:, cut]
        d, power = _lrn_denominators(shape, part)
        np.divide(dy[:, cut], power, out=power)  # dy d^-beta
        np.divide(part, d, out=d)
        padded, inner = _padded(shape, part.shape[1], shape.size - 1 - shape.size // 2)
        np.multiply(d, power, out=inner)  # dy x d^(-beta - 1)
        np.multiply(_window_sums(padded, shape.size), part, out=d)
        np.multiply(d, factor, out=d)
        np.subtract(power, d, out=dx[:, cut])


def _columns(shape: LrnShape, count: int) -> list[slice]:
    """Columns of a group in blocks of about BLOCK elements."""
    return pieces(count, max(64, blas_common.BLOCK // (shape.C // shape.groups)))


def _grouped(shape: LrnShape) -> tuple[int, int, int]:
    """The layout as (N/L * groups, C/g, H * W * L)."""
    return shape.N // shape.lanes * shape.groups, shape.C // shape.groups, shape.H * shape.W * shape.lanes


def lrn_forward(shape: LrnShape, precision: str, x: F32, y: F32, stream: int) -> None:
    fp32_only(precision)
    layout = _grouped(shape)
    xs, ys, cuts = x.reshape(layout), y.reshape(layout), _columns(shape, layout[2])

    def task(index: int) -> None:
        group, cut = index // len(cuts), cuts[index % len(cuts)]
        _normalise(shape, xs[group, :, cut], ys[group, :, cut])

    run(layout[0] * len(cuts), task)


def lrn_backward(shape: LrnShape, precision: str, dy: F32, x: F32, dx: F32, stream: int) -> None:
    fp32_only(precision)
    layout = _grouped(shape)
    xs, dys, dxs, cuts = x.reshape(layout), dy.reshape(layout), dx.reshape(layout), _columns(shape, layout[2])

    def task(index: int) -> None:
        group, cut = index // len(cuts), cuts[index % len(cuts)]
        _lrn_gradient(shape, dys[group, :, cut], xs[group, :, cut], dxs[group, :, cut])

    run(layout[0] * len(cuts), task)


# --- normalisation and the pooling behind it -----------------------------------------------------------------------


def _bands(shape: PoolShape) -> tuple[int, int]:
    """Pooled rows and rows that a task takes: so many that the rows of two tasks' windows are an eighth at most."""
    rows = max(1, -(-8 * (shape.size - shape.stride) // shape.stride))
    return rows, rows * shape.stride


def _band(shape: PoolShape, p0: int, p1: int, h0: int, h1: int) -> PoolShape:
    """Windows p0 to p1 of one image block on rows h0 to h1."""
    return replace(shape, N=shape.lanes, H=h1 - h0, P=p1 - p0, pad_top=shape.pad_top + h0 - p0 * shape.stride)


def lrn_pool_forward(
    lrn: LrnShape, pool: PoolShape, precision: str, x: F32, p: F32, argmax: U8 | None, stream: int
) -> None:
    """A task normalises some rows of a group's channels into scratch memory and pools them."""
    fp32_only(precision)
    groups, channels, _ = _grouped(lrn)
    xs, ps = x.reshape(_grouped(lrn)), p.reshape(groups, channels, pool.P, pool.Q, pool.lanes)
    args, bands = None if argmax is None else argmax.reshape(ps.shape), pieces(pool.P, _bands(pool)[0])
    row = pool.W * pool.lanes

    def task(index: int) -> None:
        group, band = index // len(bands), bands[index % len(bands)]
        h0 = max(0, band.start * pool.stride - pool.pad_top)
        h1 = min(pool.H, (band.stop - 1) * pool.stride - pool.pad_top + pool.size)
        y = scratch("normalised", (channels, (h1 - h0) * row))
        _normalise(lrn, xs[group, :, h0 * row : h1 * row], y)
        part, images = _band(pool, band.start, band.stop, h0, h1), y.reshape(channels, h1 - h0, pool.W, pool.lanes)
        for cut in _channel_blocks(replace(part, C=channels)):
            _maxima(part, images[cut], ps[group, cut, band], None if args is None else args[group, cut, band])

    run(groups * len(bands), task)


def lrn_pool_backward(
    lrn: LrnShape,
    pool: PoolShape,
    precision: str,
    dp: F32,
    argmax: U8,
    x: F32,
    dx: F32,
    relu: bool,
    stream: int,
) -> None:
    """A task gathers the gradient of some rows of a group's channels into scratch memory."""
    fp32_only(precision)
    groups, channels, _ = _grouped(lrn)
    xs, dxs = x.reshape(_grouped(lrn)), dx.reshape(_grouped(lrn))
    dps, bands = dp.reshape(groups, channels, pool.P, pool.Q, pool.lanes), pieces(pool.H, _bands(pool)[1])
    args, row = argmax.reshape(dps.shape), pool.W * pool.lanes

    def task(index: int) -> None:
        group, band = index // len(bands), bands[index % len(bands)]
        # the first window that reaches below the band's first row, and the one behind those that begin in it
        p0 = max(0, (band.start + pool.pad_top - pool.size) // pool.stride + 1)
        p1 = max(p0, min(pool.P, (band.stop - 1 + pool.pad_top) // pool.stride + 1))
        dy = scratch("gathered", (channels, band.stop - band.start, pool.W, pool.lanes))
        part = replace(_band(pool, p0, p1, band.start, band.stop), C=channels)
        for cut in _channel_blocks(replace(part, P=max(1, part.P))):
            _gather(part, dps[group, cut, p0:p1], args[group, cut, p0:p1], None, dy[cut])
        values, gradient = (a[group, :, band.start * row : band.stop * row] for a in (xs, dxs))
        _lrn_gradient(lrn, dy.reshape(channels, -1), values, gradient)
        if relu:
            positive = scratch("positive", values.shape, np.bool_)
            np.greater(values, 0, out=positive)
            gradient[...] = keep(gradient, positive)

    run(groups * len(bands), task)
