"""Devices in host memory: "cpu" (loops and BLAS) and "emu:i" (the CUDA kernels, run on the CPU).

The emulator's devices are hostile: fresh memory is NaN, every array lies between guard regions that are checked after
every kernel, and queued work is put off and then run in a seeded order that respects nothing but streams and events.
"""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..kernels.precision import PRECISIONS
from .blas import use_blas
from .foreign import HOST
from .protocol import Array, Device, DeviceError, Event, Fetch, Graph, OutOfMemory, Stream, handle

CACHE_LINE = 64  # bytes
GUARD_BYTES = 256
# What guards hold: a NaN as float32, so that reading it shows in the result even when it is multiplied by zero; and a
# signalling one, which every arithmetic changes, so that adding something to it shows in the guard.
GUARD_WORD = 0xFFA5A5A5


class HostEvent(Event):
    def __init__(self) -> None:
        self.done = False


class Guarded:
    """An allocation between two guards of at least ``GUARD_BYTES``, all within one NumPy array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.shape, self.dtype = shape, dtype
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.memory = np.empty((nbytes + 2 * GUARD_BYTES + 64) // 4 + 1, np.uint32).view(np.uint8)
        start = GUARD_BYTES + -(self.memory.ctypes.data + GUARD_BYTES) % 64  # arrays start at multiples of 64 bytes
        self.inner = self.memory[start : start + nbytes]
        self.inner[...] = 0xFF  # NaN as float, -1 as integer
        self.guards = self.memory[:start], self.memory[start + nbytes :]
        for guard in self.guards:
            guard[...] = self._pattern(guard)

    @staticmethod
    def _pattern(guard: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The bytes of ``GUARD_WORD`` as they lie at the address of ``guard``, which need not begin with a word."""
        words = np.full(guard.size // 4 + 2, GUARD_WORD, "<u4").view(np.uint8)
        return words[guard.ctypes.data % 4 :][: guard.size]

    def damage(self) -> str:
        """Where the guards were written to, in words; empty when nowhere."""
        front, back = (np.flatnonzero(guard != self._pattern(guard)) for guard in self.guards)
        if front.size:
            return f"up to {self.guards[0].size - int(front[0])} bytes in front of it"
        return f"up to {int(back[-1]) + 1} bytes behind its end" if back.size else ""


def aligned(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Uninitialised memory that starts at a multiple of ``CACHE_LINE``: a vector of that width then lies in one."""
    memory = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + nbytes]


class HostArray(Array):
    device: HostDevice

    def __init__(self, device: HostDevice, values: np.ndarray[Any, Any], guarded: Guarded | None = None):
        self.device, self.values, self.guarded = device, values, guarded
        self.shape, self.dtype = values.shape, values.dtype
        self.handle = values.ctypes.data

    def view(self, shape: tuple[int, ...], offset: int = 0, dtype: Any = None) -> HostArray:
        wanted = np.dtype(dtype or self.dtype)
        flat = self.values.reshape(-1)[offset:].view(wanted)
        return HostArray(self.device, flat[: int(np.prod(shape, dtype=np.int64))].reshape(shape), self.guarded)

    def download(self) -> np.ndarray[Any, Any]:
        return self.look().copy()

    def look(self) -> np.ndarray[Any, Any]:
        self.device.synchronize()
        return self.values

    def __dlpack_device__(self) -> tuple[int, int]:
        return (HOST, 0)

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """This memory, when all work queued on the device is done; bfloat16 as uint16. Of any version of DLPack a
        capsule without one will do."""
        self.check_shared()
        if stream is not None or dl_device not in (None, (HOST, 0)):
            raise BufferError(f"{self.device.name}: host memory has no streams and goes nowhere else, got {dl_device=}")
        return (self.download() if copy else self.look()).__dlpack__()


class HostFetch(Fetch):
    def __init__(self, values: np.ndarray[Any, Any], event: HostEvent):
        self.values, self.event = values, event

    def get(self) -> np.ndarray[Any, Any]:
        run_queues(until=self.event)
        return self.values


class HostGraph(Graph):
    """A list of what was queued, in the order of the calls."""

    def __init__(self, streams: Sequence[Stream]):
        super().__init__(streams)
        self.work: list[tuple[HostStream, Work]] = []

    def _replay(self) -> None:
        renewed: dict[HostEvent, HostEvent] = {}  # every launch has events of its own
        for stream, work in self.work:
            if isinstance(work, HostEvent):
                renewed[work] = HostEvent()
                stream.submit(renewed[work])
            elif isinstance(work, Wait):
                stream.submit(Wait(renewed[work.event]))
            else:
                stream.submit(work)

    def _end(self, failed: bool) -> None:
        pass  # a list needs no end


class Wait:
    def __init__(self, event: HostEvent):
        self.event = event


Work = Callable[[], None] | HostEvent | Wait


class HostStream(Stream):
    device: HostDevice

    def __init__(self, device: HostDevice):
        self.device = device
        self.queue: deque[Work] = deque()

    def submit(self, work: Work) -> None:
        """Puts work where it belongs now: into the graph that captures it, into the queue, or into action."""
        if self.graph is None:
            self.device.check_not_capturing("a stream that is not part of the capture cannot be used")
        if isinstance(self.graph, HostGraph):
            self.graph.work.append((self, work))
        elif self.device.deferred:
            self.queue.append(work)
        else:
            run(work)

    def _begin_capture(self, streams: list[Stream]) -> HostGraph:
        return HostGraph(streams)

    def launch(self, kernel: Callable[..., None], *arguments: Any) -> None:
        arrays = list(_arrays(arguments))
        handles = [handle(a) for a in arguments]

        def work() -> None:
            kernel(*handles, 0)
            for array in arrays:
                self.device.check_guards(array)

        self.submit(work)

    def copy(self, target: Array, source: Array) -> None:
        assert isinstance(target, HostArray)
        assert isinstance(source, HostArray)
        assert target.nbytes == source.nbytes
        self.submit(lambda: np.copyto(target.values.reshape(-1), source.values.reshape(-1)))

    def upload(self, target: Array, values: np.ndarray[Any, Any]) -> None:
        assert isinstance(target, HostArray)
        assert target.shape == values.shape
        assert target.dtype == values.dtype
        self.device.check_not_capturing("nothing can be uploaded")
        kept = values.copy() if self.device.deferred else values
        self.submit(lambda: np.copyto(target.values, kept))

    def fetch(self, source: Array) -> HostFetch:
        assert isinstance(source, HostArray)
        self.device.check_not_capturing("nothing can be fetched")
        values = np.empty_like(source.values)
        self.submit(lambda: np.copyto(values, source.values))
        return HostFetch(values, self.record())

    def record(self) -> HostEvent:
        event = HostEvent()
        event.graph = self.graph
        self.submit(event)
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, HostEvent)
        self.check_event(event)
        self.submit(Wait(event))

    def synchronize(self) -> None:
        self.device.synchronize()


def _arrays(arguments: tuple[Any, ...]) -> Iterator[HostArray]:
    """The arrays among them, also those in tuples."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _arrays(argument)
        elif isinstance(argument, HostArray):
            yield argument


# Whoever synchronises runs the work of all devices, those of other threads' networks included: one at a time.
_queues = threading.RLock()
# Under that lock. Not a WeakSet: one that another thread drops would leave it while this one looks through it.
_open_devices: list[weakref.ref[HostDevice]] = []
_order = random.Random(0)


def seed_order(seed: int) -> None:
    """Chooses the order in which put-off work of independent streams runs."""
    _order.seed(seed)


def run(work: Work) -> None:
    """Does what comes next in a queue; a wait is over when it comes here."""
    if isinstance(work, HostEvent):
        work.done = True
    elif callable(work):
        work()


def run_queues(until: HostEvent | None = None) -> None:
    """Runs put-off work of all host devices, whatever is not held by an event, in a seeded order: all of it, or no more
    than it takes to reach ``until``.
    """
    with _queues:
        streams = _busy_streams()
        while streams and not (until and until.done):
            ready = _ready(streams)
            if not ready:  # another thread may have queued what they wait for since
                streams = _busy_streams()
                ready = _ready(streams)
            if not ready:
                for stream in streams:
                    stream.queue.clear()
                raise DeviceError(
                    "every stream waits for an event that nothing records: the streams wait for each other"
                )
            stream = _order.choice(ready)
            run(stream.queue.popleft())
            if not stream.queue:
                streams.remove(stream)


def _busy_streams() -> list[HostStream]:
    streams = [s for ref in _open_devices if (device := ref()) for s in device.streams if s.queue]
    return sorted(streams, key=lambda s: (s.device.name, s.device.streams.index(s)))


def _ready(streams: list[HostStream]) -> list[HostStream]:
    """Those that do not wait for an event."""
    return [s for s in streams if not (isinstance(first := s.queue[0], Wait) and not first.event.done)]


class HostDevice(Device):
    """``deferred`` puts work off until somebody synchronises; off on "cpu", on in the emulator."""

    def __init__(self, kind: str, index: int, kernels: Any):
        self.kind, self.kernels = kind, kernels
        self.name = kind if kind == "cpu" else f"{kind}:{index}"
        self.deferred = kind == "emu"
        self.precisions = ("fp32",) if kind == "cpu" else PRECISIONS
        self.streams: list[HostStream] = []
        self._allocated = 0
        with _queues:
            _open_devices[:] = [*(ref for ref in _open_devices if ref()), weakref.ref(self)]

    def lanes(self, N: int) -> int:
        if self.kind == "cpu":
            return N
        return 64 if N >= 64 else -(-N // 8) * 8

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> HostArray:
        self.check_not_capturing("nothing can be allocated")
        wanted = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
        try:
            guarded = None if self.kind == "cpu" else Guarded(shape, wanted)
            memory = aligned(nbytes) if guarded is None else guarded.inner
        except MemoryError as error:
            raise OutOfMemory(f"{self.name}: no memory for {nbytes / 1e6:.0f} MB") from error
        self._allocated += nbytes
        self.allocations += 1
        weakref.finalize((memory if guarded is None else guarded.memory).base, self._forget, nbytes)
        return HostArray(self, memory.view(wanted).reshape(shape), guarded)

    def borrow(self, values: np.ndarray[Any, Any]) -> HostArray | None:
        """On "cpu" alone, which needs no guards and computes at once."""
        usable = self.kind == "cpu" and values.flags.c_contiguous and values.flags.aligned
        return HostArray(self, values) if usable else None

    def free(self) -> None:
        return None

    def _forget(self, nbytes: int) -> None:
        self._allocated -= nbytes

    def check_guards(self, array: HostArray) -> None:
        """Raises when something was written outside the allocation that ``array`` lies in."""
        guarded = array.guarded
        if guarded is not None and (damage := guarded.damage()):
            array_text = f"an array of shape {guarded.shape}, dtype {guarded.dtype}"
            raise DeviceError(f"{self.name}: a kernel wrote outside {array_text}: {damage}")

    def stream(self) -> HostStream:
        stream = HostStream(self)
        self.streams.append(stream)
        return stream

    def synchronize(self) -> None:
        self.check_not_capturing("nobody can wait for work")
        run_queues()

    @property
    def allocated(self) -> int:
        return self._allocated

    @property
    def scratch(self) -> int:
        return int(self.kernels.scratch_bytes()) if self.kind == "cpu" else 0

    def close(self) -> None:
        self.closed = True
        with _queues:
            for stream in self.streams:
                stream.queue.clear()
            self.streams.clear()
            _open_devices[:] = [ref for ref in _open_devices if ref() not in (None, self)]


def names() -> list[str]:
    """ "cpu" and "emu", as far as they were built."""
    return [kind for kind in ("cpu", "emu") if find_spec(f"convnet.kernels._{kind}")]


@cache
def _kernels(kind: str) -> Any:
    kernels = import_module(f"convnet.kernels._{kind}")
    if kind == "cpu":
        use_blas(kernels)
    return kernels


def open_host(kind: str, index: int) -> HostDevice:
    """Opens "cpu" or "emu:index", or "glass", an emulator whose kernels tell of every load and store. Raises
    ``DeviceError`` when it is not built."""
    try:
        return HostDevice("emu" if kind == "glass" else kind, index, _kernels(kind))
    except ImportError as error:
        what = "the kernels for the CPU are" if kind == "cpu" else "the emulator is"
        raise DeviceError(f"{kind}: {what} not built ({error}); install convnet with: pip install .") from error
