"""Where labelled pictures lie: what a reader of one kind of data finds, and how training and validation come of it.

Readers (``folder``, ``cifar``, ``idx``, ...) return ``Found``. ``divided`` makes a ``Source`` of it, which
``convnet-prepare`` packs and ``splits.as_dataset`` opens for training, so that both take the same data and hold out the
same pictures.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..kernels import rng
from ..output.files import open_regular
from .dataset import F32, I32, U8, VAL_SPLIT, DataError, HeldOut, LeftOut
from .images import MAX_BYTES, depth_of
from .jpeg import BadImage


class Encoded(Protocol):
    """Where the bytes of one picture are: small, and may be handed to another process."""

    @property
    def file(self) -> str: ...

    @property
    def length(self) -> int: ...

    def read(self) -> bytes:
        """Raises ``BadImage`` where they cannot be had."""
        ...


class Place(NamedTuple):
    """A part of a file."""

    file: str
    offset: int
    length: int

    def read(self) -> bytes:
        if self.length > MAX_BYTES:
            raise BadImage(f"{self.length:,} bytes; the limit is {MAX_BYTES:,}")
        try:
            with open_regular(self.file) as file:
                file.seek(self.offset)
                raw = file.read(self.length)
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise BadImage(getattr(error, "strerror", None) or str(error)) from error
        if len(raw) != self.length:
            raise BadImage(f"{self.length:,} bytes expected, {len(raw):,} found: the file was cut short")
        return raw


# Encoded pictures; or the pixels themselves, (n, H, W, 3), or (n, H, W) where they are grey.
Images = Sequence[Encoded] | U8


class Files(Sequence[Place]):
    """Whole files below ``root``, by their names there and their lengths: a place each, made when it is asked for."""

    def __init__(self, root: str, names: Sequence[str], lengths: Sequence[int]) -> None:
        self.root, self.names, self.lengths = root, names, lengths

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | Sequence[Place]:
        if isinstance(index, slice):
            return Files(self.root, self.names[index], self.lengths[index])
        return Place(os.path.join(self.root, self.names[index]), 0, self.lengths[index])


@dataclass(frozen=True)
class Part:
    """Labelled pictures, in the source's order. ``names`` are what a person finds them by, relative to the source."""

    labels: I32  # (n,)
    names: Sequence[str]
    images: Images
    batches: tuple[tuple[int, int], ...] = ()  # the data batches that they came in: number and pictures of each

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Part:
        """Some of them; ``indices`` rise."""
        chosen = indices.tolist()
        names = [self.names[k] for k in chosen]
        ends = np.cumsum([0, *(count for _, count in self.batches)])
        counts = np.diff(np.searchsorted(indices, ends)).tolist()
        batches = tuple((number, count) for (number, _), count in zip(self.batches, counts, strict=True) if count)
        if isinstance(self.images, np.ndarray):
            return Part(self.labels[indices], names, self.images[indices], batches)
        if isinstance(self.images, Files):
            places: Images = Files(self.images.root, names, [self.images.lengths[k] for k in chosen])
        else:
            places = [self.images[k] for k in chosen]
        return Part(self.labels[indices], names, places, batches)


@dataclass(frozen=True)
class Found:
    """What lies at a path. ``parts``: "train", "val" and "test", those that there are; or "all" where nothing is split.

    ``kind`` and ``notes`` are told to the user. ``known`` is a digest of the contents where a reader has seen them.
    ``mean`` is the mean image that came with them, (3, side, side). ``missing`` tells of data batches that are not
    there, unless somebody says which are to be used.
    """

    kind: str
    classes: list[str]
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    known: str = ""
    mean: F32 | None = None
    missing: str = ""

    def all(self) -> Part | None:
        """What a share would be held out of."""
        return self.parts.get("train", self.parts.get("all"))


@dataclass(frozen=True)
class Source:
    """Training and validation pictures. Equal ``fingerprint`` means equal names, lengths, labels and parts."""

    name: str
    classes: list[str]
    train: Part
    valid: Part
    test: Part | None
    fingerprint: str  # of stores made from it
    trained_on: str  # the same for training on it directly
    notes: list[str]
    left_out: list[LeftOut]
    held_out: HeldOut | None
    mean: F32 | None = None


