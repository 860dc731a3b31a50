"""Between what users see and what devices hold.

Users see NCHW images, (N, F) features, KCRS filters and (out, in) matrices; devices hold ``(N/L, C, H, W, L)``,
``(N/L, F, L)``, ``(groups, C/groups, R, S, K/groups)`` and ``(in, out)``. Filters that every pixel has of its own have
P and Q in front of their other axes on both sides, and biases are (K, P, Q) there. Users see float32; devices may hold
bfloat16, in arrays of uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices.protocol import padded
from ..kernels.precision import BF16, copy_columns

Values = np.ndarray[Any, Any]


def pack_activations(x: Values, lanes: int, N: int | None = None) -> Values:
    """(n, C, H, W) or (n, F) -> (N/L, C, H, W, L) or (N/L, F, L); images from n on are zero; N is n padded.

    Where nothing is padded it is a view: whoever copies it to the device packs on the way, and that once.
    """
    n = x.shape[0]
    total = padded(n, lanes) if N is None else N
    if total != n:
        x = np.concatenate([x, np.zeros((total - n, *x.shape[1:]), x.dtype)])
    blocks = x.reshape(total // lanes, lanes, *x.shape[1:])
    return np.moveaxis(blocks, 1, -1)


def unpack_activations(a: Values, n: int) -> Values:
    """The inverse: the first n images of a device array, images first; bfloat16 becomes float32."""
    images = np.moveaxis(a, -1, 1)
    return to_float32(np.ascontiguousarray(images.reshape(-1, *images.shape[2:])[:n]))


def places_of_channels(table: Values, channels: int) -> tuple[Values, Values]:
    """Where each channel stands in ``table``, as ``gather_channels_backward`` reads it: (starts (channels + 1,), places
    like ``table``), int32. Those of channel c are places[starts[c] : starts[c + 1]], in ascending order."""
    places = np.argsort(table, kind="stable").astype(np.int32)
    starts = np.searchsorted(table[places], np.arange(channels + 1)).astype(np.int32)
    return starts, places


def pack_weight(w: Values, groups: int) -> Values:
    """(K, C/groups, R, S) -> (groups, C/groups, R, S, K/groups)."""
    K, C, R, S = w.shape
    return np.ascontiguousarray(w.reshape(groups, K // groups, C, R, S).transpose(0, 2, 3, 4, 1))


def unpack_weight(w: Values) -> Values:
    """The inverse of ``pack_weight``."""
    groups, C, R, S, K = w.shape
    return np.ascontiguousarray(w.transpose(0, 4, 1, 2, 3).reshape(groups * K, C, R, S))


def pack_local_weight(w: Values, groups: int) -> Values:
    """(P, Q, K, C/groups, R, S) -> (P, Q, groups, C/groups, R, S, K/groups)."""
    P, Q, K, C, R, S = w.shape
    return pack_weight(w.reshape(P * Q * K, C, R, S), P * Q * groups).reshape(P, Q, groups, C, R, S, K // groups)


def unpack_local_weight(w: Values) -> Values:
    """The inverse of ``pack_local_weight``."""
    P, Q, groups, C, R, S, K = w.shape
    return unpack_weight(w.reshape(P * Q * groups, C, R, S, K)).reshape(P, Q, groups * K, C, R, S)


def to_bf16(values: Values) -> Values:
    """float32 -> bfloat16: the nearest one, of two equally near ones that with an even last bit; NaN is 0x7fff."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(BF16)
    return np.where(np.isnan(values), BF16.type(0x7FFF), rounded)


def rounded(values: Values, precision: str) -> Values:
    """float32 as a device holds activations in ``precision``."""
    return to_bf16(values) if precision == "bf16" else values


def to_float32(values: Values) -> Values:
    """bfloat16 -> float32; float32 as it is."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == BF16 else values


def weight_copy(w: Values) -> Values:
    """What products in bfloat16 read of a device's weights (..., K): rounded, rows padded with zeros."""
    padding = copy_columns(w.shape[-1]) - w.shape[-1]
    return np.pad(to_bf16(w), [(0, 0)] * (w.ndim - 1) + [(0, padding)])


def fold_images(x: Values, s: int) -> Values:
    """(n, C, H, W) -> (n, C s s, H/s, W/s): channel (c s + i) s + j holds the pixels in rows i and columns j modulo s.

    Sizes are rounded up; pixels that do not exist are zero. ``ConvShape.folded`` computes on these.
    """
    if s == 1:
        return x
    n, C, H, W = x.shape
    rows, columns = -(-H // s), -(-W // s)
    x = np.pad(x, ((0, 0), (0, 0), (0, rows * s - H), (0, columns * s - W)))
    cells = x.reshape(n, C, rows, s, columns, s).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(cells.reshape(n, C * s * s, rows, columns))


def user_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape users see of a parameter that has ``shape`` on a device."""
    if len(shape) >= 5:  # filters, those of a local layer behind P and Q
        groups, C, R, S, K = shape[-5:]
        return (*shape[:-5], groups * K, C, R, S)
    return shape if len(shape) == 3 else shape[::-1]


def to_user(parameter: Values) -> Values:
    """A weight or bias as users see it."""
    if parameter.ndim >= 5:
        return unpack_local_weight(parameter) if parameter.ndim == 7 else unpack_weight(parameter)
    return np.ascontiguousarray(parameter if parameter.ndim == 3 else parameter.T)


def to_device(parameter: Values, shape: tuple[int, ...]) -> Values:
    """The inverse of ``to_user``, for a parameter that has ``shape`` on the device."""
    if len(shape) >= 5:
        pack = pack_local_weight if len(shape) == 7 else pack_weight
        return pack(parameter, shape[-5])
    return np.ascontiguousarray(parameter if len(shape) == 3 else parameter.T)
