"""One call of an operation on arrays of the host or of others: the device, and arrays on their way to it and back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np

from ..devices.foreign import ALIGNMENT, CudaMemory, Given
from ..devices.opening import open_device
from ..devices.protocol import Array, Device, Stream, padded
from ..kernels.precision import BF16, activation_dtype, copy_columns
from . import ops
from .arguments import check_precision
from .gather import gather
from .layout import (
    pack_activations,
    pack_local_weight,
    pack_weight,
    rounded,
    to_float32,
    unpack_activations,
    weight_copy,
)

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

    def own(self, values: Given) -> Array:
        """A copy of float32 values that may be written to."""
        array = self.device.empty(values.shape, values.dtype)
        if isinstance(values, CudaMemory):
            self._gather(values, "fp32", array)
        else:
            self.stream.upload(array, values)
        return array

    def put(self, values: Given) -> Array:
        """As it is, to be read: where it lies, where that can be."""
        if isinstance(values, CudaMemory):
            if values.contiguous and values.address % ALIGNMENT == 0:
                return self.stream.adopt(values).view(values.shape)
            return self.own(values)
        return self.device.borrow(values) or self.own(values)

    def put_optional(self, values: Given | None) -> Array | None:
        return None if values is None else self.put(values)

    def put_rounded(self, values: Given) -> Array:
        """Activations or gradients of any shape."""
        if isinstance(values, CudaMemory):
            if self.precision != "bf16":
                return self.put(values)
            array = self.empty(values.shape)
            self._gather(values, self.precision, array)
            return array
        return self.put(rounded(values, self.precision))

    def put_images(self, values: Given) -> Array:
        if isinstance(values, CudaMemory):
            return self._packed(values, self.precision, self.N, self.lanes)
        return self.put_rounded(pack_activations(values, self.lanes))

    def put_weight(self, values: Given, groups: int = 1) -> Array:
        """Filters ([P, Q,] K, C/groups, R, S), or a matrix (K, C) for (C, K), and their copies in bfloat16."""
        if isinstance(values, CudaMemory):
            pixels = values.shape[:-4]  # of a local layer, whose filters are one after the other
            joined = values.joined(len(pixels) + 1)
            weight = self._packed(joined, "fp32", len(joined), values.shape[len(pixels)] // groups)
            if values.ndim == 2:
                weight = weight.view(weight.shape[1:])
            elif pixels:
                weight = weight.view((*pixels, groups, *weight.shape[1:]))
            if self.precision != "bf16":
                return weight
            copy = self.device.empty((*weight.shape[:-1], copy_columns(weight.shape[-1])), BF16)
            ops.cast_weight(self.stream, weight, copy)
            return copy
        pack = {4: pack_weight, 6: pack_local_weight}.get(values.ndim)
        packed = pack(values, groups) if pack else values.T
        return self.put(weight_copy(packed) if self.precision == "bf16" else packed)

    def _packed(self, values: CudaMemory, precision: str, N: int, lanes: int) -> Array:
        """Images, features or filters in lanes."""
        y = self.device.empty((N // lanes, *values.shape[1:], lanes), activation_dtype(precision))
        gather(self.stream, values, precision, y, N, lanes)
        return y

    def _gather(self, values: CudaMemory, precision: str, target: Array) -> None:
        """As it is, but for gaps."""
        flat = values.flat
        gather(self.stream, flat, precision, target, len(flat), 1)

    def get(self, array: Array) -> Values:
        """The device's memory itself, where it is the host's: nobody else will use it."""
        return to_float32(array.look())

    def images(self, array: Array) -> Values:
        return unpack_activations(array.look(), self.n)

    def workspace(self, nbytes: int) -> Array | None:
        return self.device.empty((nbytes,), np.uint8) if nbytes else None
