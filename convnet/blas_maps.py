"""Max-pooling and local response normalisation on NumPy arrays.

Both go through their maps in blocks that stay in the cache from pass to pass.
"""

from __future__ import annotations

import numpy as np

from . import blas_common
from .blas_common import F32, U8, fp32_only, inside, keep, pieces, pixels_of
from .parallel import run, scratch
from .shapes import LrnShape, PoolShape

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


def max_pool_forward(shape: PoolShape, precision: str, x: F32, y: F32, argmax: U8 | None, stream: int) -> None:
    fp32_only(precision)
    xs, ys = pixels_of(x.reshape(-1, *shape.x[2:])), y.reshape(-1, *shape.y[2:])
    args = None if argmax is None else argmax.reshape(ys.shape)
    cuts, taps, stride = _channel_blocks(shape), _pool_taps(shape), shape.stride
    # the first tap that lies in the image: where all pixels of a window are -inf, none is larger than the start
    rows = np.maximum(0, shape.pad_top - stride * np.arange(shape.P))
    columns = np.maximum(0, shape.pad_left - stride * np.arange(shape.Q))
    first = (rows[:, None] * shape.size + columns).astype(np.uint8)[:, :, None]

    def task(index: int) -> None:
        cut = cuts[index]
        out, planes = ys[cut], _planes(shape, cut.stop - cut.start)
        for phase in range(min(stride, shape.W)):
            pixels_of(planes[phase])[:, :, : -(-(shape.W - phase) // stride)] = xs[cut, :, phase::stride]
        out[...] = -np.inf
        if args is not None:
            args[cut] = first
        for tap, outputs, phase, pixels in taps:
            best, pixel = out[outputs], planes[phase][pixels]
            if args is not None:
                larger = scratch("chosen", best.shape, np.bool_)
                np.greater(pixel, best, out=larger)
                number = larger.view(np.uint8)
                np.multiply(number, tap, out=number)
                best_tap = args[cut][outputs]
                np.maximum(best_tap, number, out=best_tap)  # taps come in rising order
            np.maximum(best, pixel, out=best)
        if args is not None and np.isnan(out.max()):  # NaN is not greater than anything: the first one of a window
            for tap, outputs, phase, pixels in reversed(taps):
                args[cut][outputs][np.isnan(planes[phase][pixels])] = tap

    run(len(cuts), task)


def max_pool_backward(shape: PoolShape, precision: str, dy: F32, argmax: U8, dx: F32, stream: int) -> None:
    fp32_only(precision)
    dys, dxs = dy.reshape(-1, *shape.y[2:]), pixels_of(dx.reshape(-1, *shape.x[2:]))
    args = argmax.reshape(dys.shape)
    cuts, taps, stride = _channel_blocks(shape), _pool_taps(shape), shape.stride

    def task(index: int) -> None:
        cut = cuts[index]
        planes = _planes(shape, cut.stop - cut.start)
        planes[...] = 0
        # the last tap of the first window comes first: every pixel sums its windows in row order
        for tap, outputs, phase, pixels in reversed(taps):
            gradient, sums = dys[cut][outputs], planes[phase][pixels]
            chosen = scratch("chosen", gradient.shape, np.bool_)
            np.equal(args[cut][outputs], tap, out=chosen)
            np.add(sums, keep(gradient, chosen), out=sums)
        for phase in range(min(stride, shape.W)):
            dxs[cut, :, phase::stride] = pixels_of(planes[phase])[:, :, : -(-(shape.W - phase) // stride)]

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


def _lrn_blocks(shape: LrnShape) -> tuple[tuple[int, int, int], list[slice]]:
    """The layout as (N/L * groups, C/g, H * W * L), and its columns in blocks of about BLOCK elements."""
    channels, columns = shape.C // shape.groups, shape.H * shape.W * shape.lanes
    return (shape.N // shape.lanes * shape.groups, channels, columns), pieces(
        columns, max(64, blas_common.BLOCK // channels)
    )


def lrn_forward(shape: LrnShape, precision: str, x: F32, y: F32, stream: int) -> None:
    fp32_only(precision)
    layout, cuts = _lrn_blocks(shape)
    xs, ys = x.reshape(layout), y.reshape(layout)

    def task(index: int) -> None:
        group, cut = index // len(cuts), cuts[index % len(cuts)]
        _, power = _lrn_denominators(shape, xs[group, :, cut])
        np.divide(xs[group, :, cut], power, out=ys[group, :, cut])

    run(layout[0] * len(cuts), task)


def lrn_backward(shape: LrnShape, precision: str, dy: F32, x: F32, dx: F32, stream: int) -> None:
    fp32_only(precision)
    layout, cuts = _lrn_blocks(shape)
    xs, dys, dxs = x.reshape(layout), dy.reshape(layout), dx.reshape(layout)
    factor = np.float32(2 * shape.alpha * shape.beta)

    def task(index: int) -> None:
        group, cut = index // len(cuts), cuts[index % len(cuts)]
        part = xs[group, :, cut]
        d, power = _lrn_denominators(shape, part)
        np.divide(dys[group, :, cut], power, out=power)  # dy d^-beta
        np.divide(part, d, out=d)
        padded, inner = _padded(shape, part.shape[1], shape.size - 1 - shape.size // 2)
        np.multiply(d, power, out=inner)  # dy x d^(-beta - 1)
        np.multiply(_window_sums(padded, shape.size), part, out=d)
        np.multiply(d, factor, out=d)
        np.subtract(power, d, out=dxs[group, :, cut])

    run(layout[0] * len(cuts), task)
