"""A stand-in for pycuda and ``_gpu`` on a machine without either, so that every line of ``convnet/devices/cuda.py``
runs in tests.

Device memory is host memory, kernels are the emulator's. It is strict where a real driver is: memory is allocated,
copied and computed on only while the owning device's context is current, contexts are popped as often as pushed, a
freed or unknown address is an error, and so is whatever CUDA forbids while a stream is captured. What was captured runs
in a random order that respects the captured order alone.

Everything is computed at once, but there are clocks: the host's, which every call that queues work moves on, and one of
every stream, up to which its work takes. Work begins when the host has queued it and what it waits for is done.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

import convnet.kernels
from convnet.devices import cuda as device


class Error(Exception):
    pass


class OutOfMemory(Error):
    pass


UNSUPPORTED = "operation not permitted when stream is capturing"
INVALIDATED = "operation failed due to a previous error during capture"
MERGE = "operation would result in a merge of separate capture sequences"
UNJOINED = "capturing stream has unjoined work"
UNMATCHED = "capture was not initiated in this stream"
ISOLATION = "dependency created on uncaptured work in another stream"
CAPTURED_EVENT = "operation not permitted on an event last recorded in a capturing stream"


class Machine:
    """``peers``: whether the GPUs reach each other's memory; ``capacity``: bytes per GPU; ``version`` of the driver;
    ``busy``: GPUs that another process wants for itself.

    ``seconds`` is how long a kernel takes, by its name; copies are "copy", "upload" and "fetch". ``queueing``:
    seconds of the host's for every one. ``launched``: the names of all so far.
    """

    def __init__(
        self,
        gpus: int = 2,
        peers: bool = True,
        capacity: int = 1 << 30,
        capability: tuple[int, int] = (9, 0),
        version: int = 13000,
        busy: tuple[int, ...] = (),
    ):
        self.version, self.busy = version, busy
        self.gpus, self.peers, self.capacity, self.capability = gpus, peers, capacity, capability
        self.contexts = [Context(self, i) for i in range(gpus)]
        self.stack: list[Context] = []
        self.memory: dict[int, tuple[int, Context, Any]] = {}  # address -> bytes, owner, buffer
        self.enabled: set[tuple[int, int]] = set()
        self.streams: dict[int, Any] = {}
        self.pinned: list[np.ndarray[Any, Any]] = []
        self.copies = {"direct": 0, "to_host": 0}
        self.pushes = 0
        self.order = random.Random(0)
        self.failing: tuple[int, int, str] | None = None
        self.dead: dict[int, str] = {}  # GPU -> what every call says of it
        self.seconds: Callable[[str], float] = lambda name: 0.0
        self.queueing = 0.0
        self.now = 0.0  # on the host's clock
        self.launched: list[str] = []
        self.library = Library(self)
        self.defaults: dict[tuple[int, int], Foreign] = {}  # CUDA's own streams, by GPU and number
        self.primary: dict[int, int] = {}  # addresses of memory made in another context than the primary one

    def fail(self, index: int, kernels: int, text: str) -> None:
        """The kernel behind the next ``kernels`` on GPU ``index`` breaks off: every later call there says ``text``."""
        self.failing = index, kernels, text

    def ran(self, context: Context) -> None:
        """A kernel came to its end, or not."""
        if self.failing and self.failing[0] == context.index:
            index, left, text = self.failing
            self.failing = (index, left - 1, text) if left else None
            if not left:
                self.dead[index] = text
                for _, (nbytes, owner, buffer) in self.pieces():
                    if owner is context and nbytes:
                        buffer[:] = 0x3C  # finite, and nothing that anybody computed

    def queued(self, name: str) -> float:
        """The host has queued a kernel or copy; returns how long that takes."""
        self.launched.append(name)
        self.now += self.queueing
        return self.seconds(name)

    def wait_until(self, *times: float) -> None:
        """The host waits."""
        self.now = max(self.now, *times)

    def alive(self, context: Context) -> None:
        if context.index in self.dead:
            raise Error(self.dead[context.index])

    def current(self) -> Context:
        if not self.stack:
            raise Error("invalid context: none is current")
        self.alive(self.stack[-1])
        return self.stack[-1]

    def pieces(self) -> list[tuple[int, tuple[int, Context, Any]]]:
        """All of memory. No garbage is collected meanwhile: that may free some."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return list(self.memory.items())
        finally:
            if collecting:
                gc.enable()

    def owner(self, address: int) -> Context:
        for start, (nbytes, context, _) in self.pieces():
            if start <= address < start + nbytes:
                return context
        raise Error(f"invalid address {address:#x}")

    def capturing(self, context: Context) -> list[Capture]:
        return [s.capture for s in self.streams.values() if s.context is context and s.capture]

    def not_while_capturing(self) -> None:
        """For calls that CUDA forbids while anything of the current context is captured: they spoil the capture."""
        for capture in self.capturing(self.current()):
            capture.spoilt = True
            raise Error(UNSUPPORTED)

    def held(self, context: Context) -> int:
        return sum(nbytes for _, (nbytes, owner, _) in self.pieces() if owner is context)


