"""What the readers of published formats have in common: labels become classes, parts are told by names, and memory is
taken only where there is some."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..output.files import printable
from .cache import free_memory
from .dataset import I32, DataError
from .labels import role
from .source import Part

T = TypeVar("T")

HASHED = 256  # pictures at a time
LOOKED_AT = 100  # entries of a folder, to know of what kind its files are


def words(name: str) -> list[str]:
    """What a name is made of: "x_train.npy" gives x, train and npy."""
    return re.split(r"[-_. ]+", name.lower())


def part_of(names: Iterable[str]) -> str | None:
    """ "train", "val" or "test": what the first of ``names`` means that is the name of a part."""
    return next((part for name in names if (part := role(name))), None)


def settled(parts: dict[str, T], where: str) -> dict[str, T]:
    """What is called by no part, "all", is for training where there are others. Raises ``DataError`` beside "train"."""
    if "all" not in parts or len(parts) == 1:
        return parts
    if "train" in parts:
        raise DataError(
            f"{where}: beside 'train' there are pictures that nothing says the purpose of; name or remove them"
        )
    return {"train" if part == "all" else part: found for part, found in parts.items()}


def check_room(needed: int, where: str, instead: str = ", or write the pictures as files into class folders") -> None:
    """Raises ``DataError`` where so many bytes are not free; ``instead``: what helps beside a larger machine."""
    if needed > (free := free_memory()):
        raise DataError(
            f"{where}: takes {needed / 1e9:.2f} GB of memory to read, and {free / 1e9:.2f} GB are free; use a machine "
            f"with more{instead}"
        )


def shards(root: Path, suffix: str) -> list[tuple[str | None, str]]:
    """The files of that suffix that make up the data set at ``root``: their parts as their names say it, and their
    names relative to ``root``, sorted. They lie in ``root``, in "data", or in folders of the parts' names in either.

    Raises ``OSError``.
    """
    found = _files(root, suffix) + _files(root / "data", suffix, "data/")
    for folder in (root, root / "data"):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if (part := part_of([name])) and (folder / name).is_dir():
                below = f"{(folder / name).relative_to(root)}/"
                found += [(part, file) for _, file in _files(folder / name, suffix, below)]
    return sorted(found, key=lambda entry: entry[1])


def _files(folder: Path, suffix: str, below: str = "") -> list[tuple[str | None, str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        if not any(entry.name.lower().endswith(suffix) for entry in islice(entries, LOOKED_AT)):
            return []
    names = [name for name in os.listdir(folder) if name.lower().endswith(suffix) and not name.startswith(".")]
    return [(part_of(words(name)), below + name) for name in names if (folder / name).is_file()]


def numbered(
    found: Mapping[str, NDArray[Any] | Sequence[str]], names: Mapping[int, str], where: str
) -> tuple[list[str], dict[str, I32], list[str]]:
    """Classes, the labels of every part as numbers of them, and notes for the user, from labels as files have them:
    integers (n,), or texts.

    Where all integers have one of ``names``, these are the classes, also those without a picture; else they are the
    numbers that occur, with zeros in front so that they sort as numbers do. A part that has only -1, which stands for
    "not known", is left out. Raises ``DataError`` for other labels below 0, or where no picture is left.
    """
    integers: dict[str, NDArray[np.int64]] = {}
    texts: dict[str, Sequence[str]] = {}
    notes = []
    for part, labels in found.items():
        if not isinstance(labels, np.ndarray):
            texts[part] = labels
        elif len(labels) and (labels == -1).all():
            notes.append(f"{part}: its {len(labels):,} pictures have no labels (they are -1) and are left out")
        elif len(labels):
            integers[part] = _int64(labels, f"{where}, {part}")
    if texts:
        texts |= {part: [str(label) for label in labels.tolist()] for part, labels in integers.items()}
        for part, said in texts.items():
            if bare := [k for k, text in enumerate(said) if not text.strip()]:
                raise DataError(f"{where}, {part}: the label of picture {bare[0]:,} is empty; leave the picture out")
        shown = {text: printable(text.strip()) for text in {text for of in texts.values() for text in of}}
        classes = sorted(set(shown.values()))
        number = {name: k for k, name in enumerate(classes)}
        table = {text: number[name] for text, name in shown.items()}
        return (
            classes,
            {part: np.array([table[text] for text in of], np.int32) for part, of in texts.items() if of},
            notes,
        )
    if not integers:
        raise DataError(f"{where}: no picture with a label; {' '.join(notes) or 'it is empty'}")
    used = np.unique(np.concatenate(list(integers.values())))
    if names and names.keys() >= set(used.tolist()):
        numbers = sorted(names)
        classes = _distinct([(k, printable(names[k].strip()) or str(k)) for k in numbers])
    else:
        if names:
            strange = next(k for k in used.tolist() if k not in names)
            notes.append(f"there are names for {len(names)} classes and none for label {strange}: numbers are used")
        numbers = used.tolist()
        classes = [f"{k:0{len(str(numbers[-1]))}}" for k in numbers]
    return (
        classes,
        {part: np.searchsorted(numbers, labels).astype(np.int32) for part, labels in integers.items()},
        notes,
    )


def digest(classes: Sequence[str], parts: Mapping[str, Part]) -> str:
    """Of classes, labels and pixels: equal for equal data, wherever it came from."""
    known = hashlib.sha256("\0".join(classes).encode())
    for name, part in sorted(parts.items()):
        assert isinstance(part.images, np.ndarray)
        known.update(f"\n{name} {part.images.shape} ".encode() + part.labels.tobytes())
        for at in range(0, len(part), HASHED):
            known.update(np.ascontiguousarray(part.images[at : at + HASHED]).data)
    return known.hexdigest()


def _int64(labels: NDArray[Any], where: str) -> NDArray[np.int64]:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > np.iinfo(np.int64).max:
        strange = lowest if lowest < 0 else highest
        raise DataError(
            f"{where}: label {strange} of picture {int(np.argmax(labels == strange)):,}; labels are 0, 1, ..."
        )
    return labels.astype(np.int64)


def _distinct(named: list[tuple[int, str]]) -> list[str]:
    """Names of which no two are equal: to those that occur twice their number is added."""
    counts = Counter(name for _, name in named)
    return [f"{name} ({k})" if counts[name] > 1 else name for k, name in named]
