"""IDX files, packed with gzip or not: MNIST and all that is published like it (Fashion-MNIST, EMNIST, KMNIST, ...).

A file is two zero bytes, the type of its numbers, the rank, the shape as big-endian 32-bit numbers, and the numbers.
Described at http://yann.lecun.com/exdb/mnist/. Pictures are grey, (n, H, W), or in colour, (n, H, W, 3).
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..output.files import open_regular
from .dataset import DataError
from .published import check_room, digest, numbered, part_of, settled, words
from .source import Found, Part

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
INFLATION = 1100  # gzip cannot make more of a byte
PIECE = 2**20
MAX_NAMES = 2**20  # bytes of a file of class names
NAMES = ("classes.txt", "labels.txt", "class_names.txt", "label_names.txt")
# The words of a file's name that say what it holds, not of which set it is.
IMAGES, LABELS = ("images", "image", "imgs"), ("labels", "label")
FORM = {*IMAGES, *LABELS, "idx1", "idx3", "idx4", "ubyte", "idx", "gz", "idx1ubyte", "idx3ubyte"}


def recognises(path: Path, names: Sequence[str]) -> bool:
    if not names:
        return _shape(path) is not None
    return any(_shape(path / name) is not None for name in names if _is(name, IMAGES))


def read(path: Path) -> Found:
    """The sets in the folder ``path``, or the one that the file ``path`` belongs to.

    Raises ``DataError`` for files that are missing, damaged, or do not go together.
    """
    root = path if path.is_dir() else path.parent
    try:
        pairs = _pairs(root, None if path.is_dir() else path.name)
        loaded = {part: _pair(root, images, labels) for part, (images, labels) in pairs.items()}
        names, by = _class_names(root, next(iter(pairs.values()))[0])
    except OSError as error:
        where = error.filename or str(path)
        raise DataError(f"cannot read {where!r}: {error.strerror or error}") from error
    classes, labels, notes = numbered({part: labels for part, (_, labels) in loaded.items()}, names, repr(str(root)))
    if by:
        notes.append(f"the names of the classes are from {by!r}")
    parts = {}
    for part, of in labels.items():
        file, images = pairs[part][0], loaded[part][0]
        if "emnist" in words(file):
            images = images.swapaxes(1, 2)
            notes.append(f"{file!r}: EMNIST stores its pictures with rows and columns exchanged; they are put right")
        parts[part] = Part(of, [f"{file} {k}" for k in range(len(of))], images)
    return Found("IDX files", classes, parts, notes, known=digest(classes, parts))


def _is(name: str, kind: tuple[str, ...]) -> bool:
    return any(word in kind for word in words(name))


def _set(name: str) -> tuple[str, ...]:
    """What the files of pictures and of labels have in common: set and part."""
    return tuple(word for word in words(name) if word not in FORM)


def _pairs(root: Path, given: str | None) -> dict[str, tuple[str, str]]:
    """The files of pictures and of labels of every part."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name in sorted(os.listdir(root), key=lambda name: (not name.lower().endswith(".gz"), name)):
        kind = "images" if _is(name, IMAGES) else "labels" if _is(name, LABELS) else ""
        if kind and name not in NAMES and not name.startswith(".") and not (root / name).is_dir():
            found.setdefault(_set(name), {})[kind] = name  # the unpacked one, where both are there
    sets: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for key, files in found.items():
        part = part_of(key) or "all"
        sets.setdefault(tuple(word for word in key if part_of([word]) is None), {})[part] = files
    if given is not None:
        key = tuple(word for word in _set(given) if part_of([word]) is None)
        sets = {key: sets[key]} if key in sets else {}
    sets = {key: parts for key, parts in sets.items() if any("images" in files for files in parts.values())}
    if len(sets) != 1:
        some = ", ".join("-".join(key) or "(without a name)" for key in sets)
        what = (
            f"has {len(sets)} sets of IDX files ({some}); name a file of one" if sets else "has no IDX file of images"
        )
        raise DataError(f"{str(root)!r} {what}")
    (parts,) = sets.values()
    for files in parts.values():
        if missing := {"images", "labels"} - files.keys():
            (one,), (name,) = missing, files.values()
            raise DataError(
                f"{str(root / name)!r} has no file of {one} beside it; the two go together, and their names differ in "
                "'images' and 'labels' alone"
            )
    return settled({part: (files["images"], files["labels"]) for part, files in parts.items()}, repr(str(root)))


def _pair(root: Path, images_file: str, labels_file: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    images, labels = _array(root / images_file), _array(root / labels_file)
    where = repr(str(root / images_file))
    colour = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or 0 in images.shape[1:]:
        raise DataError(f"{where} has {images.dtype.name} {images.shape}; needed are bytes, (n, H, W) or (n, H, W, 3)")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{str(root / labels_file)!r} has {labels.dtype.name} {labels.shape}; needed is a whole number each"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{where} has {len(images):,} pictures, and {labels_file!r} {len(labels):,} labels; get them again"
        )
    return images, labels


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's contents, inflated where it is packed, which is the second value. Raises ``OSError``."""
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        inflated: Any = gzip.GzipFile(fileobj=file) if packed else file
        yield inflated, packed


def _shape(path: Path) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """What the header says, or None where there is none."""
    try:
        with _opened(path) as (file, _):
            return _header(file)
    except (OSError, EOFError, zlib.error, ValueError):
        return None


def _header(file: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 4:
        return None
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        return None
    return np.dtype(TYPES[start[2]]), tuple(np.frombuffer(sizes, ">u4").tolist())


def _array(path: Path) -> NDArray[Any]:
    """The numbers of a file. Memory is taken once the file is known to be long enough for them."""
    where = repr(str(path))
    try:
        with _opened(path) as (file, packed):
            header = _header(file)
            if header is None:
                raise DataError(f"{where} is no IDX file: it does not begin like one; get it again")
            dtype, shape = header
            wanted, length = dtype.itemsize * math.prod(shape), path.stat().st_size
            start = 4 + 4 * len(shape)
            if (wanted > length * INFLATION) if packed else (wanted != length - start):
                raise DataError(f"{where}: {length:,} bytes, where {shape} are {wanted + start:,}; get it again")
            check_room(wanted, where)
            raw = np.empty(wanted, np.uint8)
            done = 0
            while done < wanted and (read := file.readinto(raw[done : done + PIECE])):  # type: ignore[attr-defined]
                done += read
            if done < wanted or file.read(1):  # which looks at gzip's sum, too
                raise DataError(f"{where}: {'fewer' if done < wanted else 'more'} numbers than {shape}; get it again")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{where}: damaged or cut short ({error}); get it again") from error
    return raw.view(dtype).reshape(shape)


def _class_names(root: Path, images: str) -> tuple[dict[int, str], str]:
    """The names of the classes, by number, and the file that says so: EMNIST's, or one line each in their order."""
    mapping = f"{'-'.join(word for word in _set(images) if part_of([word]) is None)}-mapping.txt"
    for name in (mapping, *NAMES):
        if not (root / name).is_file():
            continue
        with open_regular(root / name) as file:
            lines = file.read(MAX_NAMES).decode("utf-8-sig", "replace").splitlines()
        if name != mapping:
            return dict(enumerate(line.strip() for line in lines if line.strip())), name
        rows = [line.split() for line in lines if re.fullmatch(r"\d{1,9}( \d{1,6})+", line.strip())]
        return {int(row[0]): "".join(chr(min(int(code), 0xFFFF)) for code in row[1:]) for row in rows}, name
    return {}, ""
