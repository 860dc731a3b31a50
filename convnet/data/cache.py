"""Images kept in memory, as uint8 pixels, behind their first decoding."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from .dataset import U8, DataSet, Split, placed

MEMINFO = "/proc/meminfo"


class CachedSplit:
    """The images of ``split``, each decoded once; takes ``cached_bytes(split)`` of memory as they come."""

    def __init__(self, split: Split) -> None:
        self.size, self.labels, self.name, self._split = split.size, split.labels, split.name, split
        self._pixels: U8 = np.empty((len(split), split.size, split.size, 3), np.uint8)
        self._decoded = np.zeros(len(split), bool)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, out: U8 | None = None) -> U8:
        if not self._decoded[index]:  # two threads may decode the same image: they write the same bytes
            self._split.image(index, self._pixels[index])
            self._decoded[index] = True
        return self._pixels[index].copy() if out is None else placed(self._pixels[index], out)


def cached_bytes(split: Split) -> int:
    """What the pixels of ``split`` take."""
    return len(split) * split.size * split.size * 3


def cached(dataset: DataSet) -> DataSet:
    """``dataset`` with the images of both its splits kept in memory (those that are kept already stay as they are).

    Raises ``ValueError`` when they do not fit into the memory that is free now.
    """
    needed = sum(cached_bytes(split) for split in (dataset.train, dataset.valid) if not isinstance(split, CachedSplit))
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"--cache memory: the images take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB of memory are free; leave "
            "the option out, or use a smaller --crop"
        )
    train, valid = (
        split if isinstance(split, CachedSplit) else CachedSplit(split) for split in (dataset.train, dataset.valid)
    )
    return replace(dataset, train=train, valid=valid)


def free_memory() -> int:
    """Bytes that can be allocated without swapping: Linux's own estimate, elsewhere what no one uses."""
    try:
        for line in Path(MEMINFO).read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
