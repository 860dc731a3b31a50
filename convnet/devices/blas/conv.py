"""Matrix products on NumPy arrays by BLAS: convolutions and fully-connected layers.

A convolution is a product with the unfolded input ("im2col"). Because the images lie innermost, every filter tap of
every output row is one run of memory, and unfolding is a few large copies. It is done piece by piece, small enough for
the cache, one piece per task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels.control import STEP, STOPPED
from ...kernels.shapes import ConvShape, DropoutShape, LinearShape
from ..parallel import run, scratch
from .common import F32, U32, copy_where_positive, dropout_keeps, fp32_only, inside, pieces, pixels_of, update, zeros

Tile = tuple[int, int, int, int]  # first and last row, first and last column (exclusive)

# How the work is cut: measured on the layers of the network, and the same on every machine, for any number of threads.
TASKS = 8  # pieces of a sum, and the least number of pieces of everything large
TILE_BYTES = 4 << 20  # of unfolded input per matrix product
SCATTER_BYTES = 2 << 20  # of unfolded input gradient, which is read again at once


# --- convolution ---------------------------------------------------------------------------------------------------


def _tiles(rows: int, columns: int, bytes_per_pixel: int, limit: int) -> list[Tile]:
    """Cuts an image into runs of whole rows, or parts of one row, of at most ``limit``: contiguous in every channel."""
    fitting = limit // (bytes_per_pixel * columns)
    if fitting >= 1:
        even = -(-rows // -(-rows // fitting))
        return [(row, min(row + even, rows), 0, columns) for row in range(0, rows, even)]
    fitting = max(1, limit // bytes_per_pixel)
    return [(r, r + 1, c, min(c + fitting, columns)) for r in range(rows) for c in range(0, columns, fitting)]


def _forward_tiles(shape: ConvShape) -> list[Tile]:
    """The outputs, cut so that a tile's unfolded input fits the cache and there are tasks for several threads."""
    bytes_per_pixel = shape.C // shape.groups * shape.R * shape.S * shape.lanes * 4
    share = shape.groups * shape.P * shape.Q * bytes_per_pixel // TASKS
    return _tiles(shape.P, shape.Q, bytes_per_pixel, min(TILE_BYTES, max(TILE_BYTES // 32, share)))


def _grouped(array: F32, groups: int) -> F32:
    """(N/L, C, H, W, L) as (N/L, groups, C/groups, H, W, L)."""
    blocks, channels, *rest = array.shape
    return array.reshape(blocks, groups, channels // groups, *rest)


def _overlapping(array: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of contiguous ``array`` in which items may occur many times."""
    return np.ndarray(shape, array.dtype, array, 0, strides)


def _unfold(shape: ConvShape, x: F32, tile: Tile) -> F32:
    """(taps, outputs): row (c, r, s) holds the pixels of x (C/g, H, W, L) under that tap; 0 outside the image."""
    p0, p1, q0, q1 = tile
    C, R, S, stride, L = len(x), shape.R, shape.S, shape.stride, shape.lanes
    # The part of the image that this tile reads, with its zeros, and for each remainder of w / stride its own plane:
    # neighbouring outputs then read neighbouring items under every tap.
    height, width = (p1 - p0 - 1) * stride + R, q1 - q0 + (S - 1) // stride
    part = pixels_of(scratch("part", (min(stride, S), C, height, width, L)))
    source, zero = pixels_of(x), np.zeros((), part.dtype)
    h0 = p0 * stride - shape.pad_top
    top, bottom = inside(0, 1, -h0, shape.H, 0, height)
    columns = scratch("columns", (C, R, S, p1 - p0, q1 - q0, L))
    target = pixels_of(columns)
    for phase, plane in enumerate(part):
        left, right = inside(phase, stride, shape.pad_left, shape.W, q0, q0 + width)
        w = left * stride + phase - shape.pad_left
        if (top, bottom, left, right) != (0, height, q0, q0 + width):
            plane[...] = zero
        if bottom > top and right > left:
            plane[:, top:bottom, left - q0 : right - q0] = source[
                :, h0 + top : h0 + bottom, w : w + stride * (right - left) : stride
            ]
        taps = target[:, :, phase::stride]
        c, h, w = plane.strides
        taps[...] = _overlapping(plane, taps.shape, (c, h, w, h * stride, w))
    return columns.reshape(C * R * S, -1)


def conv_forward(
    shape: ConvShape, precision: str, x: F32, weight: F32, bias: F32 | None, y: F32, relu: bool, stream: int
) -> None:
    fp32_only(precision)
    g = shape.groups
    xs, ys = _grouped(x.reshape(shape.x), g), _grouped(y.reshape(shape.y), g)
    matrices = weight.reshape(g, -1, shape.K // g)
    biases = None if bias is None else bias.reshape(g, -1, 1)
    cuts = _forward_tiles(shape)

    def task(index: int) -> None:
        rest, cut = divmod(index, len(cuts))
        block, group = divmod(rest, g)
        p0, p1, q0, q1 = cuts[cut]
        # a view, for a tile is contiguous in every channel: BLAS writes straight into y
        out = ys[block, group, :, p0:p1, q0:q1].reshape(shape.K // g, -1)
        np.matmul(matrices[group].T, _unfold(shape, xs[block, group], cuts[cut]), out=out)
        _add_bias_and_clip(out, None if biases is None else biases[group], relu)

    run(len(xs) * g * len(cuts), task)


def _add_bias_and_clip(out: F32, bias: F32 | None, relu: bool) -> None:
    if bias is not None:
        np.add(out, bias, out=out)
    if relu:
        np.maximum(out, zeros(out.shape[1]), out=out)


def conv_backward_data(
    shape: ConvShape, precision: str, dy: F32, weight: F32, dx: F32, mask: F32 | None, stream: int
) -> None:
    fp32_only(precision)
    # The filters times dy give what every output sends to its pixels; a second step adds that up, tap by tap.
    # Unfolding dy instead would move K/C as much memory, and with a stride multiply zeros.
    g, stride = shape.groups, shape.stride
    dys, dxs = _grouped(dy.reshape(shape.y), g), _grouped(dx.reshape(shape.x), g)
    masks = None if mask is None else _grouped(mask.reshape(shape.x), g)
    matrices = weight.reshape(g, shape.C // g, -1, shape.K // g)
    cuts = pieces(shape.C // g, max(1, shape.C // TASKS))
    height = max(shape.pad_top + shape.H, (shape.P - 1) * stride + shape.R)
    width = max(shape.pad_left + shape.W, (shape.Q - 1) * stride + shape.S)

    def task(index: int) -> None:
        rest, piece = divmod(index, len(cuts))
        block, group = divmod(rest, g)
        channels = cuts[piece].stop - cuts[piece].start
        matrix = matrices[group, cuts[piece]].reshape(-1, shape.K // g)
        image = scratch("part", (channels, height, width, shape.lanes))
        image[...] = 0
        for p0, p1, q0, q1 in _tiles(shape.P, shape.Q, len(matrix) * shape.lanes * 4, SCATTER_BYTES):
            gradient = dys[block, group, :, p0:p1, q0:q1].reshape(shape.K // g, -1)
            sent = scratch("columns", (channels, shape.R, shape.S, p1 - p0, q1 - q0, shape.lanes))
            np.matmul(matrix, gradient, out=sent.reshape(len(matrix), -1))
            for r in range(shape.R):
                rows = slice(p0 * stride + r, (p1 - 1) * stride + r + 1, stride)
                for s in range(shape.S):
                    pixels = image[:, rows, q0 * stride + s : (q1 - 1) * stride + s + 1 : stride]
                    np.add(pixels, sent[:, r, s], out=pixels)
        sums = image[:, shape.pad_top : shape.pad_top + shape.H, shape.pad_left : shape.pad_left + shape.W]
        target = dxs[block, group, cuts[piece]]
        if masks is None:
            np.copyto(target, sums)
        else:
            copy_where_positive(sums, masks[block, group, cuts[piece]], target)

    run(len(dys) * g * len(cuts), task)


def conv_backward_filter(
    shape: ConvShape, precision: str, dy: F32, x: F32, dweight: F32, dbias: F32 | None, workspace: Any, stream: int
) -> None:
    fp32_only(precision)
    g = shape.groups
    taps, filters = shape.C // g * shape.R * shape.S, shape.K // g
    xs, dys = _grouped(x.reshape(shape.x), g), _grouped(dy.reshape(shape.y), g)
    cuts = [(block, tile) for block in range(len(xs)) for tile in _forward_tiles(shape)]
    # each task sums some of the tiles; the partial sums are then added in order
    parts = min(len(cuts), -(-TASKS // g))
    sums, bias_sums = scratch("sums", (parts, g, taps, filters)), scratch("bias sums", (parts, g, filters))

    def task(index: int) -> None:
        group, part = divmod(index, parts)
        for number, (block, tile) in enumerate(cuts[part * len(cuts) // parts : (part + 1) * len(cuts) // parts]):
            p0, p1, q0, q1 = tile
            gradient = dys[block, group, :, p0:p1, q0:q1].reshape(filters, -1)
            columns = _unfold(shape, xs[block, group], tile)
            if number == 0:
                np.matmul(columns, gradient.T, out=sums[part, group])
                np.sum(gradient, 1, out=bias_sums[part, group])
            else:
                product = scratch("product", (taps, filters))
                np.matmul(columns, gradient.T, out=product)
                np.add(sums[part, group], product, out=sums[part, group])
                np.add(bias_sums[part, group], gradient.sum(1), out=bias_sums[part, group])

    run(g * parts, task)
    _sum_in_order(sums.reshape(parts, -1), dweight.reshape(-1))
    if dbias is not None:
        _sum_in_order(bias_sums.reshape(parts, -1), dbias.reshape(-1))


def _sum_in_order(parts: F32, total: F32) -> None:
    np.copyto(total, parts[0])
    for part in parts[1:]:
        np.add(total, part, out=total)


def conv_backward_filter_workspace(shape: ConvShape, precision: str) -> int:
    fp32_only(precision)
    return 0


# --- fully-connected layers ----------------------------------------------------------------------------------------


def _columns_of(array: F32, lanes: int) -> F32:
    """(N/L, C, L) as (C, N): a view when there is one block."""
    blocks, features = array.shape[:2]
    return array.transpose(1, 0, 2).reshape(features, blocks * lanes)


def linear_forward(
    shape: LinearShape,
    precision: str,
    x: F32,
    weight: F32,
    bias: F32 | None,
    y: F32,
    relu: bool,
    dropout: DropoutShape | None,
    control: U32 | None,
    workspace: Any,
    stream: int,
) -> None:
    fp32_only(precision)
    columns, matrix = _columns_of(x.reshape(shape.x), shape.lanes), weight.reshape(shape.weight)
    out = y.reshape(shape.y)
    cuts = pieces(shape.K, 512)

    def task(index: int) -> None:
        cut = cuts[index]
        part = scratch("linear", (cut.stop - cut.start, shape.N))
        np.matmul(matrix[:, cut].T, columns, out=part)
        _add_bias_and_clip(part, None if bias is None else bias.reshape(-1, 1)[cut], relu)
        if dropout is not None:
            kept: Any = np.float32(1) - np.float32(dropout.p)
            if control is not None:
                kept = dropout_keeps(dropout, control[STEP], range(shape.N), range(cut.start, cut.stop))
            np.multiply(part, kept, out=part)
        out[:, cut] = part.reshape(len(part), -1, shape.lanes).transpose(1, 0, 2)

    run(len(cuts), task)


def linear_backward_data(
    shape: LinearShape,
    precision: str,
    dy: F32,
    weight: F32,
    dx: F32,
    mask: F32 | None,
    workspace: Any,
    stream: int,
) -> None:
    fp32_only(precision)
    columns, matrix = _columns_of(dy.reshape(shape.y), shape.lanes), weight.reshape(shape.weight)
    out, masks = dx.reshape(shape.x), None if mask is None else mask.reshape(shape.x)
    cuts = pieces(shape.C, 512)

    def task(index: int) -> None:
        cut = cuts[index]
        part = scratch("linear", (cut.stop - cut.start, shape.N))
        np.matmul(matrix[cut], columns, out=part)
        sums = part.reshape(len(part), -1, shape.lanes).transpose(1, 0, 2)
        if masks is None:
            out[:, cut] = sums
        else:
            copy_where_positive(sums, masks[:, cut], out[:, cut])

    run(len(cuts), task)


def linear_backward_filter(
    shape: LinearShape, precision: str, dy: F32, x: F32, dweight: F32, dbias: F32 | None, workspace: Any, stream: int
) -> None:
    fp32_only(precision)
    columns, gradient = _columns_of(x.reshape(shape.x), shape.lanes), _columns_of(dy.reshape(shape.y), shape.lanes)
    out = dweight.reshape(shape.weight)
    cuts = pieces(shape.C, 512)

    def task(index: int) -> None:
        np.matmul(columns[cuts[index]], gradient.T, out=out[cuts[index]])

    run(len(cuts), task)
    if dbias is not None:
        np.sum(gradient, 1, out=dbias.reshape(-1))


def linear_backward_filter_update(
    shape: LinearShape,
    precision: str,
    dy: F32,
    x: F32,
    weight: F32,
    velocity: F32,
    copy: None,
    dbias: F32 | None,
    control: U32,
    rate: float,
    decays: bool,
    workspace: Any,
    stream: int,
) -> None:
    fp32_only(precision if copy is None else "bf16")
    columns, gradient = _columns_of(x.reshape(shape.x), shape.lanes), _columns_of(dy.reshape(shape.y), shape.lanes)
    w, v = weight.reshape(shape.weight), velocity.reshape(shape.weight)
    cuts = pieces(shape.C, 512)

    def task(index: int) -> None:
        cut = cuts[index]
        part = scratch("gradient", (cut.stop - cut.start, shape.K))
        np.matmul(columns[cut], gradient.T, out=part)
        update(w[cut], v[cut], part, control, rate, decays)

    if not control[STOPPED]:
        run(len(cuts), task)
    if dbias is not None:
        np.sum(gradient, 1, out=dbias.reshape(-1))


def linear_workspace(shape: LinearShape, precision: str) -> int:
    fp32_only(precision)
    return 0