def ranged(found: Found, where: str, train: str | None, test: str | None) -> Found:
    """What was found at ``where`` with other data batches for training and validation: those that the ranges name,
    "1-4" or "5". Where one is None, training takes the batches that are for it, and validation those that are for it,
    or all others where none is; what is in neither is the test set.

    Raises ``DataError`` for batches that are not there.
    """
    if train is None and test is None:
        if found.missing:
            raise DataError(found.missing)
        return found
    pieces: list[tuple[int, Part]] = []
    validating = set()
    for name, part in found.parts.items():
        ends = np.cumsum([0, *(count for _, count in part.batches)]).tolist()
        for (number, _), start, end in zip(part.batches, ends, ends[1:], strict=False):
            pieces.append((number, part.take(np.arange(start, end))))
            validating |= {number} if name == "val" else set()
    pieces.sort(key=lambda piece: piece[0])
    numbers = [number for number, _ in pieces]
    if not numbers:
        named = f"--train-range {train}" if train else f"--test-range {test}"
        raise DataError(f"{where!r} has no numbered data batches, of which {named} could name some; leave it out")
    tests = _in_range("--test-range", test, numbers, where) if test else validating
    trains = _in_range("--train-range", train, numbers, where) if train else set(numbers) - validating - tests
    tests = tests if test else tests - trains or set(numbers) - trains
    if twice := trains & tests:
        raise DataError(
            f"data batch {min(twice)} of {where!r} is in both --train-range {train} and --test-range {test}: "
            "validation would know its pictures; let the ranges be apart"
        )
    if not tests:
        raise DataError(f"--train-range {train}: no data batch of {where!r} is left to validate with")
    rest = set(numbers) - trains - tests
    chosen = {"train": trains, "val": tests, "test": rest}
    parts = {name: _joined([part for k, part in pieces if k in of]) for name, of in chosen.items() if of}
    return replace(found, parts=parts, missing="")


def _in_range(option: str, text: str, numbers: Sequence[int], where: str) -> set[int]:
    first, last = batch_range(option, text)
    there = set(numbers)
    if absent := next((k for k in range(first, last + 1) if k not in there), None):
        raise DataError(f"{option} {text}: {where!r} has no data batch {absent}; there are {spans(there)}")
    return set(range(first, last + 1))


def batch_range(option: str, text: str) -> tuple[int, int]:
    """The first and the last number of "1-4" or "5". Raises ``ValueError``."""
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"{option} must be a number of a data batch or two, as 5 or 1-4, got {text!r:.80}")
    return first, last


