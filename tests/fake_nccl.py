"""A stand-in for NCCL beside ``fake_cuda``: what it queues is a node of the stream's work, captured or not, and moves
bytes by MPI when that comes to run.

It is strict where NCCL is: memory must lie on the communicator's GPU, whose context must be current; what is sent must
be received with as many bytes; sends and receives of several ranks must be in a group, or they wait for each other.
"""

from __future__ import annotations

import ctypes
import types
from contextlib import contextmanager
from typing import Any

import numpy as np
from mpi4py import MPI


def module(machine: Any) -> dict[str, types.ModuleType]:
    """What ``import nccl.core`` shall find, by module name."""
    core = types.ModuleType("nccl.core")
    world = MPI.COMM_WORLD.Dup()
    batch: list[Any] | None = None
    core.calls = []  # type: ignore[attr-defined]

    def taken(buffer: Any) -> np.ndarray[Any, Any]:
        interface = buffer.__cuda_array_interface__
        assert interface["version"] == 3
        assert interface["strides"] is None
        address, (count,) = interface["data"][0], interface["shape"]
        dtype = np.dtype(interface["typestr"])
        assert machine.owner(address) is machine.current(), "memory of another device"
        assert machine.owner(address + count * dtype.itemsize - 1) is machine.current(), "beyond its end"
        return np.frombuffer((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address), dtype)

    class UniqueId:
        def __init__(self, value: bytes):
            self.value = value

        def __bytes__(self) -> bytes:
            return self.value

        from_bytes = classmethod(lambda cls, value: cls(bytes(value)))

    class Communicator:
        @classmethod
        def init(cls, nranks: int, rank: int, unique_id: UniqueId) -> Communicator:
            made = cls()
            assert (nranks, rank) == (world.size, world.rank)
            assert len({bytes(token) for token in world.allgather(bytes(unique_id))}) == 1, "ids of several"
            machine.not_while_capturing()
            made.context = machine.current()  # type: ignore[attr-defined]
            core.calls.append("init")  # type: ignore[attr-defined]
            return made

        def _queue(self, stream: int, work: Any) -> None:
            on = machine.streams[stream]
            assert on.context is self.context is machine.current()  # type: ignore[attr-defined]
            on.submit("nccl", work)

        def send(self, buffer: Any, peer: int, *, stream: int) -> None:
            assert batch is not None, "a send by itself waits for the other's receive"
            batch.append((self, stream, taken(buffer), peer, world.Isend))

        def recv(self, buffer: Any, peer: int, *, stream: int) -> None:
            assert batch is not None, "a receive by itself waits for the other's send"
            batch.append((self, stream, taken(buffer), peer, world.Irecv))

        def allreduce(self, source: Any, target: Any, op: str, *, stream: int) -> None:
            assert op == "max"
            here, there = taken(source), taken(target)
            core.calls.append("allreduce")  # type: ignore[attr-defined]

            def work() -> None:
                result = np.empty_like(here)
                world.Allreduce(here.copy(), result, MPI.MAX)
                there[:] = result

            self._queue(stream, work)

    @contextmanager
    def group() -> Any:
        nonlocal batch
        assert batch is None
        batch = []
        yield
        queued, batch = batch, None
        ((link, stream),) = {(link, stream) for link, stream, *_ in queued}
        core.calls.append("group")  # type: ignore[attr-defined]

        def work() -> None:
            requests = [start([values, MPI.BYTE], peer) for _, _, values, peer, start in queued]
            MPI.Request.Waitall(requests)

        link._queue(stream, work)

    core.get_unique_id = lambda: UniqueId(np.random.default_rng().bytes(128))  # type: ignore[attr-defined]
    core.UniqueId, core.Communicator, core.group, core.MAX = UniqueId, Communicator, group, "max"  # type: ignore[attr-defined]
    package = types.ModuleType("nccl")
    package.core = core  # type: ignore[attr-defined]
    return {"nccl": package, "nccl.core": core}
