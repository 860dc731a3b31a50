"""How the images of an epoch are cut into steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class Minibatches:
    """An epoch of data batches of so many images, ``sizes``: in each of them minibatches of ``batch_size`` start anew,
    and the last one may be short, so that 10,000 images are 78 minibatches of 128 and one of 16. An epoch that comes in
    no batches is one. A position is a number of images from the start of the epoch.
    """

    batch_size: int
    sizes: tuple[int, ...]

    @cached_property
    def _starts(self) -> list[int]:
        """Where each data batch begins, and the end."""
        return list(accumulate(self.sizes, initial=0))

    @cached_property
    def _steps(self) -> list[int]:
        """How many minibatches there are before each data batch, and in all."""
        return list(accumulate((-(-size // self.batch_size) for size in self.sizes), initial=0))

    @property
    def images(self) -> int:
        return self._starts[-1]

    @property
    def steps(self) -> int:
        """Minibatches of an epoch."""
        return self._steps[-1]

    def batches(self, position: int) -> int:
        """How many data batches have ended at ``position``."""
        return bisect_right(self._starts, position) - 1

    def start(self, position: int) -> int:
        """Where the data batch of ``position`` begins."""
        return self._starts[self.batches(position)]

    def step(self, position: int) -> int:
        """How many minibatches begin before ``position``."""
        return self._steps[self.batches(position)] - (-(position - self.start(position)) // self.batch_size)

    def divides(self, position: int) -> bool:
        """Whether a minibatch ends at ``position``, or none has begun."""
        return 0 <= position <= self.images and (position - self.start(position)) % self.batch_size == 0

    def spans(self, position: int) -> Iterator[tuple[int, int]]:
        """First and last image, the last not included, of every minibatch from ``position`` on."""
        while position < self.images:
            end = min(position + self.batch_size, self._starts[self.batches(position) + 1])
            yield position, end
            position = end
