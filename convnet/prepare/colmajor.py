"""``convnet-prepare --format py-colmajor``: any source of images into data batches as cuda-convnet (2011) had them.

``data_batch_1``, ... are pickles of {"data": uint8 (3 S S, cases) in C order, "labels": a list}, validation pictures in
the last ones; ``batches.meta`` is one of {"data_mean": float32 (3 S S, 1) of the training pictures, "label_names",
"num_vis": 3 S S, ...}. They are written as Python 2's cPickle did in protocol 2: byte strings, and arrays under the
names that NumPy 1 had for what makes them. ``convnet.data.cifar`` reads them.
"""

from __future__ import annotations

import csv
import io
import re
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError
from ..data.cifar import TESTS
from ..data.dataset import U8, VAL_SPLIT, depth_lines, left_out_lines
from ..data.images import decode_square
from ..data.jpeg import BadImage
from ..data.published import check_room
from ..data.recognise import open_source
from ..data.source import Part, Source, grey_bits, own_side
from ..data.splits import PixelSplit
from ..data.store import MAX_SIZE
from ..output.console import Console, duration
from ..output.files import printable, write_atomically
from .prepare import locked, shuffled

PER_BATCH = 10_000
MOST_BYTES = 2**31 - 1  # of a byte string in protocol 2
META = "batches.meta"
OWN = re.compile(r"data_batch_\d+(\.tmp)?|batches\.meta\.tmp|bad\.csv(\.tmp)?")  # what an interrupted call leaves


