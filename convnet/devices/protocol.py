"""The device protocol: the one seam between the network and the machine it runs on.

Everything above this module speaks of arrays, streams, events and a table of kernels, and never asks which device it
has. A device is ``cuda:i`` (``cuda.py``), ``cpu`` or ``emu:i`` (``host.py``).

Order: calls on one stream run in the order they were made. Work on different streams is ordered by events alone. A
device may put off all work until ``synchronize`` or ``download``: a missing wait is an error even where nothing shows.

Work that is the same in every step is captured once and launched as a whole (``Stream.capture``, ``Graph``): one graph
over all streams of all devices, with the events between them as its inner order. The alternative, a graph for each
device, does not work with ordinary events: two devices that exchange in both directions each wait for a mark that the
other sets later in the same step, and a wait means the latest mark set when the wait is queued. It would take a graph
for each device and each stretch between two exchanges, and as many launches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..kernels.precision import PRECISIONS, activation_dtype
from .foreign import CudaMemory


class DeviceError(RuntimeError):
    """No such device, or it failed or ran out of memory; the text says what to do. Exit code 6 of the commands."""


class OutOfMemory(DeviceError):
    """``available``: bytes that this process could have had there, what it holds included; None where nobody knows."""

    def __init__(self, shortage: str, available: int | None = None, remedy: str = "use a smaller batch"):
        super().__init__(f"{shortage}; {remedy}")
        self.shortage, self.available = shortage, available


class DeviceLost(DeviceError):
    """A device that was there is gone, or its memory is damaged."""


class KernelFault(RuntimeError):
    """A kernel did what no kernel may do, such as reading memory that is not there: a defect of ours. Exit code 1."""


class Event:
    """A mark in a stream, for other streams to wait for.

    One that is recorded while work is captured means a place in that graph, and only captured work can wait for it.
    """

    graph: Graph | None = None


class Fetch(ABC):
    """A copy on its way to host memory."""

    @abstractmethod
    def get(self) -> np.ndarray[Any, Any]:
        """The values, when they are there; work queued behind the copy need not be done."""


class Graph(ABC):
    """Work on ``streams``, captured to be launched again and again with the same arrays and numbers."""

    def __init__(self, streams: Sequence[Stream]):
        self.streams = list(streams)
        self.complete = False

    def launch(self) -> None:
        """Queues all of the captured work once more. It starts when the work queued so far on all of ``streams`` is
        done, and later work on any of them starts when all of it is done.

        Raises ``RuntimeError`` when the capture has not ended, or failed.
        """
        if not self.complete:
            raise RuntimeError("the graph cannot be launched: its capture has not ended, or failed")
        origin, *others = self.streams
        origin.device.check_not_capturing("a graph cannot be launched")
        for other in others:
            origin.wait(other.record())
        self._replay()
        if others:
            done = origin.record()
            for other in others:
                other.wait(done)

    @abstractmethod
    def _replay(self) -> None:
        """Queues the work behind what is queued on the first of ``streams``, and in front of what comes later there."""

    @abstractmethod
    def _end(self, failed: bool) -> None:
        """Leaves the state of capturing. ``failed``: nothing is wanted of what was captured."""


class Stream(ABC):
    """A queue of work on one device."""

    device: Device
    graph: Graph | None = None  # what captures the work of this stream now

    @contextmanager
    def capture(self, others: Sequence[Stream] = ()) -> Iterator[Graph]:
        """What is queued on this stream and on ``others``, of any device of its kind, becomes a graph and is not run::

            with stream.capture([copies]) as graph:
                stream.launch(...)
            graph.launch()

        Nothing but launches, copies between arrays, events and waits can be captured. Uploads, downloads, allocations
        and synchronising raise ``RuntimeError`` until the capture ends, as do other streams of these devices and waits
        for events from outside. The graph keeps its arrays alive. What a device does once, at the first call of a
        kernel, does not belong into a capture: queue the same work in the ordinary way before.
        """
        streams = [self, *others]
        for stream in streams:
            stream.device.check_not_capturing("a second capture cannot begin")
        graph = self._begin_capture(streams)
        for stream in streams:
            stream.graph = stream.device.graph = graph
        failed = True
        try:
            # the others join the capture, and are part of what its end waits for
            start = self.record()
            for other in others:
                other.wait(start)
            yield graph
            for other in others:
                self.wait(other.record())
            failed = False
        finally:
            for stream in streams:
                stream.graph = stream.device.graph = None
            graph._end(failed)
        graph.complete = True

    @abstractmethod
    def _begin_capture(self, streams: list[Stream]) -> Graph:
        """A graph that takes up what is queued from now on; ``streams`` begins with this one."""

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
    def fetch(self, source: Array) -> Fetch:
        """Starts a copy to host memory behind the work queued so far, and returns at once."""

    def adopt(self, memory: CudaMemory) -> Array:
        """Memory of another library on this device as an array of one axis: all values from the nearest multiple of 16
        bytes in front of the first one to the last one. Later work on this stream starts when what fills it is done.

        The array keeps the memory's owner alive; whoever queues work that reads it has to see that nobody overwrites
        it before that is done. Raises ``ValueError`` where it lies elsewhere.
        """
        raise ValueError(f"{self.device.name} cannot read memory of a GPU; give host memory")

    @abstractmethod
    def record(self) -> Event:
        """Marks the work queued so far."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Later work on this stream starts only when the work before ``event`` is done."""

    @abstractmethod
    def synchronize(self) -> None:
        """Returns when all work queued on this stream is done."""

    def check_event(self, event: Event) -> None:
        """Raises ``RuntimeError`` where this stream cannot wait for ``event`` because one of them is captured."""
        if event.graph is not self.graph:
            raise RuntimeError(
                f"{self.device.name}: captured work waits for events of the same capture alone: what was queued before "
                "is done before a launch, and what comes behind a launch waits for all of it"
            )


