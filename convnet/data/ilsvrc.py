"""The ILSVRC-2012 archives as published at https://image-net.org: a tar file of one tar file per class for training, a
flat one for validation, and the labels of the latter. They are read where they lie."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..output.files import open_regular
from .dataset import DataError
from .images import SUFFIXES
from .source import Found, Part, Place
from .tarred import walk

TRAIN_TAR, VALID_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = ("synsets.txt", "classes.txt")
NEEDED = f"needed are {TRAIN_TAR}, {VALID_TAR} and {TRUTH} in one folder"
MAX_TEXT = 10 * 2**20
# What the numbers 1 to 10 stand for, by ILSVRC2012_ID in the development kit's meta.mat. Where all the published
# classes are there, these tell whether a table is in that order.
PUBLISHED = 1000
FIRST = ("n02119789", "n02100735", "n02110185", "n02096294", "n02102040", "n02066245", "n02509815", "n02124075",
         "n02417914", "n02123394")  # fmt: skip
RIGHT_ORDER = (
    "the numbers are ILSVRC2012_ID of data/meta.mat in ILSVRC2012_devkit_t12.tar.gz, and line k must be the WNID with "
    "number k (Caffe's synsets.txt and Kaggle's LOC_synset_mapping.txt are in alphabetical order)"
)


def recognises(path: Path, names: Sequence[str]) -> bool:
    return path.name in (TRAIN_TAR, VALID_TAR) or TRAIN_TAR in names or VALID_TAR in names


def read(path: Path) -> Found:
    """The archives in the folder ``path``, or beside the file ``path``, which is one of them.

    Raises ``DataError`` for archives that are missing, damaged or cut short, and for labels that do not belong to them.
    """
    root = path if path.is_dir() else path.parent
    for name in (TRAIN_TAR, VALID_TAR, TRUTH):
        if not (root / name).is_file():
            raise DataError(f"{str(root)!r} has no file {name!r}; {NEEDED}")
    archives = {name.removesuffix(".tar"): (at, size) for name, at, size in _members(root / TRAIN_TAR, (".tar",))}
    classes = sorted(archives)
    if len(classes) < 2:
        raise DataError(f"{str(root / TRAIN_TAR)!r} holds {len(classes)} tar files of classes, at least 2 are needed")
    labels = _truth(root, classes)
    images = sorted(_members(root / VALID_TAR, SUFFIXES))
    if len(labels) != len(images) or not labels:
        raise DataError(
            f"{str(root / TRUTH)!r} has {len(labels):,} lines for the {len(images):,} images of {VALID_TAR}; there "
            "must be one line for each"
        )
    train: list[tuple[str, int, int]] = []
    counts = []
    for name in classes:
        found = sorted(_members(root / TRAIN_TAR, SUFFIXES, *archives[name], f", member '{name}.tar'"))
        if not found:
            raise DataError(f"{str(root / TRAIN_TAR)!r}, member '{name}.tar': no picture in it ({', '.join(SUFFIXES)})")
        counts.append(len(found))
        train += [(f"{name}.tar/{image}", at, size) for image, at, size in found]
    parts = {
        "train": _part(root / TRAIN_TAR, train, np.repeat(np.arange(len(classes)), counts).tolist()),
        "val": _part(root / VALID_TAR, images, labels),
    }
    return Found("ILSVRC-2012 archives", classes, parts)


def _part(file: Path, members: list[tuple[str, int, int]], labels: list[int]) -> Part:
    places = [Place(str(file), at, size) for _, at, size in members]
    return Part(np.array(labels, np.int32), [f"{file.name}/{name}" for name, *_ in members], places)


def _members(
    path: Path, suffixes: tuple[str, ...], start: int = 0, size: int | None = None, inside: str = ""
) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the file and length of the members that end so. Links, devices and files with odd names (slashes
    among them) are left out: the published archives have none."""
    for name, at, length, plain in walk(path, start, size, inside):
        if plain and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and name.lower().endswith(suffixes):
            yield name, at, length


def _truth(root: Path, classes: list[str]) -> list[int]:
    """The labels of the validation images: each line is a WordNet id, or the number of one in synsets.txt."""
    labels = {name: label for label, name in enumerate(classes)}
    lines = _lines(root / TRUTH)
    if all(line.isdecimal() for line in lines):
        table = next((root / name for name in SYNSETS if (root / name).is_file()), None)
        if table is None:
            raise DataError(
                f"{str(root / TRUTH)!r} has class numbers, and nothing says which WordNet ids they stand for (it is "
                f"not their order); write the ids into {str(root / SYNSETS[0])!r}: {RIGHT_ORDER}"
            )
        synsets = [line.split()[0] for line in _lines(table)]
        _check_order(table, synsets)
        if wrong := [line for line in lines if len(line) > 9 or not 1 <= int(line) <= len(synsets)]:
            raise DataError(f"{str(root / TRUTH)!r}: class number {wrong[0]:.20}; {table.name} has 1 to {len(synsets)}")
        lines = [synsets[int(line) - 1] for line in lines]
    if unknown := [line for line in lines if line not in labels]:
        raise DataError(f"class {unknown[0]!r:.60} of {str(root / TRUTH)!r} is not in {TRAIN_TAR}; the ids must agree")
    return [labels[line] for line in lines]


def _check_order(table: Path, synsets: list[str]) -> None:
    """Raises ``DataError`` for a table that is not in the order of the development kit, as far as it can be known."""
    if len(synsets) == PUBLISHED and set(FIRST) <= set(synsets):
        if wrong := [k for k, name in enumerate(FIRST) if synsets[k] != name]:
            k = wrong[0]
            raise DataError(
                f"{str(table)!r} is not in the order of the class numbers: line {k + 1} is {synsets[k]!r:.40}, and "
                f"number {k + 1} is {FIRST[k]!r}; {RIGHT_ORDER}"
            )
    elif len(synsets) > 2 and synsets == sorted(synsets):
        raise DataError(
            f"{str(table)!r} is in alphabetical order, which is not that of the class numbers; {RIGHT_ORDER}"
        )
    if len(set(synsets)) < len(synsets):
        twice = next(name for k, name in enumerate(synsets) if name in synsets[:k])
        raise DataError(f"{str(table)!r}: {twice!r:.40} occurs twice; every line is another class")


def _lines(path: Path) -> list[str]:
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", errors="replace") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if len(text) > MAX_TEXT:
        raise DataError(f"{str(path)!r}: larger than {MAX_TEXT:,} bytes, which no list of classes is")
    return [line.strip() for line in text.splitlines() if line.strip()]
