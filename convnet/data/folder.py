"""Image folders: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from itertools import chain
from pathlib import Path

import numpy as np

from .dataset import LAYOUT, U8, DataError, DataSet, placed
from .images import SUFFIXES, load_square
from .jpeg import BadImage

# A split with more bad images than this share of it is an error, but a few are forgiven in the smallest one.
BAD_SHARE, BAD_FORGIVEN = 0.001, 10

_log = logging.getLogger("convnet.data")


class FolderSplit:
    """The images below ``root/CLASS``, classes in the given order, files in the order of their names.

    A file that cannot be decoded is replaced, always alike, by the next readable one of its class (round the corner),
    so that labels stay true; each is warned about once and kept in ``bad`` (path -> reason). ``DataError`` when more
    than 0.1 % of the split and more than 10 are bad, or when a class has no readable image left.
    """

    def __init__(self, root: Path, classes: list[str], files: list[list[tuple[str, int]]], *, size: int) -> None:
        self.size, self._root, self._classes = size, root, classes
        counts = [len(names) for names in files]
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self._names = [name for names in files for name, _ in names]
        self._lock = threading.Lock()
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._classes[self.labels[index]], self._names[index])

    def image(self, index: int, out: U8 | None = None) -> U8:
        label = int(self.labels[index])
        start, end = self._starts[label], self._starts[label + 1]
        for candidate in chain(range(index, end), range(start, index)):
            path = self.name(candidate)
            if path in self.bad:
                continue
            try:
                return placed(load_square(path, self.size), out)
            except BadImage as error:
                self._report(path, str(error))
        raise DataError(f"class {self._classes[label]!r} in {str(self._root)!r} has no readable image")

    def _report(self, path: str, reason: str) -> None:
        with self._lock:
            if path in self.bad:
                return
            self.bad[path] = reason
            _log.warning("bad image %r: %s; the next one of its class takes its place", path, reason)
            if len(self.bad) > max(BAD_FORGIVEN, BAD_SHARE * len(self)):
                raise DataError(
                    f"{len(self.bad)} of {len(self):,} images in {str(self._root)!r} cannot be read, the last one "
                    f"{path!r} ({reason}); remove or repair them"
                )


Listed = list[list[tuple[str, int]]]  # of every class, its files' names and lengths


def scan_folder(root: Path) -> tuple[list[str], Listed, Listed]:
    """The classes of an image folder, and the files of its training and of its validation images.

    Raises ``DataError`` for a missing split, a class only in val, an empty class.
    """
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise DataError(f"{str(root)!r} has no folder {part!r}; an image folder has {LAYOUT}")
    train, valid = _scan(root / "train"), _scan(root / "val")
    classes = sorted(train)
    if len(classes) < 2:
        raise DataError(f"{str(root / 'train')!r} has {len(classes)} class folders, at least 2 are needed: {LAYOUT}")
    if unknown := sorted(set(valid) - set(train)):
        raise DataError(
            f"class {unknown[0]!r} is in {str(root / 'val')!r} but not in {str(root / 'train')!r}; the names must agree"
        )
    if not valid:
        raise DataError(f"{str(root / 'val')!r} has no class folders; an image folder has {LAYOUT}")
    return classes, [train[name] for name in classes], [valid.get(name, []) for name in classes]


def open_folder(root: Path, *, size: int) -> DataSet:
    """The image folder at ``root``. Raises ``DataError`` as ``scan_folder`` does."""
    classes, train, valid = scan_folder(root)
    digest = hashlib.sha256()
    splits = []
    for part, files in (("train", train), ("val", valid)):
        for label, name in enumerate(classes):
            for file, length in files[label]:
                digest.update(os.fsencode(f"{part}/{name}/{file}\0{length}\0{label}\0"))
        splits.append(FolderSplit(root / part, classes, files, size=size))
    counts = f"{len(splits[0]):,} training and {len(splits[1]):,} validation images"
    return DataSet(
        name=f"image folder: {len(classes)} classes, {counts}",
        classes=classes,
        train=splits[0],
        valid=splits[1],
        fingerprint=digest.hexdigest(),
    )


def _scan(root: Path) -> dict[str, list[tuple[str, int]]]:
    """Class name -> (file name, bytes) of its images, by name. Goes exactly one level deep: no link can make a loop."""
    try:
        with os.scandir(root) as entries:
            folders = [entry for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry)]
        found = {folder.name: _images(folder.path) for folder in folders}
    except OSError as error:
        raise DataError(f"cannot read {error.filename!r}: {error.strerror}") from error
    for folder in folders:
        if not found[folder.name]:
            raise DataError(f"class folder {folder.path!r} has no .jpg, .jpeg or .png file; add some or remove it")
    return found


def _images(folder: str) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        names = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")]
    return sorted((entry.name, entry.stat().st_size) for entry in names if os.path.isfile(entry))