class Context:
    machine: Machine

    def __init__(self, machine: Machine, index: int):
        self.machine, self.index = machine, index

    def push(self) -> None:
        self.machine.pushes += 1
        self.machine.stack.append(self)

    def synchronize(self) -> None:
        assert self.machine.current() is self
        self.machine.not_while_capturing()
        self.machine.wait_until(0.0, *(s.time for s in self.machine.streams.values() if s.context is self))


class Capture:
    """Nodes, each with the nodes that it follows and its seconds, and for every stream the nodes that its next one will
    follow."""

    def __init__(self, origin: Any):
        self.nodes: list[tuple[Callable[[], None], frozenset[int], float]] = []
        self.tails: dict[Any, frozenset[int]] = {origin: frozenset()}
        self.origin, self.spoilt = origin, False

    def add(self, stream: Any, work: Callable[[], None], seconds: float) -> None:
        self.nodes.append((work, self.tails[stream], seconds))
        self.tails[stream] = frozenset({len(self.nodes) - 1})

    def before(self, tail: frozenset[int]) -> set[int]:
        """All nodes that are done when those of ``tail`` are."""
        found, todo = set(tail), list(tail)
        while todo:
            new = self.nodes[todo.pop()][1] - found
            found |= new
            todo += new
        return found


class Library:
    """What ``ctypes.CDLL("libcuda.so.1")`` gives, as far as it is asked. Its numbers for errors: 1 is a wrong value."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.events: dict[int, Any] = {}

    def stream(self, number: Any) -> Any:
        """By its address; CUDA's default stream follows all of its context, and they follow it."""
        context = self.machine.current()
        if number.value in (1, 2):
            return self.machine.defaults.setdefault((context.index, number.value), Foreign(self.machine, context))
        stream = self.machine.streams[number.value]
        assert stream.context is context, "the stream belongs to another context"
        return stream

    def cuEventCreate(self, event: Any, flags: int) -> int:
        self.machine.current()
        event._obj.value = 1 + max(self.events, default=0)
        self.events[event._obj.value] = None
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        on = self.stream(stream)
        self.events[event.value] = max(on.time, self.machine.now)
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> int:
        on = self.stream(stream)
        on.time = max(on.time, self.events[event.value])
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        del self.events[event.value]
        return 0

    def cuPointerGetAttribute(self, found: Any, what: int, address: Any) -> int:
        try:
            owner = self.machine.owner(address.value)
        except Error:
            return 1
        found._obj.value = owner.index if what == 9 else self.machine.primary.get(address.value, 7000 + owner.index)
        return 0

    def cuCtxGetCurrent(self, found: Any) -> int:
        found._obj.value = 7000 + self.machine.current().index
        return 0


