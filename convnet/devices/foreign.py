"""Arrays of other libraries: where their memory lies, by what they say of it, whichever library it is.

Host memory becomes a NumPy array, by ``__array__`` or ``__dlpack__``; memory of a GPU a ``CudaMemory``, by version 3 of
``__cuda_array_interface__``, which PyTorch, CuPy, pycuda and Numba have. Nothing is copied but numbers whose bytes lie
the other way round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ALIGNMENT = 16  # bytes, of what kernels of GPUs are given
HOST = 1  # DLPack's name of host memory
LEGACY_STREAM = 1  # CUDA's number of the stream that waits for all others, and they for it
UNKNOWN_STREAM = -1  # whoever made the array does not tell: all work of its GPU is waited for


@dataclass(frozen=True)
class CudaMemory:
    """An array in memory of a GPU, kept alive by ``owner``. ``steps`` count values, not bytes; what was queued on
    ``stream`` (None: nothing) may still write here."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    steps: tuple[int, ...]
    stream: int | None
    owner: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def flat(self) -> CudaMemory:
        """The same as one row, where there are no gaps."""
        return replace(self, shape=(1, self.size), steps=(self.size, 1)) if self.contiguous else self

    def joined(self, axes: int) -> CudaMemory:
        """The same with its first ``axes`` axes as one. Raises ``ValueError`` where there are gaps between them."""
        size, step = math.prod(self.shape[:axes]), self.steps[axes - 1]
        outer = zip(self.shape[:axes], self.steps[:axes], row_major(self.shape[:axes]), strict=True)
        if any(many > 1 and found != step * wanted for many, found, wanted in outer):
            raise ValueError(f"an array of shape {self.shape} in steps of {self.steps} has gaps; make it contiguous")
        return replace(self, shape=(size, *self.shape[axes:]), steps=(step, *self.steps[axes:]))

    @property
    def contiguous(self) -> bool:
        """Whether there are no gaps, and the last axis is closest."""
        return all(
            size == 1 or step == wanted
            for size, step, wanted in zip(self.shape, self.steps, row_major(self.shape), strict=True)
        )


Given = np.ndarray[Any, Any] | CudaMemory
KINDS = (np.ndarray, CudaMemory)  # the same for isinstance


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps of an array without gaps, the last axis closest."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def seen(values: Any) -> Any:
    """``values`` as a NumPy array or ``CudaMemory``; as they are where they are no array.

    Raises ``ValueError`` where an array cannot be read; the text follows the name of an argument.
    """
    if type(values) is not np.ndarray:
        try:
            values = _opened(values)
        except Exception as error:  # anybody's code has run
            raise ValueError(f"is a {type(values).__name__} that cannot be read: {error}") from error
    if isinstance(values, np.ndarray) and not values.dtype.isnative:
        return values.astype(values.dtype.newbyteorder("="))
    return values


def _opened(values: Any) -> Any:
    if getattr(values, "requires_grad", False):
        raise ValueError("it requires a gradient, which cannot be passed on from here; give its .detach()")
    interface = getattr(values, "__cuda_array_interface__", None)
    if interface is not None:  # also where there is __array__, which would be a copy through the host
        return _cuda_memory(interface, values)
    if hasattr(values, "__array__"):
        return np.asarray(values)
    if hasattr(values, "__dlpack__"):
        kind, index = values.__dlpack_device__()
        if kind != HOST:
            raise ValueError(f"it lies on DLPack's device ({kind}, {index}), and has no __cuda_array_interface__")
        return np.from_dlpack(values)
    return values


def _cuda_memory(interface: dict[str, Any], owner: Any) -> Given:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if interface.get("mask") is not None:
        raise ValueError("it has a mask")
    if strides is not None and any(stride % dtype.itemsize for stride in strides):
        raise ValueError(f"its strides {tuple(strides)} are no multiples of {dtype.itemsize} bytes")
    stream = interface.get("stream") if interface["version"] >= 3 else UNKNOWN_STREAM
    if stream == 0:
        raise ValueError("its stream is 0, which the interface leaves to 1 and 2")
    if 0 in shape:  # there is no memory
        return np.empty(shape, dtype)
    steps = row_major(shape) if strides is None else tuple(stride // dtype.itemsize for stride in strides)
    return CudaMemory(shape, dtype, int(interface["data"][0]), steps, stream, owner)
