"""``convnet-prepare``: any source of images into a store (``convnet.data.store``), in parallel and resumable.

Work goes shard by shard. A finished shard is on disk, and a journal beside it says what is in it and keeps the sums
over its pixels, which are integers. What a shard holds depends on the source and the options alone, so that neither
the number of workers nor any interruption changes a byte of the store.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ..data import DataError
from ..data.dataset import VAL_SPLIT, depth_lines, left_out_lines
from ..data.jpeg import decoder
from ..data.packing import Task
from ..data.recognise import open_source
from ..data.source import Part, Source, grey_bits
from ..data.statistics import from_sums
from ..data.store import FORMAT, HASHED, INDEX, MAX_SIZE, SHARD, VERSION, read_json, shard_name
from ..kernels import rng
from ..output.console import Console, duration
from ..output.files import lock, printable, write_atomically
from .journal import Journal
from .packers import Stopped, in_order, stop_request

CHUNK = 32  # images per task: a tenth of a second's work, and less than a megabyte to hand over
UNFINISHED, COMPLETE = "unfinished.json", "store.json"
STOPPED = 75  # exit code where finished shards are kept


@dataclass(frozen=True)
class Options:
    """What decides about the bytes of a store, besides its source."""

    size: int = 256
    quality: int = 95
    seed: int = 0
    keep_aspect: bool = False

    def check(self) -> None:
        """Raises ``ValueError``."""
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"--size must be 1 to {MAX_SIZE}, got {self.size}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be 1 to 100, got {self.quality}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed must be at least 0 and less than 2^64, got {self.seed}")


@dataclass(frozen=True)
class Shard:
    """``indices`` are those of its images in ``part``, in the order in which they are stored."""

    name: str  # "train" or "val"
    number: int
    part: Part
    indices: list[int]

    @property
    def file(self) -> str:
        return shard_name(self.name, self.number)


def run(
    source_path: Path, target: Path, options: Options, workers: int, console: Console, val_split: float | None = None
) -> int:
    """Prepares and returns the exit code. ``val_split``: the share held out where there are no validation images, None
    for ``VAL_SPLIT``.

    Raises ``ValueError`` and ``DataError``; finished shards stay on disk.
    """
    options.check()
    share = VAL_SPLIT if val_split is None else val_split
    if not 0 < share < 1:
        raise ValueError(f"--val-split must be more than 0 and less than 1, got {share}")
    if workers < 1:
        raise ValueError(f"-j must be at least 1, got {workers}")
    began = time.monotonic()
    with console.waiting(f"looking through {source_path}"):
        source = open_source(source_path, seed=options.seed, val_split=share)
    if val_split is not None and source.held_out is None:
        console.warn(f"--val-split {val_split:g} changes nothing: the data has validation images of its own")
    bits = grey_bits(source.train)
    depth = bits or 16
    for line in (source.name, *source.notes, *depth_lines(bits), *left_out_lines(source.left_out)):
        console.say(line)
    shards = plan(source, options.seed)
    try:
        with locked(target):
            if not _begin(target, source, options):
                console.say(f"{target} is complete already; nothing to do")
                return 0
            finished = {shard.file for shard in shards if _is_finished(target, shard)}
            if finished:
                console.say(f"going on: {len(finished)} of {len(shards)} shards are finished and whole")
            with stop_request() as stop:
                try:
                    _pack_missing(target, shards, finished, options, depth, workers, console, stop)
                except Stopped:
                    kept = f"{len(finished)} of {len(shards)} shards are finished; " if finished else ""
                    console.warn(f"stopped; {kept}the same command goes on where this one stopped")
                    return STOPPED if finished else 128 + stop[0]
                _finish(target, source, options, depth, shards, console)
    except OSError as error:
        raise DataError(
            f"cannot write {str(error.filename or target)!r}: {error.strerror or error}; finished shards are kept: "
            "repair this and run the same command again"
        ) from error
    finally:
        console.clear()
    console.say(f"prepared in {duration(time.monotonic() - began)}; train on it with: convnet-train {target}")
    return 0


def shuffled(count: int, seed: int) -> list[int]:
    """The order in which training images are stored."""
    index = np.arange(count)
    # the loader draws the orders of its epochs with a third word of 0
    high, low = rng.philox(index, 0, 1, rng.SHUFFLE, seed)[:2].astype(np.uint64)
    order: list[int] = np.argsort(high << np.uint64(32) | low, kind="stable").tolist()
    return order


def plan(source: Source, seed: int) -> list[Shard]:
    """All shards: the training images shuffled, the validation images in the source's order."""
    orders = shuffled(len(source.train), seed), list(range(len(source.valid)))
    return [
        Shard(name, number, part, order[first : first + SHARD])
        for name, part, order in zip(("train", "val"), (source.train, source.valid), orders, strict=True)
        for number, first in enumerate(range(0, len(order), SHARD))
    ]