class Foreign:
    """A stream that another library made, or CUDA's default one."""

    def __init__(self, machine: Machine, context: Context):
        self.machine, self.context, self.capture, self.time = machine, context, None, 0.0
        self.handle = 1000 + len(machine.streams)
        machine.streams[self.handle] = self


class Graph:
    """What ``_gpu.end_capture`` gives."""

    def __init__(self, machine: Machine, capture: Capture):
        self.machine, self.nodes, self.launches = machine, capture.nodes, 0

    def launch(self, stream: int) -> None:
        on = self.machine.streams[stream]
        if on.context.index in self.machine.dead:
            raise RuntimeError(f"launching a graph: {self.machine.dead[on.context.index]} (CUDA error 700)")
        assert on.context is self.machine.current()
        if on.capture:
            on.capture.spoilt = True
            raise RuntimeError(f"launching a graph: {UNSUPPORTED} (CUDA error 900)")
        self.launches += 1
        start = max(on.time, self.machine.now)
        done: dict[int, float] = {}  # node -> when
        while len(done) < len(self.nodes):
            ready = [i for i, (_, follows, _) in enumerate(self.nodes) if i not in done and follows <= done.keys()]
            chosen = self.machine.order.choice(ready)
            work, follows, seconds = self.nodes[chosen]
            work()
            done[chosen] = max((done[i] for i in follows), default=start) + seconds
        on.time = max(done.values(), default=start)


class Allocation:
    def __init__(self, machine: Machine, nbytes: int):
        context = machine.current()
        machine.not_while_capturing()
        if machine.held(context) + nbytes > machine.capacity:
            raise OutOfMemory("out of memory")
        self.machine = machine
        self.buffer = np.full(nbytes + 256, 0xFF, np.uint8)
        self.address = self.buffer.ctypes.data + -self.buffer.ctypes.data % 256
        machine.memory[self.address] = (nbytes, context, self.buffer)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.machine.current()
        del self.machine.memory[self.address]


