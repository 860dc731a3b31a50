"""One call of an operation on NumPy arrays: the device, and arrays on their way to it and back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from ..devices.opening import open_device
from ..devices.protocol import Array, Device, Stream, padded
from ..kernels.precision import activation_dtype
from .arguments import check_precision
from .layout import pack_activations, rounded, to_float32, unpack_activations, weight_copy

Values = np.ndarray[Any, Any]
Shape = TypeVar("Shape")


@cache
def _open(name: str) -> Stream:
    return open_device(name).stream()


class Call:
    """One call on a device, for a batch of N images: padding, lanes and precision, arrays in, arrays out."""

    def __init__(self, op: str, device: str, precision: str, N: int = 1):
        check_precision(op, precision)
        self.stream = _open(device)
        self.device: Device = self.stream.device
        check_precision(op, precision, self.device)
        self.precision = precision
        self.lanes = self.device.lanes(N)
        self.n, self.N = N, padded(N, self.lanes)

    def padded(self, shape: Shape) -> Shape:
        """The problem shape of N images as it is on the device."""
        return replace(shape, N=self.N, lanes=self.lanes)  # type: ignore[type-var]

    def empty(self, shape: tuple[int, ...]) -> Array:
        """For activations or their gradients."""
        return self.device.empty(shape, activation_dtype(self.precision))

    def put(self, values: Values) -> Array:
        """As it is."""
        array = self.device.empty(values.shape, values.dtype)
        self.stream.upload(array, values)
        return array

    def put_optional(self, values: Values | None) -> Array | None:
        return None if values is None else self.put(values)

    def put_rounded(self, values: Values) -> Array:
        """Activations or gradients of any shape."""
        return self.put(rounded(values, self.precision))

    def put_images(self, values: Values) -> Array:
        return self.put_rounded(pack_activations(values, self.lanes))

    def put_weight(self, packed: Values) -> Array:
        return self.put(weight_copy(packed) if self.precision == "bf16" else packed)

    def get(self, array: Array) -> Values:
        return to_float32(array.download())

    def images(self, array: Array) -> Values:
        return unpack_activations(array.download(), self.n)

    def workspace(self, nbytes: int) -> Array | None:
        return self.device.empty((nbytes,), np.uint8) if nbytes else None