class Array(ABC):
    """A contiguous piece of device memory with a shape and a dtype."""

    device: Device
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    handle: Any  # what kernels take: an address, or the NumPy array itself on "cpu"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

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

    def look(self) -> np.ndarray[Any, Any]:
        """As ``download``, but where the device's memory is the host's, this memory itself."""
        return self.download()

    def check_shared(self) -> None:
        """Raises ``RuntimeError`` where this cannot be shown to other libraries any more."""
        if self.device.closed:
            raise RuntimeError(f"{self.device.name} is closed: its arrays cannot be shared with other libraries")


def handle(argument: Any) -> Any:
    """What a kernel gets for an argument of ``launch``."""
    if isinstance(argument, tuple):
        return tuple(map(handle, argument))
    return argument.handle if isinstance(argument, Array) else argument


class Device(ABC):
    """One place with memory and a kernel table."""

    name: str
    kernels: Any  # see kernels/_kernels.pyi
    precisions: tuple[str, ...] = PRECISIONS  # that its kernels compute in
    graph: Graph | None = None  # what captures work of this device now
    closed = False
    allocations = 0  # pieces of device memory, and of host memory for copies, that were ever allocated

    def check_precision(self, precision: str) -> None:
        """Raises ``ValueError`` for a precision that does not exist, or not on this device."""
        activation_dtype(precision)
        if precision not in self.precisions:
            raise ValueError(
                f'{self.name} computes in {", ".join(self.precisions)} only, got precision "{precision}"; '
                f'use device "emu" or "cuda"'
            )

    def check_not_capturing(self, what: str) -> None:
        """Raises ``RuntimeError`` while work of this device is captured; ``what`` says what cannot be done."""
        if self.graph is not None:
            raise RuntimeError(f"{self.name}: {what} while work is captured; do it before or after")

    @abstractmethod
    def lanes(self, N: int) -> int:
        """How many images lie side by side in this device's layout, for a batch of N."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Uninitialised memory. Raises ``DeviceError`` with wanted and free bytes when there is none."""

    def borrow(self, values: np.ndarray[Any, Any]) -> Array | None:
        """An array to be read, in the memory of ``values``, where kernels can read that; None elsewhere."""
        return None

    def holds(self, memory: CudaMemory) -> bool:
        """Whether memory of another library lies on this device."""
        return False

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

    @property
    def scratch(self) -> int:
        """Bytes that kernels hold beside arrays, for all networks together."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Gives the memory back; arrays of the device must not be used any more. May be called twice."""


def padded(N: int, lanes: int) -> int:
    """N rounded up to whole blocks of lanes."""
    return -(-N // lanes) * lanes
