"""A stand-in for pycuda and ``_gpu`` on a machine without either, so that every line of ``convnet/device.py`` runs in
tests.

Device memory is host memory, kernels are the emulator's. It is strict where a real driver is: memory is allocated,
copied and computed on only while the owning device's context is current, contexts are popped as often as pushed, and a
freed or unknown address is an error.
"""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np


class Error(Exception):
    pass


class OutOfMemory(Error):
    pass


class Machine:
    """``peers``: whether the GPUs reach each other's memory; ``capacity``: bytes per GPU."""

    def __init__(
        self, gpus: int = 2, peers: bool = True, capacity: int = 1 << 30, capability: tuple[int, int] = (9, 0)
    ):
        self.gpus, self.peers, self.capacity, self.capability = gpus, peers, capacity, capability
        self.contexts = [Context(self, i) for i in range(gpus)]
        self.stack: list[Context] = []
        self.memory: dict[int, tuple[int, Context, Any]] = {}  # address -> bytes, owner, buffer
        self.enabled: set[tuple[int, int]] = set()
        self.streams: dict[int, Context] = {}
        self.copies = {"direct": 0, "to_host": 0}

    def current(self) -> Context:
        if not self.stack:
            raise Error("invalid context: none is current")
        return self.stack[-1]

    def owner(self, address: int) -> Context:
        for start, (nbytes, context, _) in self.memory.items():
            if start <= address < start + nbytes:
                return context
        raise Error(f"invalid address {address:#x}")

    def held(self, context: Context) -> int:
        return sum(nbytes for nbytes, owner, _ in self.memory.values() if owner is context)


class Context:
    machine: Machine

    def __init__(self, machine: Machine, index: int):
        self.machine, self.index = machine, index

    def push(self) -> None:
        self.machine.stack.append(self)

    def synchronize(self) -> None:
        assert self.machine.current() is self


class Allocation:
    def __init__(self, machine: Machine, nbytes: int):
        context = machine.current()
        if machine.held(context) + nbytes > machine.capacity:
            raise OutOfMemory("out of memory")
        self.machine = machine
        self.buffer = np.full(nbytes + 256, 0xFF, np.uint8)
        self.address = self.buffer.ctypes.data + -self.buffer.ctypes.data % 256
        machine.memory[self.address] = (nbytes, context, self.buffer)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        del self.machine.memory[self.address]


def modules(machine: Machine, kernels: Any) -> dict[str, types.ModuleType]:
    """What ``import pycuda`` and ``from convnet import _gpu`` shall find, by module name."""
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
            machine.streams[self.handle] = self.context

        def synchronize(self) -> None:
            assert machine.current() is self.context

        def wait_for_event(self, event: Event) -> None:
            assert machine.current() is self.context
            assert event.recorded

    class Event:
        def __init__(self) -> None:
            self.context, self.recorded = machine.current(), False

        def record(self, stream: Stream) -> None:
            assert machine.current() is stream.context is self.context
            self.recorded = True

        def query(self) -> bool:
            return self.recorded

        def time_since(self, other: Event) -> float:
            return 1.0

    def memcpy_htod_async(target: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
        assert machine.current() is stream.context is machine.owner(target)
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh(target: np.ndarray[Any, Any], source: int) -> None:
        assert machine.current() is machine.owner(source)
        machine.copies["to_host"] += 1
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def memcpy_dtod_async(target: int, source: int, nbytes: int, stream: Stream) -> None:
        there, here = machine.owner(source), machine.current()
        assert here is stream.context is machine.owner(target)
        if there is not here and (here.index, there.index) not in machine.enabled:
            raise Error("peer access is not enabled")
        machine.copies["direct"] += 1
        ctypes.memmove(target, source, nbytes)

    class DeviceMemoryPool:
        def allocate(self, nbytes: int) -> Allocation:
            return Allocation(machine, nbytes)

        def free_held(self) -> None:
            machine.current()

    class PageLockedMemoryPool:
        def allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
            machine.current()
            return np.empty(shape, dtype)

        def free_held(self) -> None:
            machine.current()

    def on_current(kernel: Any) -> Any:
        def run(*arguments: Any) -> None:
            assert machine.streams[arguments[-1]] is machine.current(), "the stream belongs to another context"
            for address in arguments:
                if isinstance(address, int) and address > 1 << 32:
                    assert machine.owner(address) is machine.current(), "memory of another device"
            kernel(*arguments[:-1], 0)

        return run

    gpu = types.ModuleType("convnet._gpu")
    for name in dir(kernels):
        function = getattr(kernels, name)
        if name.endswith(("workspace", "variant", "variants")):
            setattr(gpu, name, function)
        elif callable(function) and not name.startswith("_"):
            setattr(gpu, name, on_current(function))
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
        "get_driver_version": lambda: 13000,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh": memcpy_dtoh,
        "memcpy_dtod_async": memcpy_dtod_async,
    }.items():
        setattr(driver, name, value)
    tools = types.ModuleType("pycuda.tools")
    tools.DeviceMemoryPool, tools.PageLockedMemoryPool = DeviceMemoryPool, PageLockedMemoryPool  # type: ignore[attr-defined]
    pycuda = types.ModuleType("pycuda")
    pycuda.driver, pycuda.tools = driver, tools  # type: ignore[attr-defined]
    return {"pycuda": pycuda, "pycuda.driver": driver, "pycuda.tools": tools, "convnet._gpu": gpu}