def spans(numbers: set[int]) -> str:
    """Whole numbers in words: "1-4, 6"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _joined(parts: Sequence[Part]) -> Part:
    """One after another: batches of one reader, whose pictures are all pixels or all lie somewhere."""
    images = [part.images for part in parts]
    pixels = [each for each in images if isinstance(each, np.ndarray)]
    return Part(
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate(pixels) if pixels else [place for each in images for place in each],
        tuple(batch for part in parts for batch in part.batches),
    )


def divided(found: Found, where: str, *, seed: int, val_split: float = VAL_SPLIT) -> Source:
    """Training and validation pictures from what was found at ``where``.

    Where there are no validation pictures, those of a test set are taken; where there is none either, the share
    ``val_split`` of every class is held out, chosen by ``seed``. Raises ``DataError`` where there is nothing to
    train on.
    """
    parts, classes, known, notes = found.parts, found.classes, found.known, list(found.notes)
    train, valid, test = (parts.get(name) for name in ("train", "val", "test"))
    if train is None and (only := [name for name in ("val", "test") if name in parts]):
        raise DataError(
            f"{where!r} has pictures for {' and '.join(only)} and none to train on; put some into 'train', or evaluate "
            f"a run on these: convnet-eval RUN --data {where}"
        )
    if train is not None and valid is None and test is not None:
        valid, test = test, None
        notes.append(f"no validation pictures: the {len(valid):,} of the test set are taken as such")
    train = parts["all"] if train is None else train
    held_out = None
    if valid is None:
        held_out = HeldOut(contents(found), seed, val_split)
        kept, held = hold_out(train.labels, seed, val_split)
        if not len(held):
            raise DataError(
                f"{where!r} has no validation pictures, and none can be held out of {len(train):,} in "
                f"{len(classes)} classes with --val-split {val_split:g}; two of a class are needed at least, and "
                "a share of more than 0"
            )
        notes.append(
            f"no validation pictures: {len(held):,} of {len(train):,} are held out ({100 * val_split:.3g} % of each "
            f"class, chosen by the seed {seed})"
        )
        train, valid = train.take(kept), train.take(held)
        if known:
            known = hashlib.sha256(f"{known} {seed} {val_split!r}".encode()).hexdigest()
    if len(classes) < 2:
        named = f", {classes[0]!r}" if classes else ""
        raise DataError(f"{where!r} has {len(classes)} class{'' if classes else 'es'}{named}; at least 2 are needed")
    if not len(train) or not len(valid):
        raise DataError(f"{where!r} has no picture {'to train on' if len(valid) else 'to validate with'}")
    if len(empty := np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)):
        some = ", ".join(classes[k] for k in empty[:5].tolist()) + (", ..." if len(empty) > 5 else "")
        notes.append(f"{len(empty):,} of {len(classes):,} classes have no picture to train on: {some}")
    name = f"{found.kind}: {len(classes)} classes, {len(train):,} training and {len(valid):,} validation images"
    prints = (hashlib.sha256(known.encode()).hexdigest(), known) if known else _fingerprints(train, valid)
    return Source(name, classes, train, valid, test, *prints, notes, found.left_out, held_out, found.mean)


def contents(found: Found) -> str:
    """A digest of what a share would be held out of."""
    pool = found.all()
    return found.known or (_fingerprints(pool)[0] if pool is not None else "")


def _fingerprints(*parts: Part) -> tuple[str, str]:
    """``fingerprint`` and ``trained_on`` of training and validation pictures. They differ in their separators alone, as
    stores and runs of before do."""
    store, run = hashlib.sha256(), hashlib.sha256()
    for part in parts:
        images = part.images  # of a large folder it would take seconds to make every place
        lengths = images.lengths if isinstance(images, Files) else [image.length for image in images]
        for label, name, length in zip(part.labels.tolist(), part.names, lengths, strict=True):
            entry = os.fsencode(f"{name}\0{length}\0{label}")
            store.update(entry + b"\n")
            run.update(entry + b"\0")
        store.update(b"\n")
    return store.hexdigest(), run.hexdigest()


def hold_out(labels: I32, seed: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices that stay and those held out, both rising: of every class of two pictures or more ``share`` of it,
    rounded, at least one and not all. Decided by ``seed`` and the place in ``labels`` alone."""
    if not share:
        return np.arange(len(labels)), np.empty(0, np.int64)
    index = np.arange(len(labels))
    high, low = rng.philox(index, 0, 2, rng.SHUFFLE, seed)[:2].astype(np.uint64)  # 0 and 1 draw the orders of training
    drawn = high << np.uint64(32) | low
    order = np.lexsort((drawn, labels))  # by class, drawn within it
    counts = np.bincount(labels)
    wanted = np.where(counts > 1, np.clip(np.rint(counts * share).astype(np.int64), 1, np.maximum(counts - 1, 1)), 0)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    held = order[np.arange(len(labels)) - starts < np.repeat(wanted, counts)]
    return np.setdiff1d(index, held), np.sort(held)


def own_side(part: Part) -> int | None:
    """The side of square pictures that lie in memory; None where they have any sizes."""
    if not isinstance(part.images, np.ndarray) or part.images.shape[1] != part.images.shape[2]:
        return None
    return int(part.images.shape[1])


def grey_bits(part: Part) -> int | None:
    """How many bits the grey values of 16-bit pictures take (``images.depth_of``); None where there are none."""
    if isinstance(part.images, np.ndarray):
        return None
    others = [k for k, name in enumerate(part.names) if not name.lower().endswith((".jpg", ".jpeg"))]

    def read(k: int) -> bytes:
        """All of a picture, but of a PNG file only what shows that it has 8 bits or fewer."""
        image = part.images[others[k]]
        if isinstance(image, Place) and image.file.lower().endswith(".png") and image.length > 64:
            head = image._replace(length=64).read()
            if head.startswith(b"\x89PNG") and head[24] <= 8:  # the bit depth
                return head
        return image.read()

    return depth_of(read, len(others)) if others else None
