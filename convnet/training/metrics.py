"""What a run says about itself: errors and losses, the records in ``metrics.jsonl`` and ``metrics.csv``, and the lines
a person reads."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..output.console import duration
from ..output.files import read_regular, write_atomically
from ..output.results import csv_text

COLUMNS = (  # of metrics.csv: what records hold, whatever their event
    *("event", "step", "epoch", "loss", "top1_error", "top5_error", "lr", "images_per_second", "data_share", "views"),
    *("classes", "images", "status", "best_top1_error", "best_step", "seconds"),
)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int32]]


def losses_and_ranks(logits: Floats, labels: Ints) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Ints]:
    """Cross-entropy in nats, and how many classes come before the label (larger logit, or equal and lower index).

    ``logits`` (n, classes), ``labels`` (n,); an image is a top-k error where its rank is k or more.
    """
    x = logits.astype(np.float64)
    own = x[np.arange(len(x)), labels][:, None]
    highest = x.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinite logits have a loss that is not a number
        losses = np.log(np.exp(x - highest).sum(axis=1)) + (highest - own)[:, 0]
    earlier = (x == own) & (np.arange(x.shape[1])[None, :] < labels[:, None])
    return losses, ((x > own) | earlier).sum(axis=1).astype(np.int32)


@dataclass
class Meter:
    """Sums over images, of which a checkpoint keeps those that no record has shown yet."""

    images: int = 0
    loss: float = 0.0
    top1: int = 0
    top5: int = 0

    def add(self, losses: np.ndarray[Any, Any], ranks: Ints) -> None:
        self.images += len(losses)
        self.loss += float(losses.sum(dtype=np.float64))
        self.top1 += int((ranks >= 1).sum())
        self.top5 += int((ranks >= 5).sum())

    def means(self) -> dict[str, float]:
        """Mean loss and the errors as fractions."""
        n = max(self.images, 1)
        return {"loss": self.loss / n, "top1_error": self.top1 / n, "top5_error": self.top5 / n}

    def state(self) -> dict[str, Any]:
        return asdict(self)


class Speed:
    """Images per second and waiting for data since the last record, over the time spent in training steps alone."""

    def __init__(self) -> None:
        self.images = self.all_images = self.steps = 0
        self.busy = self.waited = self.all_busy = self.all_waited = 0.0
        self.mark = time.monotonic()

    def restart(self) -> None:
        """Leaves out the time since the last step: an evaluation, a checkpoint."""
        self.mark = time.monotonic()

    def add(self, images: int, waited: float) -> None:
        """A step is done, ``waited`` seconds of which went by waiting for its images."""
        now = time.monotonic()
        self.images, self.all_images = self.images + images, self.all_images + images
        self.busy, self.all_busy = self.busy + now - self.mark, self.all_busy + now - self.mark
        self.waited, self.all_waited = self.waited + waited, self.all_waited + waited
        self.steps, self.mark = self.steps + 1, now

    def recorded(self) -> None:
        self.images, self.busy, self.waited = 0, 0.0, 0.0

    @property
    def rate(self) -> float:
        return self.images / max(self.busy, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of the time, 0..1."""
        return min(1.0, self.waited / max(self.busy, 1e-9))

    @property
    def all_waiting(self) -> float:
        """The same since the start."""
        return min(1.0, self.all_waited / max(self.all_busy, 1e-9))

    def eta(self, images: int) -> str:
        """How long so many more images take at the speed of the run so far."""
        return duration(images * self.all_busy / max(self.all_images, 1))


class MetricsFile:
    """``metrics.jsonl``, one JSON object per line, in the file as soon as ``append`` returns, and beside it the same
    records as a table, ``metrics.csv``, with the columns ``COLUMNS``."""

    def __init__(self, path: Path):
        self.path, self.table = path, path.with_suffix(".csv")
        self.partial = False  # a failed write may have left half a line
        self.tabulated = False  # is the table known to hold all records, and nothing else?

    def append(self, record: dict[str, Any]) -> None:
        """Raises ``OSError`` when the disk is full."""
        line = ("\n" if self.partial else "") + json.dumps(record) + "\n"
        self.partial = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)
        self.partial = False
        try:
            self._tabulate(record)
        except OSError as error:  # the next record makes the table anew
            raise OSError(error.errno, error.strerror, str(self.table)) from error

    def _tabulate(self, record: dict[str, Any] | None = None) -> None:
        """Adds ``record``, the newest, to the table; makes it anew where it may not be what it should."""
        whole, self.tabulated = self.tabulated, False
        if record is None or not whole:
            write_atomically(self.table, _lines([COLUMNS, *map(_row, self.records())]))
        else:
            with open(self.table, "ab") as table:
                table.write(_lines([_row(record)]))
        self.tabulated = True

    def records(self) -> list[dict[str, Any]]:
        """All whole records; half of a last one, from a run that was killed, is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in read_regular(self.path).decode("utf-8", "replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [record for record in found if isinstance(record, dict)]

    def rewind(self, step: int, evaluated: bool) -> None:
        """Drops what lies behind ``step``, and the evaluation at ``step`` itself unless it was ``evaluated``."""

        def stays(record: dict[str, Any]) -> bool:
            at = record.get("step")
            return isinstance(at, int) and bool(
                at < step or (at == step and (evaluated or record.get("event") != "valid"))
            )

        kept = [json.dumps(record) + "\n" for record in self.records() if stays(record)]
        write_atomically(self.path, "".join(kept).encode())
        self._tabulate()


def _row(record: dict[str, Any]) -> list[Any]:
    return [record.get(name) for name in COLUMNS]


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    """Of the table; records that somebody else wrote may hold anything."""
    return csv_text(rows).encode("utf-8", "backslashreplace")
