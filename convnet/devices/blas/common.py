"""What the NumPy kernels share: how arrays are cut and seen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...kernels import rng
from ...kernels.control import LR, SPOILED, WEIGHT_DECAY
from ...kernels.shapes import DropoutShape
from ..parallel import scratch

F32 = np.ndarray[Any, np.dtype[np.float32]]
U8 = np.ndarray[Any, np.dtype[np.uint8]]
I32 = np.ndarray[Any, np.dtype[np.int32]]
U32 = np.ndarray[Any, np.dtype[np.uint32]]

BLOCK = 1 << 18  # elements per pass of an elementwise op; measured on the layers of the network


def fp32_only(precision: str) -> None:
    if precision != "fp32":
        raise ValueError(f'NumPy computes in "fp32" only, got precision {precision!r}; use a device "emu" or "cuda"')


def pieces(size: int, piece: int) -> list[slice]:
    return [slice(start, min(start + piece, size)) for start in range(0, size, piece)]


def inside(tap: int, stride: int, pad: int, size: int, first: int, last: int) -> tuple[int, int]:
    """The outputs in first..last whose pixel ``output * stride + tap - pad`` lies in 0..size: a range, maybe empty."""
    low = min(max(first, -((tap - pad) // stride)), last)
    return low, max(low, min(last, (size - 1 - tap + pad) // stride + 1))


def pixels_of(array: F32) -> Any:
    """(..., L) as (...): a pixel's lanes as one item without a meaning, which NumPy copies faster than L numbers."""
    return array.view(np.dtype((np.void, array.shape[-1] * array.itemsize)))[..., 0]


def zeros(count: int) -> F32:
    """Zeros to take a maximum with: NumPy is four times as fast with an array as with a number."""
    zeros = scratch("zeros", (count,))
    zeros[...] = 0
    return zeros


def dropout_keeps(shape: DropoutShape, step: int, images: range, features: range) -> Any:
    """Whether dropout keeps an element, as (features, images)."""
    threshold = math.floor(float(np.float32(shape.p)) * 2.0**32 + 0.5)
    image, feature = (np.arange(r.start, r.stop, dtype=np.uint64) for r in (images, features))
    element = image * np.uint64(shape.features_total) + np.uint64(shape.feature_offset) + feature[:, None]
    return rng.philox(element, step, shape.layer, rng.DROPOUT, shape.seed)[0] >= threshold


def copy_where_positive(gradient: F32, output: F32, target: F32) -> None:
    """target = ``gradient`` where the ``output`` of a ReLU is positive, else 0."""
    positive = scratch("chosen", gradient.shape, np.bool_)
    np.greater(output, 0, out=positive)
    np.copyto(target, keep(gradient, positive))


def keep(values: F32, chosen: np.ndarray[Any, Any]) -> F32:
    """``values`` where ``chosen`` (bool scratch, destroyed), else 0, also for infinities: by masking the bits."""
    mask = scratch("mask", values.shape, np.int32)
    signed = chosen.view(np.int8)
    np.negative(signed, out=signed)
    np.copyto(mask, signed)
    np.bitwise_and(mask, values.view(np.int32), out=mask)
    return mask.view(np.float32)


def update(weight: F32, velocity: F32, gradient: F32, control: U32, rate: float, decays: bool) -> None:
    """One step of momentum SGD, in place on weight and velocity; every operation is rounded on its own. Where a
    gradient is not finite nothing changes, and ``control`` says so."""
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(gradient.sum())  # far quicker than to ask every one of them
    if suspicious and not (finite := np.isfinite(gradient)).all():
        control[SPOILED] = 1
        kept = weight[~finite], velocity[~finite]
        update(weight, velocity, np.where(finite, gradient, np.float32(0)), control, rate, decays)
        weight[~finite], velocity[~finite] = kept
        return
    lr, momentum, decay = control[LR : WEIGHT_DECAY + 1].view(np.float32)
    step = scratch("step", weight.shape)
    np.multiply(weight, decay if decays else np.float32(0), out=step)
    np.add(step, gradient, out=step)
    np.multiply(step, lr * np.float32(rate), out=step)
    np.multiply(velocity, momentum, out=velocity)
    np.subtract(velocity, step, out=velocity)
    np.add(weight, velocity, out=weight)
