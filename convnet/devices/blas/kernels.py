"""The kernel table of the "cpu" device: every op on NumPy arrays, with BLAS for the matrix products.

The functions are those that ``kernels/_kernels.pyi`` describes; the header of the same name under ``src/kernels`` says
what each computes. Arrays are contiguous, outputs are written in place, ``stream`` and ``workspace`` are there for the
other devices' sake. Results depend on shapes and values alone: how the work is cut never depends on the number of
threads.

Convolutions and fully-connected layers are in ``conv.py``, pooling and LRN in ``maps.py``, the rest is here.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.control import STEP, STOPPED
from ...kernels.shapes import ConvShape, DropoutShape, IngestShape, LinearShape, SoftmaxShape
from ..parallel import run, scratch
from . import common as blas_common
from .common import F32, I32, U8, U32, copy_where_positive, dropout_keeps, fp32_only, pieces, update, zeros
from .conv import (
    conv_backward_data,
    conv_backward_filter,
    conv_backward_filter_workspace,
    conv_forward,
    linear_backward_data,
    linear_backward_filter,
    linear_backward_filter_update,
    linear_forward,
    linear_workspace,
)
from .maps import lrn_backward, lrn_forward, lrn_pool_backward, lrn_pool_forward, max_pool_backward, max_pool_forward

__all__ = [
    "add", "build_info", "cast_weight", "conv_backward_data", "conv_backward_filter",
    "conv_backward_filter_workspace", "conv_forward", "conv_variant", "dropout_backward", "dropout_forward",
    "fold_weight", "force_variant", "ingest", "ingest_planar", "linear_backward_data", "linear_backward_filter",
    "linear_backward_filter_update", "linear_forward", "linear_variant", "linear_workspace", "lrn_backward",
    "lrn_forward", "lrn_pool_backward", "lrn_pool_forward", "max_pool_backward", "max_pool_forward", "relu_backward",
    "relu_forward", "scale", "sgd", "sgd_many", "softmax_cross_entropy", "tanh_backward", "tanh_forward",
    "unfold_gradient", "variants",
]  # fmt: skip


# --- elementwise ---------------------------------------------------------------------------------------------------


def _flat(count: int, *arrays: Any) -> list[Any]:
    return [array.reshape(-1)[:count] for array in arrays]


def relu_forward(count: int, precision: str, x: F32, y: F32, stream: int) -> None:
    fp32_only(precision)
    source, target = _flat(count, x, y)
    cuts = pieces(count, blas_common.BLOCK)

    def task(index: int) -> None:
        cut = cuts[index]
        np.maximum(source[cut], zeros(cut.stop - cut.start), out=target[cut])

    run(len(cuts), task)


def relu_backward(count: int, precision: str, dy: F32, y: F32, dx: F32, stream: int) -> None:
    fp32_only(precision)
    gradient, output, target = _flat(count, dy, y, dx)
    cuts = pieces(count, blas_common.BLOCK)

    def task(index: int) -> None:
        cut = cuts[index]
        copy_where_positive(gradient[cut], output[cut], target[cut])

    run(len(cuts), task)


def tanh_forward(count: int, precision: str, x: F32, y: F32, stream: int) -> None:
    fp32_only(precision)
    source, target = _flat(count, x, y)
    cuts = pieces(count, blas_common.BLOCK)
    run(len(cuts), lambda index: np.tanh(source[cuts[index]], out=target[cuts[index]]))


def tanh_backward(count: int, precision: str, dy: F32, y: F32, dx: F32, stream: int) -> None:
    fp32_only(precision)
    gradient, output, target = _flat(count, dy, y, dx)
    cuts = pieces(count, blas_common.BLOCK)

    def task(index: int) -> None:
        cut = cuts[index]
        slope = scratch("slope", (cut.stop - cut.start,))
        np.multiply(output[cut], output[cut], out=slope)
        np.subtract(np.float32(1), slope, out=slope)
        np.multiply(gradient[cut], slope, out=target[cut])

    run(len(cuts), task)


def add(count: int, precision: str, a: F32, b: F32, y: F32, stream: int) -> None:
    fp32_only(precision)
    first, second, target = _flat(count, a, b, y)
    cuts = pieces(count, blas_common.BLOCK)
    run(len(cuts), lambda index: np.add(first[cuts[index]], second[cuts[index]], out=target[cuts[index]]))


def scale(count: int, precision: str, x: F32, factor: float, y: F32, stream: int) -> None:
    fp32_only(precision)
    source, target = _flat(count, x, y)
    cuts = pieces(count, blas_common.BLOCK)
    run(len(cuts), lambda index: np.multiply(source[cuts[index]], np.float32(factor), out=target[cuts[index]]))


def dropout_forward(shape: DropoutShape, precision: str, x: F32, y: F32, mask: U8, control: U32, stream: int) -> None:
    fp32_only(precision)
    xs, ys, masks = (array.reshape(shape.x) for array in (x, y, mask))
    rows = max(1, blas_common.BLOCK // 8 // shape.lanes)
    cuts = pieces(shape.features, rows)

    def task(index: int) -> None:
        block, cut = index // len(cuts), cuts[index % len(cuts)]
        images = range(block * shape.lanes, (block + 1) * shape.lanes)
        masks[block, cut] = dropout_keeps(shape, control[STEP], images, range(cut.start, cut.stop))
        np.multiply(xs[block, cut], masks[block, cut], out=ys[block, cut])

    run(len(xs) * len(cuts), task)


def dropout_backward(count: int, precision: str, dy: F32, mask: U8, dx: F32, stream: int) -> None:
    fp32_only(precision)
    gradient, kept, target = _flat(count, dy, mask, dx)
    cuts = pieces(count, blas_common.BLOCK)
    run(len(cuts), lambda index: np.multiply(gradient[cuts[index]], kept[cuts[index]], out=target[cuts[index]]))


def sgd(
    count: int,
    weight: F32,
    velocity: F32,
    gradient: F32,
    copy: None,
    columns: int,
    control: U32,
    rate: float,
    decays: bool,
    stream: int,
) -> None:
    fp32_only("fp32" if copy is None else "bf16")
    if control[STOPPED]:
        return
    w, v, g = _flat(count, weight, velocity, gradient)
    cuts = pieces(count, blas_common.BLOCK)

    def task(index: int) -> None:
        cut = cuts[index]
        update(w[cut], v[cut], g[cut], control, rate, decays)

    run(len(cuts), task)


def sgd_many(updates: tuple[tuple[Any, ...], ...], control: U32, stream: int) -> None:
    for count, weight, velocity, gradient, copy, columns, rate, decays in updates:
        sgd(count, weight, velocity, gradient, copy, columns, control, rate, decays, stream)


# Weights are copied, and folded, for kernels in bfloat16 alone.


def cast_weight(count: int, columns: int, weight: F32, copy: Any, stream: int) -> None:
    fp32_only("bf16")


def fold_weight(shape: ConvShape, weight: F32, copy: Any, stream: int) -> None:
    fp32_only("bf16")


def unfold_gradient(shape: ConvShape, folded: F32, gradient: F32, stream: int) -> None:
    fp32_only("bf16")


# --- loss and input ------------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    shape: SoftmaxShape,
    precision: str,
    logits: F32,
    labels: I32,
    losses: F32,
    ranks: I32,
    probs: F32 | None,
    dlogits: F32 | None,
    control: U32,
    stream: int,
) -> None:
    fp32_only(precision)
    valid, K = shape.valid, shape.K
    rows = np.ascontiguousarray(logits.reshape(shape.x).transpose(0, 2, 1).reshape(shape.N, K)[:valid])
    label = labels.reshape(-1)[:valid]
    known = (label >= 0) & (label < K)
    image, true = np.arange(valid), np.where(known, label, 0)

    shifted = rows - rows.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(1, keepdims=True)
    own = rows[image, true][:, None]
    before = ~((rows < own) | ((rows == own) & (np.arange(K) > true[:, None])))  # NaN is neither
    before[image, true] = False
    loss = np.log(total[:, 0]) - shifted[image, true]

    losses.reshape(-1)[:] = 0
    ranks.reshape(-1)[:] = 0
    loss[~known] = np.nan
    losses.reshape(-1)[:valid] = loss
    if not np.isfinite(loss).all():
        control[STOPPED] = 1
    ranks.reshape(-1)[:valid] = np.where(known, before.sum(1), K)
    exponentials /= total
    if probs is not None:
        _scatter_rows(shape, exponentials, probs)
    if dlogits is not None:
        exponentials[image, true] -= 1
        exponentials /= valid
        exponentials[~known] = np.nan
        _scatter_rows(shape, exponentials, dlogits)


def _scatter_rows(shape: SoftmaxShape, rows: F32, target: F32) -> None:
    """(valid, K) into (N/L, K, L), zero for the images that do not exist."""
    padded = np.zeros((shape.N, shape.K), np.float32)
    padded[: shape.valid] = rows
    target.reshape(shape.x)[...] = padded.reshape(-1, shape.lanes, shape.K).transpose(0, 2, 1)


def ingest(
    shape: IngestShape, precision: str, images: U8, windows: I32, noise: F32, mean: F32, y: F32, stream: int
) -> None:
    _ingest(shape, precision, lambda n, rows, columns: images[n, rows, columns], windows, noise, mean, y)


def ingest_planar(
    shape: IngestShape,
    precision: str,
    luma: U8,
    cb: U8,
    cr: U8,
    index: I32,
    windows: I32,
    noise: F32,
    mean: F32,
    y: F32,
    stream: int,
) -> None:
    stored = index.reshape(-1)

    def colours(n: int, rows: slice, columns: slice) -> U8:
        image, halves = stored[n], np.ix_(*(np.arange(cut.start, cut.stop) // 2 for cut in (rows, columns)))
        blue, red = (plane[image][halves].astype(np.int32) - 128 for plane in (cb, cr))
        window = np.empty((*blue.shape, 3), np.int32)
        window[...] = luma[image, rows, columns, None]
        window[..., 0] += (91881 * red + 32768) >> 16
        window[..., 1] += (-22554 * blue - 46802 * red + 32768) >> 16
        window[..., 2] += (116130 * blue + 32768) >> 16
        return np.clip(window, 0, 255).astype(np.uint8)

    _ingest(shape, precision, colours, windows, noise, mean, y)


def _ingest(
    shape: IngestShape,
    precision: str,
    pixels: Callable[[int, slice, slice], Any],  # image, rows, columns -> (rows, columns, 3), whole numbers
    windows: I32,
    noise: F32,
    mean: F32,
    y: F32,
) -> None:
    fp32_only(precision)
    if shape.fold != 1:
        raise ValueError(f'ingest: cpu does not fold images, got fold={shape.fold}; use device "emu" or "cuda"')
    out = y.reshape(shape.y)
    means, factor = mean.reshape(3, shape.crop, shape.crop), np.array(shape.scale, np.float32)[:, None, None]
    cuts = pieces(shape.crop, 8)

    def task(index: int) -> None:
        block, rows = index // len(cuts), cuts[index % len(cuts)]
        first = block * shape.lanes
        part = scratch("pixels", (shape.lanes, 3, rows.stop - rows.start, shape.crop))
        for lane in range(shape.lanes):
            if first + lane >= shape.valid:
                part[lane] = 0
                continue
            top, left, flip = (int(value) for value in windows.reshape(-1, 3)[first + lane])
            window = pixels(first + lane, slice(top + rows.start, top + rows.stop), slice(left, left + shape.crop))
            mirrored = window[:, ::-1] if flip else window
            np.subtract(mirrored.transpose(2, 0, 1), means[:, rows], out=part[lane])
            np.add(part[lane], noise.reshape(-1, 3, 1, 1)[first + lane], out=part[lane])
            np.multiply(part[lane], factor, out=part[lane])
        out[block, :, rows] = part.transpose(1, 2, 3, 0)

    run(len(out) * len(cuts), task)


# --- what can be chosen ---------------------------------------------------------------------------------------------


def conv_variant(op: str, shape: ConvShape, precision: str) -> str:
    fp32_only(precision)
    return "im2col and BLAS"


def linear_variant(op: str, shape: LinearShape, precision: str) -> str:
    fp32_only(precision)
    return "BLAS"


def force_variant(op: str, name: str) -> None:
    raise ValueError("NumPy has one kernel for every op: there is nothing to choose")


def variants() -> list[dict[str, Any]]:
    return []


def build_info() -> dict[str, str]:
    """NumPy's version and the processor in place of a compiler's."""
    from ...version import __version__

    return {
        "compiler": f"NumPy {np.__version__}",
        "cuda": "",
        "architectures": platform.machine(),
        "version": __version__,
    }
