"""What the processes of a run send each other in a step, by formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .spec import Linear, NetworkSpec, parameter_shapes, placed_layers

BUCKET = 25 * 2**20  # bytes: large enough to be bound by the network's bandwidth, small enough to start early
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Traffic:
    """Of one process: the bytes that it sends, and in how many messages. It receives as much."""

    bytes: float
    messages: float

    def seconds(self, bandwidth: float, latency: float) -> float:
        """Nothing of it at the same time as anything else; bytes per second, and seconds per message."""
        return self.bytes / bandwidth + self.messages * latency


def _summed(nbytes: float, n: int) -> Traffic:
    """Of G bytes (n - 1) / n go to those who sum them up, and the sums of one part to the n - 1 others."""
    return Traffic(2 * nbytes * (n - 1) / n, 2 * (n - 1) * max(math.ceil(nbytes / BUCKET), 1))


def data_parallel(spec: NetworkSpec, n: int) -> Traffic:
    """All gradients, in float32, of n processes with a shard each."""
    return _summed(FLOAT * sum(math.prod(shape) for shape in parameter_shapes(spec).values()), n)


def hybrid(spec: NetworkSpec, n: int, images: int, size: int) -> Traffic:
    """The gradients of convolutions as above. Of what fully-connected layers read, ``size`` bytes a value, every
    process sends its part, its ``images`` or its neurons, to all others, and for all but the last layer, which is whole
    everywhere, what it found for every other's part comes back."""
    kinds = {placed.layer.name: placed for placed in placed_layers(spec)}
    linear = [placed for placed in kinds.values() if isinstance(placed.layer, Linear)]
    summed = _summed(
        FLOAT
        * sum(
            math.prod(shape)
            for name, shape in parameter_shapes(spec).items()
            if kinds[name.partition(".")[0]] not in linear
        ),
        n,
    )
    part = [images * placed.C * placed.H * placed.W * size * (n - 1) for placed in linear]
    sent = sum(part) + sum(part[:-1])
    return Traffic(summed.bytes + sent, summed.messages + (n - 1) * (len(part) + len(part[:-1])))
