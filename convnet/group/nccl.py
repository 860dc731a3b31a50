"""What crosses between GPUs of several processes, by NCCL: on the stream it is queued on, which may be captured."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..devices.protocol import Array, Device, DeviceError, Stream

if TYPE_CHECKING:
    from .group import Group


class Links:
    """The communicators of one process, one for each of its GPUs, made when they are first needed."""

    def __init__(self, group: Group):
        self._group = group
        self._made: dict[str, Any] = {}

    def exchange(self, stream: Stream, sends: Sequence[Array], receives: Sequence[Array]) -> int:
        """Queues what ``Group.exchange`` says; returns the bytes that leave this GPU."""
        nccl, own = self._library(), self._group.rank
        link = self._link(nccl, stream.device)
        others = [rank for rank in range(self._group.size) if rank != own]
        sizes = [(send.nbytes, receive.nbytes) for send, receive in zip(sends, receives, strict=True)]

        def nccl_send_and_receive(outgoing: Sequence[int], incoming: Sequence[int], on: int) -> None:
            with nccl.group():
                for rank in others:
                    out, into = sizes[rank]
                    if into:
                        link.recv(_memory(incoming[rank], into, "|u1"), rank, stream=on)
                    if out:
                        link.send(_memory(outgoing[rank], out, "|u1"), rank, stream=on)

        if any(sum(sizes[rank]) for rank in others):
            stream.launch(nccl_send_and_receive, tuple(sends), tuple(receives))
        if sends[own].handle != receives[own].handle:
            stream.copy(receives[own], sends[own])
        return sum(sizes[rank][0] for rank in others)

    def maximum(self, stream: Stream, words: Array) -> int:
        """Queues what ``Group.maximum`` says; returns the bytes that leave this GPU, had it sent them to each."""
        nccl, size = self._library(), words.size
        link = self._link(nccl, stream.device)

        def nccl_maximum(address: int, on: int) -> None:
            here = _memory(address, size, "<u4")
            link.allreduce(here, here, nccl.MAX, stream=on)

        stream.launch(nccl_maximum, words)
        return words.nbytes * (self._group.size - 1)

    @staticmethod
    def _library() -> Any:
        try:
            import nccl.core
        except ImportError as error:
            raise DeviceError(
                f"processes cannot exchange what lies on GPUs without NCCL ({error}); install it with: "
                'pip install ".[nccl]", or use --device cpu'
            ) from error
        return nccl.core

    def _link(self, nccl: Any, device: Device) -> Any:
        """All processes ask for their first GPU, then for their second one: its number says which belong together."""
        if device.name not in self._made:
            token = self._group.from_first(lambda: bytes(nccl.get_unique_id()), "the start of NCCL")
            unique = nccl.UniqueId.from_bytes(token)
            try:
                with device.current():  # type: ignore[attr-defined]
                    made = nccl.Communicator.init(self._group.size, self._group.rank, unique)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DeviceError(f"{device.name}: NCCL does not start: {reason}; every process needs a GPU") from error
            self._made[device.name] = made
        return self._made[device.name]


def _memory(address: int, count: int, kind: str) -> Any:
    """Memory as NCCL takes it. None of our arrays: these would order all of the device's work behind each other."""
    interface = {"version": 3, "shape": (count,), "typestr": kind, "data": (address, False), "strides": None}
    return SimpleNamespace(__cuda_array_interface__=interface)
