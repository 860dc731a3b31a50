"""Loose image files as a split, so that they take the same way through a network as a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data import BadImage, DataError, load_square
from ..data.dataset import U8, placed
from ..data.folder import scan


def image_files(names: Iterable[str], stdin: Iterable[str], bad: Callable[[str, str], None]) -> Iterator[str]:
    """The files meant by ``names``, in their order.

    A file stands for itself, whatever its name ends in; a folder for the pictures in it and in the folders below it,
    sorted by path, without hidden ones; ``-`` for the names in ``stdin``, one a line, each of which may again be a file
    or a folder. ``bad`` is told the names of pictures in folders that cannot be used, of folders in which none is or
    that cannot be read, and why.
    """
    for name in names:
        if name == "-":
            listed = (line.rstrip("\r\n") for line in stdin)
            yield from image_files((line for line in listed if line), (), bad)
        elif Path(name).is_dir():
            try:
                tree = scan(name)
            except DataError as error:
                bad(name, str(error))
                continue
            for file, reason in tree.all_left_out():
                if "not a picture" not in reason:
                    bad(os.path.join(name, file), reason)
            if not tree.count:
                bad(name, "a folder without pictures")
            yield from sorted(os.path.join(name, file) for file, _ in tree.all())
        else:
            yield name


class ImageFiles:
    """Image files as a ``data.Split`` without labels (all 0), each brought to ``size`` as training images are.

    A file that cannot be read is an all-black image, so that the others keep their places; ``bad`` says which those
    were (index -> reason), and their results mean nothing.
    """

    def __init__(self, files: Sequence[str], size: int, depth: int = 16) -> None:
        self.size, self._files, self._depth = size, files, depth
        self.labels = np.zeros(len(files), np.int32)
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def image(self, index: int, out: U8 | None = None) -> U8:
        try:
            return placed(load_square(self._files[index], self.size, self._depth), out)
        except (BadImage, ValueError) as error:  # ValueError: a null character in the name
            self.bad[index] = str(error)
            return placed(np.zeros((self.size, self.size, 3), np.uint8), out)
