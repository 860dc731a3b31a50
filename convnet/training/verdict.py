"""Whether a run has learnt anything: its error and loss against what can be had without a look at the images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..output.console import percent
from .config import FEW_STEPS
from .metrics import Ints

CLEARLY = 0.02  # a loss is clearly below that of chance where it is by this share of it, and by more than its noise:
SPREAD = 0.5  # about the standard deviation of the losses of single images where little has been learnt


def standard_error(error: float, images: int) -> float:
    """Of an error, a fraction, that was found on so many images."""
    return math.sqrt(error * (1 - error) / max(images, 1))


@dataclass(frozen=True)
class Last:
    """What the last evaluation found."""

    error: float
    loss: float


@dataclass(frozen=True)
class Chance:
    """The best that can be had on ``images`` images without a look at them, by one who knows how frequent their classes
    are: an ``error`` of 1 - 1/classes and a ``loss`` of ln(classes) where all are equally frequent, else less.
    """

    images: int
    error: float
    loss: float

    @classmethod
    def of(cls, labels: Ints) -> Chance:
        shares = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
        return cls(len(labels), float(1 - shares.max(initial=0)), float(-(shares * np.log(shares)).sum()))

    def above(self, error: float) -> bool:
        """Whether an error is lower by twice the standard error that one of chance has."""
        return error < self.error - 2 * standard_error(self.error, self.images)

    def begun(self, error: float, loss: float) -> bool:
        """Whether learning has begun: the loss is clearly below that of chance, or the error is."""
        clearly = max(CLEARLY * self.loss, 2 * SPREAD / math.sqrt(max(self.images, 1)))
        return loss < self.loss - clearly or self.above(error)


def verdict(
    chance: Chance, last: Last | None, training_loss: float | None, steps: int, lr: float, init: str
) -> tuple[bool, str]:
    """Whether all is well with a run of so many steps, and the sentence it ends with: whether it has learnt anything,
    and what to try where it has not. ``training_loss`` is the newest in training, where it is known.
    """
    if last is None:
        return True, "the run ended before its first evaluation: whether anything was learnt is not known yet"
    if chance.error == 0:
        return False, (
            f"whether anything was learnt cannot be told: all {chance.images} validation images are of one class"
        )
    error = f"top-1 error {percent(last.error)} (+- {percent(standard_error(last.error, chance.images))})"
    error += f", and {percent(chance.error)} for who names the most frequent class each time"
    if chance.above(last.error):
        return True, f"learnt: {error}"
    loss = f"loss {last.loss:.4f}, and {chance.loss:.4f} for who knows no more than how frequent the classes are"
    if chance.begun(last.error, last.loss):
        return True, f"learning has begun, but not to show: {loss}; {error}; more epochs may show it"
    return False, f"nothing was learnt: {error}; {loss}; {_remedy(chance, training_loss, steps, lr, init)}"


def _remedy(chance: Chance, training_loss: float | None, steps: int, lr: float, init: str) -> str:
    if 2 * standard_error(chance.error, chance.images) >= chance.error:
        return f"{chance.images} validation images are too few to tell: give more"
    if training_loss is not None and training_loss < chance.loss / 2:
        return (
            f"the training images alone were learnt (loss {training_loss:.4f}): look whether both splits mean the "
            "same classes and have the right labels, give more images, or start from a trained network (--init-from)"
        )
    ways = [f"more --epochs than these {steps} steps"] if steps < FEW_STEPS else []
    ways += ["--init he"] if init != "he" else []
    ways += [f"--lr {lr / 3:.1g} or {lr * 3:.1g}", "smaller batches (-b)"]
    return f"try {', '.join(ways)}, and look whether the labels are right"