@dataclass(frozen=True)
class Options:
    """``size`` None: as large as they are. ``per_batch`` None: ``PER_BATCH``, or as many as a file can have."""

    size: int | None = None
    per_batch: int | None = None
    seed: int = 0
    val_split: float | None = None

    def check(self) -> None:
        """Raises ``ValueError``."""
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"--size must be 1 to {MAX_SIZE}, got {self.size}")
        if self.per_batch is not None and self.per_batch < 1:
            raise ValueError(f"--per-batch must be at least 1, got {self.per_batch}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"--seed must be at least 0 and less than 2^64, got {self.seed}")
        if self.val_split is not None and not 0 < self.val_split < 1:
            raise ValueError(f"--val-split must be more than 0 and less than 1, got {self.val_split}")


def run(source_path: Path, target: Path, options: Options, workers: int, console: Console) -> int:
    """Writes the batches and returns the exit code. Interrupted, it begins anew when it is called again.

    Raises ``ValueError`` and ``DataError``.
    """
    options.check()
    if workers < 1:
        raise ValueError(f"-j must be at least 1, got {workers}")
    began = time.monotonic()
    share = VAL_SPLIT if options.val_split is None else options.val_split
    with console.waiting(f"looking through {source_path}"):
        source = open_source(source_path, seed=options.seed, val_split=share)
    if options.val_split is not None and source.held_out is None:
        console.warn(f"--val-split {share:g} changes nothing: the data has validation images of its own")
    bits = grey_bits(source.train)
    for line in (source.name, *source.notes, *depth_lines(bits), *left_out_lines(source.left_out)):
        console.say(line)
    size = options.size or own_side(source.train)
    if size is None:
        raise ValueError(f"{source_path} has pictures of any size; say with --size how large they are to be")
    fits = MOST_BYTES // (3 * size**2)
    most = options.per_batch or min(PER_BATCH, fits)
    batches = list(_batches(source, most, options.seed))
    largest = max(len(chosen) for _, chosen in batches)
    if largest > fits:
        raise ValueError(
            f"--per-batch: {largest:,} pictures of {size} x {size} are more than the 2 GB that such a file can have; "
            f"{fits:,} fit"
        )
    check_room(3 * 3 * size**2 * largest, f"{str(target)!r}, a data batch", ", or take a smaller --per-batch")
    try:
        with locked(target):
            _check_empty(target)
            _write(target, source, batches, _Pictures(size, bits or 16, workers), console)
    except OSError as error:
        raise DataError(
            f"cannot write {str(error.filename or target)!r}: {error.strerror or error}; repair this and run the same "
            "command again"
        ) from error
    finally:
        console.clear()
    console.say(
        f"prepared in {duration(time.monotonic() - began)}; train on it with: convnet-train {target} --order file"
    )
    return 0


def _batches(source: Source, most: int, seed: int) -> Iterator[tuple[Part, list[int]]]:
    """The pictures of every data batch: as they came, where they came in some; else training pictures are shuffled."""
    for part, order in ((source.train, shuffled(len(source.train), seed)), (source.valid, None)):
        if part.batches:
            start = 0
            for _, count in part.batches:
                yield part, list(range(start, start + count))
                start += count
        else:
            order = list(range(len(part))) if order is None else order
            for start in range(0, len(order), most):
                yield part, order[start : start + most]


def _check_empty(target: Path) -> None:
    names = sorted(path.name for path in target.iterdir())
    if META in names:
        raise ValueError(f"{target}: has data batches already; choose an empty or a new folder")
    if others := [name for name in names if not OWN.fullmatch(name)]:
        raise ValueError(f"{target}: not empty (it holds {others[0]!r}); choose an empty or a new folder")
    for name in names:
        (target / name).unlink()


class _Pictures:
    """Squares of ``size`` pixels, decoded by ``workers`` threads."""

    def __init__(self, size: int, depth: int, workers: int) -> None:
        self.size, self.depth, self.workers = size, depth, workers

    def read(self, part: Part, index: int) -> U8 | str:
        """A picture, uint8 (size, size, 3), or why there is none."""
        if isinstance(part.images, np.ndarray):
            return PixelSplit(part, size=self.size).image(index)
        try:
            return decode_square(io.BytesIO(part.images[index].read()), self.size, self.depth)
        except BadImage as error:
            return str(error)

    def all(self, part: Part, chosen: Sequence[int]) -> Iterator[U8 | str]:
        pool = ThreadPoolExecutor(self.workers)
        try:
            yield from pool.map(partial(self.read, part), chosen)
        finally:
            pool.shutdown(cancel_futures=True)


def _write(
    target: Path,
    source: Source,
    batches: Sequence[tuple[Part, list[int]]],
    pictures: _Pictures,
    console: Console,
) -> None:
    size, done, in_all = pictures.size, 0, sum(len(chosen) for _, chosen in batches)
    total, seen = np.zeros((size, size, 3), np.int64), 0
    used = {"train": np.zeros(len(source.classes), np.int64), "val": np.zeros(len(source.classes), np.int64)}
    bad: list[tuple[str, str]] = []
    number = tests = 0
    for part, chosen in batches:
        name = "train" if part is source.train else "val"
        images = np.empty((len(chosen), size, size, 3), np.uint8)
        labels: list[int] = []
        for index, image in zip(chosen, pictures.all(part, chosen), strict=True):
            done += 1
            if isinstance(image, str):
                bad.append((printable(part.names[index]), image))
                continue
            images[len(labels)] = image
            labels.append(int(part.labels[index]))
            console.progress(done, in_all, "preparing")
        if not labels:
            continue
        images = images[: len(labels)]
        used[name] += np.bincount(labels, minlength=len(source.classes))
        if name == "train":
            total, seen = total + images.sum(axis=0, dtype=np.int64), seen + len(images)
        number, tests = number + 1, tests + (name == "val")
        columns = np.ascontiguousarray(images.transpose(3, 1, 2, 0).reshape(3 * size**2, len(images)))
        write_atomically(target / f"data_batch_{number}", pickled({"data": columns, "labels": labels}))
    if bad:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("source", "reason"), *bad])
        write_atomically(target / "bad.csv", table.getvalue().encode())
        console.warn(f"{len(bad):,} of {in_all:,} images cannot be used; {target / 'bad.csv'} lists them")
    empty = np.flatnonzero((np.bincount(source.train.labels, minlength=len(source.classes)) > 0) & (used["train"] == 0))
    if len(empty) or not tests:
        what = f"class {source.classes[empty[0]]!r} has no usable training" if len(empty) else "no usable validation"
        raise DataError(f"{what} image, see {str(target / 'bad.csv')!r}; repair the source and prepare a new folder")
    mean = (total / seen).astype(np.float32).transpose(2, 0, 1).reshape(-1, 1)
    meta = {
        "data_mean": np.ascontiguousarray(mean),
        "label_names": [name.encode() for name in source.classes],
        "num_vis": 3 * size**2,
        "num_cases_per_batch": max(len(chosen) for _, chosen in batches),
        TESTS: tests,
    }
    write_atomically(target / META, pickled(meta))  # last: with it the folder is whole


# ---- pickles as Python 2 wrote them ----


def pickled(value: dict[str, Any]) -> bytes:
    """A dict of arrays of uint8 and float32, whole numbers, and lists of whole numbers or of byte strings, in protocol
    2 with the opcodes of cPickle: Python 2 and 3 read it, with any NumPy."""
    entries = b"".join(_string(key.encode()) + _opcodes(entry) for key, entry in value.items())
    return b"\x80\x02}(" + entries + b"u."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, bytes):
        return _string(value)
    return _number(value)


def _number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def _string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def _array(value: np.ndarray[Any, Any]) -> bytes:
    """An empty array that is then told version, shape, dtype, order and bytes."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _number(0) + b"\x85" + _string(b"b") + b"\x87R"
    order, code = (b"|", b"u1") if value.dtype == np.uint8 else (b"<", b"f4")
    dtype = b"cnumpy\ndtype\n" + _string(code) + _number(0) + _number(1) + b"\x87R"
    dtype += b"(" + _number(3) + _string(order) + b"NNN" + _number(-1) + _number(-1) + _number(0) + b"tb"
    shape = b"".join(map(_number, value.shape)) + b"\x86"
    raw = value.astype((order + code).decode()).tobytes()
    return made + b"(" + _number(1) + shape + dtype + b"\x89" + _string(raw) + b"tb"
