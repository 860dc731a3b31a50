"""All processes of a run, of which this is one: what they tell each other, and what crosses between their devices.

Ranks count from 0. All processes make the calls of this module, in the same order: what one of them finds by itself it
must not act upon before all know, or the others wait for what never comes. One that fails says so by ``failed``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..devices.protocol import Array, DeviceLost, Stream

T = TypeVar("T")


class Lost(DeviceLost):
    """Another process does not answer any more."""


class Elsewhere(Exception):
    """Another process has failed, and tells of it; this one ends with the same exit ``code``, in silence."""

    def __init__(self, rank: int, code: int):
        super().__init__(f"rank {rank} has failed")
        self.code = code


class Group:
    """This process by itself; several are ``mpi.Processes``.

    ``sent`` counts the bytes that crossed to other processes by ``exchange`` and ``maximum``.
    """

    rank, size = 0, 1
    neighbours = 1  # processes on this machine
    sent = 0

    @property
    def place(self) -> int:
        """Which of the processes of its machine this one is, from 0."""
        return 0

    def host(self, rank: int) -> str:
        """The name of its machine."""
        return platform.node()

    def everyone(self, value: T, doing: str, patient: bool = False) -> list[T]:
        """What all processes have as ``value``, in the order of the ranks; ``doing`` says what for, should one be late.
        ``patient``: they may take as long as they like.

        Raises ``Lost`` where one does not answer, and ``Elsewhere`` where one has failed.
        """
        return [value]

    def from_first(self, find: Callable[[], T], doing: str) -> T:
        """What ``find`` returns on the process of rank 0, which alone calls it; raises there what that raises."""
        return self.everyone(find() if self.rank == 0 else None, doing, patient=True)[0]  # type: ignore[return-value]

    def exchange(self, stream: Stream, sends: Sequence[Array], receives: Sequence[Array]) -> None:
        """Queues that rank r gets ``sends[r]`` of every process, and ``receives[r]`` becomes what rank r sends to this
        one. What lies in both may be used again behind ``complete``."""
        for source, target in zip(sends, receives, strict=True):
            if source.handle != target.handle:
                stream.copy(target, source)

    def complete(self, stream: Stream) -> None:
        """Later work on ``stream`` starts when all that was exchanged on it is there."""

    def maximum(self, stream: Stream, words: Array) -> None:
        """Queues that ``words``, uint32, become the largest that any process has in their places."""

    def failed(self, code: int) -> bool:
        """This process has failed, and will end with this exit code. Whether it is the one that tells of it: where all
        fail for the same reason, the first."""
        return True

    def end(self, code: int) -> None:
        """Ends all processes with this exit code, whatever they do; returns where there are no others."""
