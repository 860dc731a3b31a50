"""Processes that MPI started: what they say goes by messages, and so does what lies in host memory; what lies on GPUs
goes by NCCL.

Nothing here waits inside MPI: messages are set going and asked after, so that a process that is late, or gone, can be
named while the others wait.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI

from ..devices.host import HostArray, HostStream, run_queues
from ..devices.protocol import Array, Stream
from .group import Elsewhere, Group, Lost
from .nccl import Links

T = TypeVar("T")

WORDS, ARRAYS, FAILURE = 1, 2, 3  # tags: what processes say, what their devices send, that one has failed
LATE = 5.0  # seconds after which a process that is waited for is named
GONE = 600.0  # and after which it is given up
PATIENCE = 60.0  # of those who wait for what takes its time
TOGETHER = 2.0  # in which processes fail that fail for the same reason
SAID = 0.5  # until a launcher has passed on what was said: it drops the rest when it ends processes
SPINS, NAP = 200, 1e-4  # how often one asks before it sleeps in between, and how long


class Processes(Group):
    """Those of ``world``, each with a copy of this. One message in the air between two processes overtakes no other of
    its tag, so that calls in the same order are enough to tell them apart."""

    def __init__(self, world: Any):
        self._world = world.Dup()  # apart from whatever else uses MPI here
        self._everywhere = world
        self.rank, self.size = world.rank, world.size
        self.neighbours = world.Split_type(MPI.COMM_TYPE_SHARED).size
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self._under_way: list[tuple[int, Any]] = []  # of exchanges: rank and request
        self._links = Links(self)
        self._hosts = [""] * self.size
        self._hosts = self.everyone(MPI.Get_processor_name(), "the start", patient=True)

    def host(self, rank: int) -> str:
        return self._hosts[rank]

    @property
    def place(self) -> int:
        return self._hosts[: self.rank].count(self._hosts[self.rank])

    # ---- what processes say

    def everyone(self, value: T, doing: str, patient: bool = False) -> list[T]:
        run_queues()  # others may wait for what is put off here
        message = pickle.dumps(value, protocol=5)
        sent = [self._world.Isend([message, MPI.BYTE], rank, WORDS) for rank in self.others]
        found: dict[int, T] = {self.rank: value}

        def missing() -> list[int]:
            for rank in self.others:
                if rank not in found and (words := self._message(rank, WORDS)) is not None:
                    found[rank] = pickle.loads(words)
            return [rank for rank in self.others if rank not in found]

        self._wait(missing, doing, patient)
        self._wait(lambda: [] if MPI.Request.Testall(sent) else self.others, doing)
        return [found[rank] for rank in range(self.size)]

    def _message(self, rank: int, tag: int) -> bytes | None:
        """The next message from there, if it has come."""
        status = MPI.Status()
        message = self._world.Improbe(rank, tag, status)
        if message is None:
            return None
        buffer = bytearray(status.Get_count(MPI.BYTE))
        message.Recv([buffer, MPI.BYTE])
        return bytes(buffer)

    def _wait(self, missing: Callable[[], list[int]], doing: str, patient: bool = False) -> None:
        """Until nobody is ``missing``; those who are late are named by the first of those who are not."""
        began, spins = time.monotonic(), 0
        first = tell = PATIENCE if patient else LATE
        while late := missing():
            spins += 1
            if spins > SPINS:
                time.sleep(NAP)
            if spins % 64:
                continue
            for rank in self.others:
                if (code := self._message(rank, FAILURE)) is not None:
                    raise Elsewhere(rank, int(code))
            waited = time.monotonic() - began
            if waited >= GONE and not patient:
                raise Lost(f"{self._named(late)} did not answer for {waited:.0f} seconds, at {doing}")
            if waited >= tell:
                tell *= 2
                if min(set(range(self.size)) - set(late)) == self.rank:
                    self._say(f"warning: {doing}: waiting for {self._named(late)} for {waited:.0f} seconds")
        if tell > first and self.rank == 0:
            self._say(f"warning: {doing}: all are there, after {time.monotonic() - began:.0f} seconds")

    def _named(self, ranks: Sequence[int]) -> str:
        named = [f"rank {rank} ({self.host(rank)})" for rank in ranks[:4]]
        return ", ".join(named) + (", ..." if len(ranks) > 4 else "")

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # ---- what their devices send

    def exchange(self, stream: Stream, sends: Sequence[Array], receives: Sequence[Array]) -> None:
        if not isinstance(stream, HostStream):
            self.sent += self._links.exchange(stream, sends, receives)
            return
        outgoing, incoming = [_values(array) for array in sends], [_values(array) for array in receives]

        def start() -> None:
            for rank in self.others:
                if incoming[rank].size:
                    self._under_way.append((rank, self._world.Irecv(incoming[rank], rank, ARRAYS)))
            for rank in self.others:
                if outgoing[rank].size:
                    self._under_way.append((rank, self._world.Isend(outgoing[rank], rank, ARRAYS)))
                    self.sent += outgoing[rank].nbytes
            if sends[self.rank].handle != receives[self.rank].handle:
                np.copyto(incoming[self.rank], outgoing[self.rank])
            self._arrived()  # MPI moves what is under way whenever it is asked

        stream.submit(start)

    def complete(self, stream: Stream) -> None:
        if isinstance(stream, HostStream):  # what NCCL moves is done when the stream goes on
            stream.submit(lambda: self._wait(self._arrived, "the gradients of a step"))

    def _arrived(self) -> list[int]:
        """With whom exchanges are still under way."""
        self._under_way = [(rank, request) for rank, request in self._under_way if not request.Test()]
        return sorted({rank for rank, _ in self._under_way})

    def maximum(self, stream: Stream, words: Array) -> None:
        if not isinstance(stream, HostStream):
            self.sent += self._links.maximum(stream, words)
            return
        here = _values(words)

        def compare() -> None:
            there = np.empty((self.size, here.size), here.dtype)
            requests = [(rank, self._world.Irecv(there[rank], rank, ARRAYS)) for rank in self.others]
            requests += [(rank, self._world.Isend(here, rank, ARRAYS)) for rank in self.others]
            self.sent += here.nbytes * len(self.others)
            there[self.rank] = here
            self._under_way += requests
            self._wait(self._arrived, "the end of a step")
            here[:] = there.max(axis=0)

        stream.submit(compare)

    # ---- the end

    def failed(self, code: int) -> bool:
        said = str(code).encode()
        self._failure = (
            said,
            [self._world.Isend([said, MPI.BYTE], rank, FAILURE) for rank in self.others],
        )  # kept for MPI
        until = time.monotonic() + TOGETHER
        silent = set(range(self.rank))  # those who would tell before this one
        while silent and time.monotonic() < until:
            for rank in list(silent):
                if self._message(rank, FAILURE) is not None:
                    return False
            time.sleep(NAP)
        return True

    def end(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        time.sleep(SAID)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI would say once more that something ends
        self._everywhere.Abort(code)
        os._exit(code)  # MPICH's comes back where the launcher takes its time


def _values(array: Array) -> np.ndarray[Any, Any]:
    assert isinstance(array, HostArray)
    return array.values.reshape(-1)
