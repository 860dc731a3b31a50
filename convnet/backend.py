"""The device protocol: the one seam between the network and the machine it runs on.

Everything above this module speaks of arrays, streams, events and a table of kernels, and never asks which device it
has. A device is ``cuda:i`` (``device.py``), ``cpu`` or ``emu:i`` (``host.py``).

Order: calls on one stream run in the order they were made. Work on different streams is ordered by events alone. A
device may put off all work until ``synchronize`` or ``download``: a missing wait is an error even where nothing shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from .precision import PRECISIONS, activation_dtype


class DeviceError(RuntimeError):
    """No such device, or it failed or ran out of memory; the text says what to do. Exit code 6 of the commands."""


class Event:
    """A mark in a stream, for other streams to wait for."""


class Stream(ABC):
    """A queue of work on one device."""

    device: Device

    @abstractmethod
    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Calls a function of the kernel table; ``Array`` arguments, also those in tuples, are passed as their handles,
        the stream is added last.
        """

    @abstractmethod
    def copy(self, target: Array, source: Array) -> None:
        """Copies ``source`` (on any device of the same kind) into ``target``, which must have as many bytes."""

    @abstractmethod
    def upload(self, target: Array, values: np.ndarray[Any, Any]) -> None:
        """Copies from host memory. ``values`` may be reused as soon as the call returns."""

    @abstractmethod
    def record(self) -> Event:
        """Marks the work queued so far."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Later work on this stream starts only when the work before ``event`` is done."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns when all work queued on this stream is done."""


class Array(ABC):
    """A contiguous piece of device memory with a shape and a dtype."""

    device: Device
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    handle: Any  # what kernels take: an address, or the NumPy array itself on "cpu"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @abstractmethod
    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: Any = None) -> Array:
        """Part of this memory from element ``offset`` (counted in this array's dtype) on, seen with another shape (and
        dtype).
        """

    @abstractmethod
    def download(self) -> np.ndarray[Any, Any]:
        """A copy in host memory, taken when all work queued on the device is done."""


def handle(argument: Any) -> Any:
    """What a kernel gets for an argument of ``launch``."""
    if isinstance(argument, tuple):
        return tuple(map(handle, argument))
    return argument.handle if isinstance(argument, Array) else argument


class Device(ABC):
    """One place with memory and a kernel table."""

    name: str
    kernels: Any  # see _kernels.pyi
    precisions: tuple[str, ...] = PRECISIONS  # that its kernels compute in

    def check_precision(self, precision: str) -> None:
        """Raises ``ValueError`` for a precision that does not exist, or not on this device."""
        activation_dtype(precision)
        if precision not in self.precisions:
            raise ValueError(
                f'{self.name} computes in {", ".join(self.precisions)} only, got precision "{precision}"; '
                f'use device "emu" or "cuda"'
            )

    @abstractmethod
    def lanes(self, N: int) -> int:
        """How many images lie side by side in this device's layout, for a batch of N."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Uninitialised memory. Raises ``DeviceError`` with wanted and free bytes when there is none."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that nobody holds; None where memory is not the device's own and cannot be counted."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new stream."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns when all work queued on the device is done; raises what went wrong in it."""

    @property
    @abstractmethod
    def allocated(self) -> int:
        """Bytes held by arrays now."""

    @abstractmethod
    def close(self) -> None:
        """Gives the memory back; arrays of the device must not be used any more. May be called twice."""


def padded(N: int, lanes: int) -> int:
    """N rounded up to whole blocks of lanes."""
    return -(-N // lanes) * lanes


def device_names() -> list[str]:
    """Devices usable here, best last: always "cpu", "emu" where it is built, "cuda:i" for every usable GPU."""
    from . import device, host

    return [*host.names(), *device.names()]


def open_device(name: str) -> Device:
    """Opens "cpu", "emu", "emu:i" or "cuda:i". Raises ``DeviceError`` when it is not there, with the reason."""
    from . import device, host

    kind, _, index = name.partition(":")
    if kind not in ("cpu", "emu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ValueError(f'device must be "cpu", "emu[:i]" or "cuda[:i]", got "{name}"')
    return device.open_cuda(int(index or 0)) if kind == "cuda" else host.open_host(kind, int(index or 0))


def open_devices(names: str, most: int = 2) -> list[Device]:
    """Opens a comma-separated list of devices, or "auto": the first ``most`` GPUs if there are any, else "cpu"."""
    if names == "auto":
        from . import device

        chosen = device.names()[:most] or ["cpu"]
    else:
        chosen = [name.strip() for name in names.split(",")]
    canonical = [f"{name}:0" if name in ("emu", "cuda") else name for name in chosen]
    if len(set(canonical)) != len(canonical):
        raise ValueError(f'devices must differ from each other, got "{names}"')
    if len({name.partition(":")[0] for name in canonical}) > 1:
        raise ValueError(f'devices must be of one kind, got "{names}"')
    return [open_device(name) for name in canonical]
