"""Which runs there are, and what they say while they are written. What leads out of the folder is not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..output.files import open_regular, printable
from ..training import checkpoint
from ..training.metrics import COLUMNS
from ..training.run import holds_run

READ = ("metrics.jsonl", "config.toml", "best", "checkpoints")  # what is read of a run's folder
LONGEST = 200  # letters of a word in a record
SILENT = 60.0  # seconds without a record, behind which nobody says that a run is training


@dataclass(frozen=True)
class Run:
    """``id`` is what the page calls it by; ``path`` is a run folder, a checkpoint, or a file of weights."""

    id: str
    name: str
    path: Path

    @property
    def stamp(self) -> str:
        """Changes when other weights are to be looked at."""
        kept = [*reversed(checkpoint.files(self.path / "checkpoints"))] if self.path.is_dir() else [self.path]
        for path in (self.path / "best", *kept):
            with contextlib.suppress(OSError):
                entry = os.stat(path)
                return f"{entry.st_ino} {entry.st_mtime_ns}"
        return ""


class Listing:
    """The runs at ``path``: those in the folders in it, the one that it is, or the file that it is."""

    def __init__(self, path: Path):
        self.path = Path(os.path.realpath(path))
        self.alone = not self.path.is_dir() or holds_run(self.path)

    def runs(self) -> dict[str, Run]:
        """By their ids, sorted by name; a new one appears, one that is removed does not."""
        return self.look()[0]

    def look(self) -> tuple[dict[str, Run], list[str]]:
        """The runs by their ids, and the names of those that a link would lead out of."""
        runs, left_out = {}, []
        for run in self._found():
            if stays_inside(run.path, run.path if self.alone else self.path):
                runs[run.id] = run
            else:
                left_out.append(run.name)
        return runs, left_out

    def _found(self) -> list[Run]:
        if self.alone:
            return [Run(_id(self.path.name), printable(self.path.name), self.path)]
        try:
            names = sorted(entry.name for entry in os.scandir(self.path) if not entry.name.startswith("."))
        except OSError:
            return []
        paths = ((name, self.path / name) for name in names)
        return [Run(_id(name), printable(name), path) for name, path in paths if path.is_dir() and holds_run(path)]


def _id(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _within(path: Path, folder: Path) -> bool:
    """Whether ``path``, links followed, lies in ``folder``, which has none in its own name."""
    return Path(os.path.realpath(path)).is_relative_to(folder)


def stays_inside(run: Path, folder: Path) -> bool:
    """Whether a run lies in ``folder`` and no link leads what is read of its own folder elsewhere."""
    home = Path(os.path.realpath(run))
    try:
        inner = [entry.path for entry in os.scandir(home / "checkpoints")]
    except OSError:
        inner = []
    own = [*(str(home / name) for name in READ), *inner] if home.is_dir() else []
    return home.is_relative_to(folder) and all(_within(Path(path), home) for path in own)


@dataclass
class Tail:
    """The records of a ``metrics.jsonl`` as they are appended: whole lines only, from the beginning again where the
    file has been replaced or cut."""

    path: Path
    _place: int = 0
    _file: int = 0  # its number on the disk

    def poll(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether it began anew, so that what was told before no longer holds, and what is new."""
        try:
            with open_regular(self.path) as file:
                entry = os.fstat(file.fileno())
                anew = (self._file, True) != (entry.st_ino, entry.st_size >= self._place) and self._place > 0
                if anew:
                    self._place = 0
                self._file = entry.st_ino
                file.seek(self._place)
                whole, ended, _ = file.read().rpartition(b"\n")
                self._place += len(whole) + len(ended)
        except OSError:
            anew, whole = self._place > 0, b""
            self._place = 0
        return anew, list(_records(whole))


def _records(lines: bytes) -> Iterator[dict[str, Any]]:
    """What a record may hold, whoever wrote it: short words and finite numbers under the names that there are."""
    for line in lines.decode("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield {name: value for name in COLUMNS if (value := _plain(record.get(name))) is not None}


def _plain(value: Any) -> str | float | None:
    if isinstance(value, str):
        return printable(value)[:LONGEST]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 2**53 or not math.isfinite(value):
        return None
    return value


@dataclass
class Watch:
    """What is new in a listing, or in one of its runs, for somebody who has seen everything up to the last look."""

    listing: Listing
    only: str | None = None
    _tails: dict[str, Tail] = field(default_factory=dict)
    _told: tuple[dict[str, Any], list[str]] | None = None

    def news(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """("runs", all of them with name and state, and the names of those left out) where these changed; ("records",
        new ones of one run)."""
        found, left_out = self.listing.look()
        runs = {key: run for key, run in found.items() if self.only in (None, key)}
        told = {key: {"name": run.name, "quiet": quiet(run), "stamp": run.stamp} for key, run in runs.items()}
        if self._told != (told, left_out):
            self._told = told, left_out
            yield "runs", {"runs": [{"id": key, **about} for key, about in told.items()], "left_out": left_out}
        for gone in self._tails.keys() - runs.keys():
            del self._tails[gone]
        for key, run in runs.items():
            tail = self._tails.setdefault(key, Tail(run.path / "metrics.jsonl"))
            anew, records = tail.poll()
            if anew or records:
                yield "records", {"run": key, "anew": anew, "records": records}


def quiet(run: Run) -> bool:
    """Whether nothing has been recorded for a while."""
    try:
        return time.time() - os.stat(run.path / "metrics.jsonl").st_mtime > SILENT
    except OSError:
        return True
