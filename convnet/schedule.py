"""The learning rate over a run: constant, or divided by 10 three times."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

DROPS = 3


@dataclass
class Schedule:
    """``kind`` says when the rate drops.

    - ``plateau``: when the validation error was no lower than its minimum for ``patience`` evaluations; what the
      paper's authors did by hand.
    - ``step``: after 1/4, 1/2 and 3/4 of the epochs, the switching points of the 2012 program's four-step schedule.
    - ``constant``: never.
    """

    kind: str
    base: float
    epochs: int
    patience: int
    lowest: float | None = None
    waited: int = 0
    drops: int = 0

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch, counted from 0."""
        drops = {"plateau": self.drops, "step": (DROPS + 1) * epoch // self.epochs, "constant": 0}[self.kind]
        return self.base / float(10 ** min(drops, DROPS))

    def evaluated(self, error: float) -> bool:
        """Takes note of a validation error; True when the rate drops now because of it."""
        if self.lowest is None or error < self.lowest:
            self.lowest, self.waited = error, 0
            return False
        self.waited += 1
        if self.kind != "plateau" or self.waited < self.patience or self.drops == DROPS:
            return False
        self.drops, self.waited = self.drops + 1, 0
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; kind, rate and patience may change when a run is resumed."""
        kept = ("lowest", "waited", "drops")
        return {name: value for name, value in dataclasses.asdict(self).items() if name in kept}

    def restore(self, state: dict[str, Any]) -> None:
        self.lowest, self.waited, self.drops = state["lowest"], int(state["waited"]), int(state["drops"])