# ---- the folder ----


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Makes the folder where it is missing, and holds it against other processes."""
    target.mkdir(parents=True, exist_ok=True)
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # locked itself: a store has no file for that
    try:
        if not lock(folder):
            raise ValueError(f"{target}: another process is preparing there; wait for it, or choose another")
        yield
    finally:
        os.close(folder)


def _begin(target: Path, source: Source, options: Options) -> bool:
    """Checks that what lies in the folder belongs to this work; False where the work is done."""
    asked = {**asdict(options), "source": source.fingerprint}
    made_by = {"decoder": decoder(), "Pillow": PIL.__version__}
    for name in (COMPLETE, UNFINISHED):
        if not (target / name).exists():
            continue
        try:
            found = read_json(target / name)
        except ValueError as error:
            raise DataError(f"{str(target / name)!r} is damaged ({error}); remove {target} and start anew") from error
        expected = {**asked, "version": VERSION, **(made_by if name == UNFINISHED else {})}
        for key, value in expected.items():
            if found.get(key) != value:
                raise ValueError(_difference(target, name, key, found.get(key), value))
        if name == COMPLETE:
            _remove_traces(target)  # of a process that was killed at the very end
            return False
        for leftover in target.glob("*.tmp"):
            leftover.unlink()
        return True
    if others := [path.name for path in target.iterdir() if path.name != UNFINISHED + ".tmp"]:
        raise ValueError(
            f"{target}: not empty (it holds {min(others)!r}) and no store; choose an empty or a new folder"
        )
    write_atomically(target / UNFINISHED, _json({"format": FORMAT, "version": VERSION, **asked, **made_by}))
    return True


def _difference(target: Path, name: str, key: str, found: object, asked: object) -> str:
    state = "is complete" if name == COMPLETE else "was begun"
    if key == "source":
        return f"{target}: it {state} with other source images; give the same source, or choose another folder"
    what = f"--{key.replace('_', '-')}" if key in asdict(Options()) else key
    return f"{target}: it {state} with {what} {found!r:.40}, not {asked!r}; give the same, or choose another folder"


def _remove_traces(target: Path) -> None:
    for path in [*target.glob("*.journal"), *target.glob("*.tmp"), target / UNFINISHED]:
        path.unlink(missing_ok=True)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


# ---- shards ----


def _journal(target: Path, shard: Shard) -> Path:
    return target / (shard.file + ".journal")


def _is_finished(target: Path, shard: Shard) -> bool:
    journal = Journal.read(_journal(target, shard))
    return journal is not None and journal.describes(target / shard.file)


def _pack_missing(
    target: Path,
    shards: list[Shard],
    finished: set[str],
    options: Options,
    depth: int,
    workers: int,
    console: Console,
    stop: list[int],
) -> None:
    """Packs all other shards than those in ``finished``, and puts them there."""
    missing = [shard for shard in shards if shard.file not in finished]
    total = sum(len(shard.indices) for shard in shards)
    done = before = total - sum(len(shard.indices) for shard in missing)
    began = time.monotonic()
    tasks = (task for shard in missing for task in _tasks(shard, options, depth))
    with closing(in_order(tasks, workers, stop)) as results:
        for shard in missing:
            journal, temporary = Journal(), target / (shard.file + ".tmp")
            try:
                with open(temporary, "wb") as file:
                    for chunk in _chunks(shard):
                        names, labels = [shard.part.names[k] for k in chunk], shard.part.labels[chunk].tolist()
                        journal.add(file, names, labels, next(results))
                        done += len(chunk)
                        rate = (done - before) / (time.monotonic() - began)
                        left = duration((total - done) / rate)
                        console.progress(done, total, "preparing", f"{left} left", f"{rate:.0f} images/s")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target / shard.file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            journal.write(_journal(target, shard))  # from here on the shard is finished
            finished.add(shard.file)


def _chunks(shard: Shard) -> Iterator[list[int]]:
    return (shard.indices[first : first + CHUNK] for first in range(0, len(shard.indices), CHUNK))


def _tasks(shard: Shard, options: Options, depth: int) -> Iterator[Task]:
    images = shard.part.images
    for chunk in _chunks(shard):
        some = images[chunk] if isinstance(images, np.ndarray) else [images[k] for k in chunk]
        yield Task(some, options.size, options.quality, options.keep_aspect, depth, sums=shard.name == "train")


# ---- the end ----


def _finish(target: Path, source: Source, options: Options, depth: int, shards: list[Shard], console: Console) -> None:
    """Writes what belongs to all shards, ``store.json`` last."""
    classes = source.classes
    index: dict[str, list[Any]] = {"train": [], "val": []}
    names: dict[str, list[str]] = {"train": [], "val": []}
    bad = [["source", "reason"]]
    total, products = np.zeros((options.size, options.size, 3), np.int64), np.zeros((3, 3), object)
    for shard in shards:
        journal = Journal.read(_journal(target, shard))
        if journal is None:
            raise DataError(f"{str(_journal(target, shard))!r} is gone or damaged; run the same command again")
        ends = np.cumsum([0, *(length for length, _, _ in journal.rows)]).tolist()
        rows = [(shard.number, start, *row) for start, row in zip(ends[:-1], journal.rows, strict=True)]
        index[shard.name].append(np.array(rows, INDEX))
        names[shard.name] += journal.names
        bad += journal.bad
        if shard.name == "train" and journal.total is not None:
            total += journal.total
            products += np.array(journal.products, object)
    unusable = len(bad) - 1
    table = io.StringIO()
    bad += [[printable(left.name), left.reason] for left in source.left_out]
    csv.writer(table, lineterminator="\n").writerows(bad)
    write_atomically(target / "bad.csv", table.getvalue().encode())
    if unusable:
        everything = len(source.train) + len(source.valid)
        console.warn(f"{unusable:,} of {everything:,} images cannot be used; {target / 'bad.csv'} lists them")

    train, valid = np.concatenate(index["train"]), np.concatenate(index["val"])
    given, usable = (np.bincount(labels, minlength=len(classes)) for labels in (source.train.labels, train["label"]))
    empty = np.flatnonzero((given > 0) & (usable == 0))
    if len(empty) or not len(valid):
        what = f"class {classes[empty[0]]!r} has no usable training" if len(empty) else "there is no usable validation"
        raise DataError(f"{what} image, see {str(target / 'bad.csv')!r}; repair the source and prepare a new folder")

    statistics = from_sums(total, products.astype(np.float64), len(train))
    files = {"train.npy": _npy(train), "val.npy": _npy(valid), "mean.npy": _npy(statistics.mean)}
    files |= {f"{part}-names.txt": "".join(f"{name}\n" for name in names[part]).encode() for part in names}
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in HASHED}
    told = [VERSION, options.size, options.keep_aspect, classes, hashes["train.npy"], hashes["val.npy"]]
    made = {
        "format": FORMAT,
        "version": VERSION,
        **asdict(options),
        "train": len(train),
        "val": len(valid),
        "bad": unusable,
        "left_out": len(source.left_out),
        "depth": depth,
        "source": source.fingerprint,
        "source_name": source.name,
        "held_out": asdict(source.held_out) if source.held_out else None,
        "decoder": decoder(),
        "Pillow": PIL.__version__,
        **statistics.colour(),
        "sha256": hashes,
        "fingerprint": hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        "classes": classes,
    }
    for name, content in files.items():
        write_atomically(target / name, content)
    write_atomically(target / COMPLETE, _json(made))
    _remove_traces(target)


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()
