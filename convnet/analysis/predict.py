"""Loose image files as a split, so that they take the same way through a network as a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data import BadImage, load_square
from ..data.dataset import U8, placed
from ..data.images import SUFFIXES


def image_files(names: Iterable[str], stdin: Iterable[str], bad: Callable[[str, str], None]) -> Iterator[str]:
    """The files meant by ``names``, in their order.

    A file stands for itself, whatever its name ends in; a folder for the .jpg, .jpeg and .png files in it and in the
    folders below it, sorted by path, without hidden ones and without following links to folders; ``-`` for the names
    in ``stdin``, one a line, each of which may again be a file or a folder. ``bad`` is told the name of a folder in
    which no image is, and why.
    """
    for name in names:
        if name == "-":
            listed = (line.rstrip("\r\n") for line in stdin)
            yield from image_files((line for line in listed if line), (), bad)
        elif Path(name).is_dir():
            if not (found := sorted(_below(name))):
                bad(name, "a folder without .jpg, .jpeg or .png files")
            yield from found
        else:
            yield name


def _below(folder: str) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(path, name)


class ImageFiles:
    """Image files as a ``data.Split`` without labels (all 0), each brought to ``size`` as training images are.

    A file that cannot be read is an all-black image, so that the others keep their places; ``bad`` says which those
    were (index -> reason), and their results mean nothing.
    """

    def __init__(self, files: Sequence[str], size: int) -> None:
        self.size, self._files = size, files
        self.labels = np.zeros(len(files), np.int32)
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def image(self, index: int, out: U8 | None = None) -> U8:
        try:
            return placed(load_square(self._files[index], self.size), out)
        except (BadImage, ValueError) as error:  # ValueError: a null character in the name
            self.bad[index] = str(error)
            return placed(np.zeros((self.size, self.size, 3), np.uint8), out)
