"""What ``convnet-prepare`` reads from: where every image lies, so that any order can be read without unpacking.

The ILSVRC-2012 archives are as published at https://image-net.org: a tar file of one tar file per class for training,
a flat one for validation. Only their headers are walked; members are data to be checked, and nothing in them is ever
created as a file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..output.files import open_regular
from .cifar import is_cifar_folder, open_cifar
from .dataset import I32, LAYOUT, DataError
from .folder import scan_folder
from .images import MAX_BYTES, SUFFIXES
from .jpeg import BadImage

TRAIN_TAR, VALID_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = ("synsets.txt", "classes.txt")
ACCEPTED = (
    f"convnet-prepare accepts a folder with {LAYOUT}, a folder with {TRAIN_TAR}, {VALID_TAR} and {TRUTH}, and a "
    "CIFAR-10 archive or folder"
)
MAX_HEADER = 2**20  # bytes of a long name or of pax records; tarfile would read any number
MAX_TEXT = 10 * 2**20

Place = tuple[str, int, int]  # file, offset, length


@dataclass(frozen=True)
class Part:
    """The images of one split, in the source's order."""

    labels: I32  # (n,)
    names: list[str]  # what a person may find each by
    places: list[Place] | NDArray[np.uint8]  # of encoded images; or the pixels themselves, uint8 (n, 32, 32, 3)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """``name`` is one line for the user; equal ``fingerprint`` means equal names, lengths and labels."""

    name: str
    classes: list[str]
    train: Part
    valid: Part
    fingerprint: str


def read_place(place: Place) -> bytes:
    """The bytes of an encoded image. Raises ``BadImage`` where they cannot be had."""
    path, offset, length = place
    if length > MAX_BYTES:
        raise BadImage(f"{length:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        with open_regular(path) as file:
            file.seek(offset)
            raw = file.read(length)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    if len(raw) != length:
        raise BadImage(f"{length:,} bytes expected, {len(raw):,} found: the file was cut short")
    return raw


def open_source(path: Path) -> Source:
    """Recognises what lies at ``path`` and lists its images. Raises ``DataError``."""
    try:
        if path.is_file() or is_cifar_folder(path):
            return _cifar(path)
        if not path.is_dir():
            raise DataError(f"there is no {str(path)!r}; {ACCEPTED}")
        if (path / TRAIN_TAR).exists() or (path / VALID_TAR).exists():
            return _ilsvrc(path)
        if (path / "store.json").exists():
            raise DataError(f"{str(path)!r} is prepared already; train on it with: convnet-train {path}")
        if (path / "train").is_dir() or (path / "val").is_dir():
            return _folder(path)
    except (OSError, ValueError) as error:  # no permission, a name too long, a null character
        raise DataError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    raise DataError(f"{str(path)!r} is a folder, but not of a known kind; {ACCEPTED}")


def _source(kind: str, classes: list[str], train: Part, valid: Part, known: str = "") -> Source:
    digest = hashlib.sha256(known.encode())
    for part in () if known else (train, valid):
        for label, name, (_, _, length) in zip(part.labels.tolist(), part.names, part.places, strict=True):
            digest.update(f"{name}\0{length}\0{label}\n".encode(errors="surrogateescape"))
        digest.update(b"\n")
    counts = f"{len(train):,} training and {len(valid):,} validation images"
    return Source(f"{kind}: {len(classes)} classes, {counts}", classes, train, valid, digest.hexdigest())


def _cifar(path: Path) -> Source:
    data = open_cifar(path, size=32)
    train, valid = (
        Part(
            split.labels,
            [split.name(k) for k in range(len(split))],
            np.stack([split.image(k) for k in range(len(split))]),
        )
        for split in (data.train, data.valid)
    )
    return _source(data.name.partition(":")[0], data.classes, train, valid, data.fingerprint)


def _folder(root: Path) -> Source:
    classes, *splits = scan_folder(root)
    parts = []
    for part, files in zip(("train", "val"), splits, strict=True):
        found = [(label, file, length) for label, listed in enumerate(files) for file, length in listed]
        names = [f"{part}/{classes[label]}/{file}" for label, file, _ in found]
        places = [(os.path.join(root, name), 0, entry[2]) for name, entry in zip(names, found, strict=True)]
        parts.append(Part(np.array([label for label, _, _ in found], np.int32), names, places))
    return _source("image folder", classes, parts[0], parts[1])


def _ilsvrc(root: Path) -> Source:
    for name in (TRAIN_TAR, VALID_TAR, TRUTH):
        if not (root / name).is_file():
            raise DataError(f"{str(root)!r} has no file {name!r}; {ACCEPTED}")
    archives = {name.removesuffix(".tar"): (at, size) for name, at, size in _members(root / TRAIN_TAR, (".tar",))}
    classes = sorted(archives)
    if len(classes) < 2:
        raise DataError(f"{str(root / TRAIN_TAR)!r} holds {len(classes)} tar files of classes, at least 2 are needed")
    train = []
    for label, name in enumerate(classes):
        prefix = f"{TRAIN_TAR}/{name}.tar"
        found = sorted(_members(root / TRAIN_TAR, SUFFIXES, *archives[name], f", member '{name}.tar'"))
        if not found:
            raise DataError(f"{str(root / TRAIN_TAR)!r}, member '{name}.tar': no .jpg, .jpeg or .png file in it")
        train += [(label, f"{prefix}/{image}", at, size) for image, at, size in found]

    images = sorted(_members(root / VALID_TAR, SUFFIXES))
    labels = _truth(root, classes)
    if len(labels) != len(images) or not labels:
        raise DataError(
            f"{str(root / TRUTH)!r} has {len(labels):,} lines for the {len(images):,} images of {VALID_TAR}; there "
            "must be one line for each"
        )
    valid = [(label, f"{VALID_TAR}/{name}", at, size) for label, (name, at, size) in zip(labels, images, strict=True)]
    parts = []
    for file, listed in ((str(root / TRAIN_TAR), train), (str(root / VALID_TAR), valid)):
        numbers = np.array([label for label, *_ in listed], np.int32)
        parts.append(Part(numbers, [name for _, name, *_ in listed], [(file, at, size) for *_, at, size in listed]))
    return _source("ILSVRC-2012 archives", classes, parts[0], parts[1])


def _truth(root: Path, classes: list[str]) -> list[int]:
    """The labels of the validation images: each line is a WordNet id, or the number of one in synsets.txt."""
    labels = {name: label for label, name in enumerate(classes)}
    lines = _lines(root / TRUTH)
    if all(line.isdecimal() for line in lines):
        table = next((root / name for name in SYNSETS if (root / name).is_file()), None)
        if table is None:
            raise DataError(
                f"{str(root / TRUTH)!r} has class numbers, and nothing says which WordNet ids they stand for (it is "
                f"not their order); write the ids into {str(root / SYNSETS[0])!r}, line k for number k, as in the "
                "development kit's meta.mat"
            )
        synsets = [line.split()[0] for line in _lines(table)]
        if wrong := [line for line in lines if len(line) > 9 or not 1 <= int(line) <= len(synsets)]:
            raise DataError(f"{str(root / TRUTH)!r}: class number {wrong[0]:.20}; {table.name} has 1 to {len(synsets)}")
        lines = [synsets[int(line) - 1] for line in lines]
    if unknown := [line for line in lines if line not in labels]:
        raise DataError(f"class {unknown[0]!r:.60} of {str(root / TRUTH)!r} is not in {TRAIN_TAR}; the ids must agree")
    return [labels[line] for line in lines]


def _lines(path: Path) -> list[str]:
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_TEXT + 1)
    if len(text) > MAX_TEXT:
        raise DataError(f"{str(path)!r}: larger than {MAX_TEXT:,} bytes, which no list of classes is")
    return [line.strip() for line in text.splitlines() if line.strip()]