def modules(machine: Machine, kernels: Any) -> dict[str, types.ModuleType]:
    """What ``import pycuda`` and ``from convnet.kernels import _gpu`` shall find, by module name."""
    driver = types.ModuleType("pycuda.driver")

    class Device:
        def __init__(self, index: int):
            self.index = index

        @staticmethod
        def count() -> int:
            return machine.gpus

        def name(self) -> str:
            return "Fake GPU"

        def compute_capability(self) -> tuple[int, int]:
            return machine.capability

        def total_memory(self) -> int:
            return machine.capacity

        def retain_primary_context(self) -> Context:
            if self.index in machine.busy:
                raise Error("cuDevicePrimaryCtxRetain failed: CUDA-capable device(s) is/are busy or unavailable")
            return machine.contexts[self.index]

        def can_access_peer(self, other: Device) -> bool:
            return machine.peers

    class DriverContext:
        @staticmethod
        def pop() -> None:
            machine.stack.pop()

        @staticmethod
        def enable_peer_access(other: Context) -> None:
            machine.enabled.add((machine.current().index, other.index))

    class Stream:
        def __init__(self) -> None:
            self.context = machine.current()
            self.handle = 1000 + len(machine.streams)
            self.capture: Capture | None = None
            self.time = 0.0  # when all of its work is done
            machine.streams[self.handle] = self

        def submit(self, name: str, work: Callable[[], None]) -> None:
            seconds = machine.queued(name)
            if self.capture is None:
                work()
                self.time = max(self.time, machine.now) + seconds
            elif self.capture.spoilt:
                raise Error(INVALIDATED)
            else:
                self.capture.add(self, work, seconds)

        def synchronize(self) -> None:
            assert machine.current() is self.context
            if self.capture:
                self.capture.spoilt = True
                raise Error(UNSUPPORTED)
            machine.wait_until(self.time)

        def wait_for_event(self, event: Event) -> None:
            assert machine.current() is self.context
            assert event.recorded
            theirs = event.capture
            if theirs is None:
                if self.capture:
                    self.capture.spoilt = True
                    raise Error(ISOLATION)
                self.time = max(self.time, event.time)
                return
            if theirs.origin.capture is not theirs:  # that capture has ended
                raise Error(CAPTURED_EVENT)
            if self.capture not in (None, theirs):
                raise Error(MERGE)
            self.capture = theirs
            theirs.tails[self] = theirs.tails.get(self, frozenset()) | event.tail

    class Event:
        made: list[int] = []  # their flags  # noqa: RUF012

        def __init__(self, flags: int = 0) -> None:
            self.made.append(flags)
            self.context, self.recorded, self.flags = machine.current(), False, flags
            self.capture: Capture | None = None
            self.tail: frozenset[int] = frozenset()
            self.time = 0.0  # when the work in front of it is done

        def record(self, stream: Stream) -> None:
            assert machine.current() is stream.context is self.context
            self.recorded, self.capture = True, stream.capture
            self.time = max(stream.time, machine.now)
            if stream.capture:
                self.tail = stream.capture.tails[stream]

        def not_captured(self) -> None:
            if self.capture:
                self.capture.spoilt = True
                raise Error(CAPTURED_EVENT)

        def query(self) -> bool:
            machine.alive(self.context)
            self.not_captured()
            return self.recorded and self.time <= machine.now

        def synchronize(self) -> None:
            machine.alive(self.context)
            self.not_captured()
            assert self.recorded
            machine.wait_until(self.time)

        def time_since(self, other: Event) -> float:
            self.not_captured()
            assert self.flags == other.flags == 0, "an event without a time"
            if not (self.query() and other.query()):
                raise Error("device not ready")
            return 1e3 * (self.time - other.time)

    def check_pinned(host: np.ndarray[Any, Any], stream: Stream) -> None:
        """An asynchronous copy is one only with page-locked memory, and cannot be captured without it."""
        if stream.capture:
            stream.capture.spoilt = True
            raise Error(UNSUPPORTED)
        address = host.ctypes.data
        assert any(p.ctypes.data <= address < p.ctypes.data + p.nbytes for p in machine.pinned), "pageable memory"

    def memcpy_htod_async(target: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        assert machine.current() is stream.context is machine.owner(target)
        check_pinned(source, stream)
        stream.submit("upload", lambda: ctypes.memmove(target, source.ctypes.data, source.nbytes))

    def memcpy_dtoh_async(target: np.ndarray[Any, Any], source: int, stream: Stream) -> None:
        assert machine.current() is stream.context is machine.owner(source)
        check_pinned(target, stream)
        stream.submit("fetch", lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes))

    def memcpy_dtoh(target: np.ndarray[Any, Any], source: int) -> None:
        assert machine.current() is machine.owner(source)
        machine.not_while_capturing()
        machine.copies["to_host"] += 1
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def memcpy_dtod_async(target: int, source: int, nbytes: int, stream: Stream) -> None:
        there, here = machine.owner(source), machine.current()
        assert here is stream.context is machine.owner(target)
        if there is not here and (here.index, there.index) not in machine.enabled:
            raise Error("peer access is not enabled")
        machine.copies["direct"] += 1

        def work() -> None:
            assert machine.owner(source) is there
            assert machine.owner(target) is here
            ctypes.memmove(target, source, nbytes)

        stream.submit("copy", work)

    def pagelocked_empty(shape: int, dtype: Any) -> np.ndarray[Any, Any]:
        machine.current()
        machine.not_while_capturing()
        machine.pinned.append(np.empty(shape, dtype))
        return machine.pinned[-1]

    class DeviceMemoryPool:
        def allocate(self, nbytes: int) -> Allocation:
            return Allocation(machine, nbytes)

        def free_held(self) -> None:
            machine.current()

    def runtime(context: Context, what: str) -> None:
        """CUDA's runtime reports the errors of the driver in words of its own."""
        if context.index in machine.dead:
            raise RuntimeError(f"{what}: {machine.dead[context.index]} (CUDA error 700)")

    def on_current(kernel: Any) -> Any:
        @functools.wraps(kernel)
        def run(*arguments: Any) -> None:
            stream = machine.streams[arguments[-1]]
            runtime(stream.context, kernel.__name__)
            assert stream.context is machine.current(), "the stream belongs to another context"
            addresses = [a for a in arguments if isinstance(a, int) and a > 1 << 32]

            def work() -> None:
                for address in addresses:
                    assert machine.owner(address) is stream.context, "memory of another device"
                kernel(*arguments[:-1], 0)
                machine.ran(stream.context)

            for address in addresses:
                assert machine.owner(address) is stream.context, "memory of another device"
            stream.submit(kernel.__name__, work)

        return run

    def begin_capture(stream: int) -> None:
        origin = machine.streams[stream]
        assert origin.context is machine.current()
        if origin.capture:
            raise RuntimeError(f"capturing a graph: {UNSUPPORTED} (CUDA error 900)")
        origin.capture = Capture(origin)

    def end_capture(stream: int) -> Graph:
        origin = machine.streams[stream]
        capture = origin.capture
        if capture is None or capture.origin is not origin:
            raise RuntimeError(f"capturing a graph: {UNMATCHED} (CUDA error 903)")
        for member in capture.tails:
            member.capture = None
        if capture.spoilt:
            raise RuntimeError(f"capturing a graph: {INVALIDATED} (CUDA error 901)")
        if len(capture.before(capture.tails[origin])) < len(capture.nodes):
            raise RuntimeError(f"capturing a graph: {UNJOINED} (CUDA error 904)")
        return Graph(machine, capture)

    gpu = types.ModuleType("convnet.kernels._gpu")
    for name in dir(kernels):
        function = getattr(kernels, name)
        if name.endswith(("workspace", "variant", "variants", "check_only")):
            setattr(gpu, name, function)
        elif callable(function) and not name.startswith("_"):
            setattr(gpu, name, on_current(function))
    gpu.begin_capture, gpu.end_capture = begin_capture, end_capture  # type: ignore[attr-defined]
    gpu.set_programmatic_launches = lambda on: None  # type: ignore[attr-defined]
    gpu.build_info = lambda: {"architectures": "80,90a", "cuda": "13.0"}  # type: ignore[attr-defined]
    for name, value in {
        "Error": Error,
        "MemoryError": OutOfMemory,
        "init": lambda: None,
        "Device": Device,
        "Context": DriverContext,
        "Stream": Stream,
        "Event": Event,
        "mem_alloc": lambda nbytes: Allocation(machine, nbytes),
        "mem_get_info": lambda: (machine.capacity - machine.held(machine.current()), machine.capacity),
        "pagelocked_empty": pagelocked_empty,
        "event_flags": types.SimpleNamespace(DISABLE_TIMING=2),
        "get_driver_version": lambda: machine.version,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
        "memcpy_dtoh": memcpy_dtoh,
        "memcpy_dtod_async": memcpy_dtod_async,
    }.items():
        setattr(driver, name, value)
    tools = types.ModuleType("pycuda.tools")
    tools.DeviceMemoryPool = DeviceMemoryPool  # type: ignore[attr-defined]
    pycuda = types.ModuleType("pycuda")
    pycuda.driver, pycuda.tools = driver, tools  # type: ignore[attr-defined]
    return {"pycuda": pycuda, "pycuda.driver": driver, "pycuda.tools": tools, "convnet.kernels._gpu": gpu}


def install(patch: Any, machine: Machine, kernels: Any) -> Machine:
    """Makes the process see ``machine``; ``patch`` is pytest's monkeypatch."""
    for name, module in modules(machine, kernels).items():
        patch.setitem(sys.modules, name, module)
    patch.setattr(device, "_load_driver_library", lambda: machine.version)
    patch.setattr(device, "_library", lambda: machine.library)
    patch.setattr(convnet.kernels, "_gpu", sys.modules["convnet.kernels._gpu"], raising=False)
    device._driver.cache_clear()
    return machine
