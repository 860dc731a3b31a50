"""Between what users see and what devices hold.

Users see NCHW images, (N, F) features, KCRS filters and (out, in) matrices; devices hold ``(N/L, C, H, W, L)``,
``(N/L, F, L)``, ``(groups, C/groups, R, S, K/groups)`` and ``(in, out)``. All arrays keep their dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import padded

Values = np.ndarray[Any, Any]


def pack_activations(x: Values, lanes: int, N: int | None = None) -> Values:
    """(n, C, H, W) or (n, F) -> (N/L, C, H, W, L) or (N/L, F, L); images from n on are zero; N is n padded."""
    n = x.shape[0]
    total = padded(n, lanes) if N is None else N
    if total != n:
        x = np.concatenate([x, np.zeros((total - n, *x.shape[1:]), x.dtype)])
    blocks = x.reshape(total // lanes, lanes, *x.shape[1:])
    return np.ascontiguousarray(np.moveaxis(blocks, 1, -1))


def unpack_activations(a: Values, n: int) -> Values:
    """The inverse: the first n images of a device array, images first."""
    images = np.moveaxis(a, -1, 1)
    return np.ascontiguousarray(images.reshape(-1, *images.shape[2:])[:n])


def pack_weight(w: Values, groups: int) -> Values:
    """(K, C/groups, R, S) -> (groups, C/groups, R, S, K/groups)."""
    K, C, R, S = w.shape
    return np.ascontiguousarray(w.reshape(groups, K // groups, C, R, S).transpose(0, 2, 3, 4, 1))


def unpack_weight(w: Values) -> Values:
    """The inverse of ``pack_weight``."""
    groups, C, R, S, K = w.shape
    return np.ascontiguousarray(w.transpose(0, 4, 1, 2, 3).reshape(groups * K, C, R, S))


def user_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape users see of a parameter that has ``shape`` on a device."""
    if len(shape) == 5:
        groups, C, R, S, K = shape
        return (groups * K, C, R, S)
    return shape[::-1]


def to_user(parameter: Values) -> Values:
    """A weight or bias as users see it."""
    return unpack_weight(parameter) if parameter.ndim == 5 else np.ascontiguousarray(parameter.T)


def to_device(parameter: Values, shape: tuple[int, ...]) -> Values:
    """The inverse of ``to_user``, for a parameter that has ``shape`` on the device."""
    return pack_weight(parameter, shape[0]) if len(shape) == 5 else np.ascontiguousarray(parameter.T)