class _Window:
    """What ``tarfile`` needs of a file: a part of it, in which offsets begin at 0. Reads are limited."""

    def __init__(self, file: Any, start: int, size: int, where: str) -> None:
        self._file, self._start, self._size, self._where, self._at = file, start, size, where, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        if offset < 0:
            raise DataError(f"{self._where}: a header points in front of the archive; it is damaged, get it again")
        self._at = offset
        return offset

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise DataError(f"{self._where}: a header of {size:,} bytes; no image archive has one of {MAX_HEADER:,}")
        self._file.seek(self._start + self._at)
        raw: bytes = self._file.read(max(0, min(size, self._size - self._at)))
        self._at += len(raw)
        return raw


def _members(
    path: Path, suffixes: tuple[str, ...], start: int = 0, size: int | None = None, inside: str = ""
) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the file and length of the members of a plain tar archive that end so.

    The archive takes up ``size`` bytes of the file from ``start`` on (default: all). Links, devices, folders and files
    with odd names (slashes among them) are left out: the published archives have none. Raises ``DataError`` for an
    archive that is damaged, cut short, or has a name twice.
    """
    where, seen = f"{str(path)!r}{inside}", set()
    size = path.stat().st_size if size is None else size
    try:
        with open_regular(path) as file:
            window: Any = _Window(file, start, size, where)
            if window.read(512) == bytes(512):  # no member: the tarfile of Python 3.10 would step in front of the first
                return
            window.seek(0)
            with tarfile.open(fileobj=window, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        raise DataError(f"{where}: {member.name!r:.80} reaches beyond the archive's end; get it again")
                    name = member.name.removeprefix("./")
                    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
                    if not member.isreg() or member.issparse() or not plain or not name.lower().endswith(suffixes):
                        continue
                    if name in seen:
                        raise DataError(f"{where}: {name!r} occurs twice")
                    seen.add(name)
                    yield name, start + member.offset_data, member.size
                # tarfile takes a damaged header for the end; the true end is a block of zeros
                window.seek(archive.offset)
                if window.read(512) != bytes(512):
                    raise DataError(f"{where}: damaged or cut short behind byte {archive.offset:,}; get it again")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not a readable, uncompressed tar archive ({error}); get it again") from error
