"""How the images of a step are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from .group import Group


@dataclass(frozen=True)
class Shares:
    """Of a batch of n images shard v of ``shards`` has those from v n / shards to (v + 1) n / shards, rounded down: the
    numbers of any two differ by one at most. Every one of ``processes`` has as many shards, one behind the other.

    The shards, not the processes, decide every bit: sums over images end at their borders, and they are added up in
    their order, wherever they are.
    """

    shards: int = 1
    processes: int = 1
    rank: int = 0

    @classmethod
    def of(cls, group: Group, shards: int) -> Shares:
        """Raises ``ValueError`` where the processes cannot share them out evenly."""
        if shards < 1 or shards % group.size:
            fitting = ", ".join(str(n) for n in range(1, shards + 1) if not shards % n)
            raise ValueError(
                f"--shards {shards}: {group.size} processes cannot share these out evenly; start {fitting} of them, or "
                "say another number of shards"
            )
        return cls(shards, group.size, group.rank)

    @property
    def own(self) -> int:
        """How many of the shards this process has."""
        return self.shards // self.processes

    def largest(self, n: int) -> int:
        """The images of the largest shard of n."""
        return -(-n // self.shards)

    def cuts(self, n: int) -> list[int]:
        """Where the shards begin, and where the last one ends."""
        return [shard * n // self.shards for shard in range(self.shards + 1)]

    def own_cuts(self, n: int) -> list[int]:
        """The same of this process's."""
        first = self.rank * self.own
        return self.cuts(n)[first : first + self.own + 1]

    def part(self, n: int) -> slice:
        """Which of n images this process has."""
        cuts = self.own_cuts(n)
        return slice(cuts[0], cuts[-1])
