"""What crosses between the devices of a network: parts of activations on the way forward, gradients on the way back.

All devices hold activations in image blocks, in which the channels of one side are contiguous: an exchange is a few
copies per image block and side. Each copy is queued on a stream of the device that receives it, behind an event that
says the data is there; nobody goes on to overwrite what another side may still be reading. Gradients travel on streams
of their own, while their devices compute those of the weights.
"""

from __future__ import annotations

from ..devices.protocol import Array, Event
from ..ops import ops
from .layers import Side


class Exchange:
    """The exchanges of one network. ``part`` is the number of elements of the largest activation part that is
    exchanged; ``log`` lists what crossed: (layer, "forward" or "backward", bytes)."""

    def __init__(self, sides: list[Side], part: int):
        self.sides = sides
        self.streams = [side.device.stream() for side in sides] if part else []
        self._under_way: list[tuple[list[Array], Event]] = []
        self.log: list[tuple[str, str, int]] = []
        # the gradients that all sides computed for this side's part wait here to be summed, into the last of these
        self._staged = [
            [side.device.empty((part,), side.dtype) for _ in range(len(sides) + 1)] if part else [] for side in sides
        ]

    def gather(self, layer: str, parts: list[Array], wholes: list[Array]) -> None:
        """Copies the ``parts`` of all sides (N/L, C/sides, ...) into ``wholes`` (N/L, C, ...), one per reading side."""
        ready = [side.stream.record() for side in self.sides]
        nbytes = 0
        for reader, whole in zip(self.sides, wholes, strict=False):
            for owner, part in enumerate(parts):
                reader.stream.wait(ready[owner])
                for target, source in zip(channels(whole, owner, len(parts)), image_blocks(part), strict=True):
                    reader.stream.copy(target, source)
                nbytes += part.nbytes if owner != reader.index else 0
            read = reader.stream.record()
            for side in self.sides:
                side.stream.wait(read)
        self.log.append((layer, "forward", nbytes))

    def scatter(self, layer: str, wholes: list[Array], shape: tuple[int, ...]) -> None:
        """Starts to bring every side what the sides computed for its part.

        ``wholes`` are gradients of the whole activation, one per side that computed one; ``shape`` is that of a part.
        """
        ready = [side.stream.record() for side in self.sides]
        nbytes = 0
        self._under_way = []
        for owner, stream in enumerate(self.streams):
            for event in ready:  # also of those that computed nothing: what is staged must have been summed up
                stream.wait(event)
            staged = [stage.view(shape) for stage in self._staged[owner][: len(wholes)]]
            for computed, whole in enumerate(wholes):
                sources = channels(whole, owner, len(self.sides))
                for target, source in zip(image_blocks(staged[computed]), sources, strict=True):
                    stream.copy(target, source)
                nbytes += staged[computed].nbytes if computed != owner else 0
            self._under_way.append((staged, stream.record()))
        self.log.append((layer, "backward", nbytes))

    def sums(self) -> list[Array]:
        """What ``scatter`` brought, summed up for every side in the order of the sides, when all of it is there."""
        for side in self.sides:
            for _, fetched in self._under_way:
                side.stream.wait(fetched)
        return [self._sum(side, parts) for side, (parts, _) in zip(self.sides, self._under_way, strict=True)]

    def _sum(self, side: Side, parts: list[Array]) -> Array:
        """In memory of its own: what is staged may be overwritten while the sum is still read."""
        total = self._staged[side.index][-1].view(parts[0].shape)
        if len(parts) == 1:
            side.stream.copy(total, parts[0])
        else:
            ops.add(side.stream, side.precision, parts[0], parts[1], total)
        for part in parts[2:]:
            ops.add(side.stream, side.precision, total, part, total)
        return total


def image_blocks(array: Array) -> list[Array]:
    """The image blocks of an activation, each contiguous."""
    blocks = array.shape[0]
    return [array.view(array.shape[1:], i * (array.size // blocks)) for i in range(blocks)]


def channels(whole: Array, part: int, count: int) -> list[Array]:
    """The image blocks of one side's channels in an activation that holds the channels of all sides."""
    blocks = whole.shape[0]
    size = whole.size // blocks // count
    shape = (whole.shape[1] // count, *whole.shape[2:])
    return [whole.view(shape, (i * count + part) * size) for i in range(blocks)]
