"""Gradients of a batch that is shared out: every shard's own, added up in the order of the shards.

What crosses between processes goes in buckets, which start as soon as the gradients in them are there. Of a bucket
every process sums up one part, and sends the sums to all: of G bytes of gradients a process that has k shards sends
(k + 1) G (n - 1) / n to the n - 1 others, and waits for as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..devices.protocol import Array, Stream
from ..group.group import Group
from ..group.shares import Shares
from ..kernels.control import STOPPED
from ..ops import ops
from .layers import LayerOnDevice, Parameter, Side
from .traffic import BUCKET
from .wiring import Wiring

QUAD = 4  # values: kernels read so many at a time


class Bucket:
    """Gradients of ``parameters`` on one side, one behind the other.

    ``own[j]`` are those of this process's shard j, ``received[v]`` this process's part of those of shard v, ``total``
    the sums of all.
    """

    def __init__(self, side: Side, parameters: Sequence[Parameter], group: Group, shares: Shares):
        self.side, self.parameters = side, parameters
        self.offsets, end = [], 0
        for parameter in parameters:
            self.offsets.append(end)
            end += -(-parameter.value.size // QUAD) * QUAD
        cuts = [QUAD * (rank * (end // QUAD) // group.size) for rank in range(group.size + 1)]
        self._parts = list(pairwise(cuts))
        empty = side.device.empty
        self.own = [empty((end,)) for _ in range(shares.own)]
        self.total = empty((end,))
        self.part = self._cut(self.total)[group.rank]
        self.received: list[Array] = []
        for shard in range(shares.shards):
            rank, j = divmod(shard, shares.own)
            here = rank == group.rank
            self.received.append(self._cut(self.own[j])[rank] if here else empty(self.part.shape))
        for parameter, offset in zip(parameters, self.offsets, strict=True):
            parameter.summed = self.total.view(parameter.value.shape, offset)

    def _cut(self, whole: Array) -> list[Array]:
        """The parts that the processes sum up."""
        return [whole.view((end - start,), start) for start, end in self._parts]

    def take(self, j: int, parameter: Parameter) -> None:
        """The gradient of this process's shard j."""
        offset = self.offsets[self.parameters.index(parameter)]
        self.side.stream.copy(self.own[j].view(parameter.value.shape, offset), parameter.gradient)

    def send(self, stream: Stream, group: Group, shares: Shares) -> None:
        """Starts to bring every process the part that it sums up."""
        for j, own in enumerate(self.own):
            group.exchange(stream, self._cut(own), self.received[j :: shares.own])

    def add_up(self, sizes: Sequence[int]) -> None:
        """Sums up this process's part, of those shards that have images."""
        first, *others = [part for part, size in zip(self.received, sizes, strict=True) if size]
        if not self.part.size:
            return
        stream = self.side.stream
        if not others:
            stream.copy(self.part, first)
        for other in others:
            ops.add(stream, "fp32", first, other, self.part)
            first = self.part

    def spread(self, stream: Stream, group: Group) -> None:
        """Starts to bring every process the sums of all parts."""
        group.exchange(stream, [self.part] * group.size, self._cut(self.total))


class Reduction:
    """The gradients of ``wiring``, on this process and the others of ``group``: those of layers that learn."""

    def __init__(self, wiring: Wiring, group: Group, shares: Shares):
        self._wiring, self._group, self._shares = wiring, group, shares
        self.streams: list[Stream] = [side.device.stream() for side in wiring.sides]  # what crosses is queued here
        self._last = self.streams[0]
        self._buckets: list[Bucket] = []  # in the order in which they are full
        self._of: dict[int, int] = {}  # their places, by the identity of a layer on its device
        self._frozen: list[str] | None = None

    def begin(self) -> None:
        """A step begins; other layers than before may be frozen."""
        frozen = [block[0].name for block in self._wiring.learning if block[0].frozen]
        if frozen == self._frozen:
            return
        self._frozen, self._buckets, self._of = frozen, [], {}
        waiting: list[list[LayerOnDevice]] = [[] for _ in self._wiring.sides]
        for block in reversed(self._wiring.learning):
            for layer in block:
                if not layer.frozen:
                    waiting[layer.side.index].append(layer)
                    self._fill(waiting[layer.side.index], BUCKET)
        for layers in waiting:
            self._fill(layers, 1)

    def _fill(self, layers: list[LayerOnDevice], least: int) -> None:
        """Makes a bucket of these, if they have ``least`` bytes."""
        parameters = [p for layer in layers for p in layer.parameters]
        if sum(p.value.nbytes for p in parameters) >= least:
            self._buckets.append(Bucket(layers[0].side, parameters, self._group, self._shares))
            self._of |= {id(layer): len(self._buckets) - 1 for layer in layers}
            layers.clear()

    def take(self, j: int, layer: LayerOnDevice, last: bool) -> None:
        """The gradients of a layer are those of this process's shard j, its last one with images or not."""
        if (place := self._of.get(id(layer))) is None:
            return
        bucket = self._buckets[place]
        for parameter in layer.parameters:
            bucket.take(j, parameter)
        if last and layer.parameters[-1] is bucket.parameters[-1]:
            self._send(place)

    def _send(self, place: int) -> None:
        bucket = self._buckets[place]
        bucket.send(self._behind(bucket.side), self._group, self._shares)

    def _behind(self, side: Side) -> Stream:
        """Where what crosses from this side is queued next: behind the side's work, and behind what crosses already, so
        that all processes exchange in one order, whatever the streams of their devices do."""
        stream = self.streams[side.index]
        stream.wait(side.stream.record())
        if stream is not self._last:
            stream.wait(self._last.record())
        self._last = stream
        return stream

    def finish(self, sizes: Sequence[int], computed: bool) -> None:
        """Brings the sums over all shards, those that have no images left out, to all processes; and what one of them
        has found out about its losses. ``computed``: this process has had images, so that all was sent."""
        if not computed:
            for place in range(len(self._buckets)):
                self._send(place)
        self.agree(STOPPED)
        for bucket in self._buckets:
            bucket.add_up(sizes)
            bucket.spread(self._behind(bucket.side), self._group)
        self._arrived()

    def agree(self, word: int) -> None:
        """Makes a word of the control block the largest of all processes, on all devices."""
        first, *others = self._wiring.sides
        agreed = first.control.view((1,), word)
        self._group.maximum(self._behind(first), agreed)
        self._arrived()
        for side in others:
            side.stream.copy(side.control.view((1,), word), agreed)

    def _arrived(self) -> None:
        self._group.complete(self._last)
        arrived = self._last.record()
        for side in self._wiring.sides:
            side.stream.wait(arrived)
