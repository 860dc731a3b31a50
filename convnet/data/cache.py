"""Images kept in memory, as uint8 pixels, behind their first decoding."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from .dataset import U8, DataSet, Split, placed

MEMINFO = "/proc/meminfo"
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class CachedSplit:
    """The images of ``split``, the first ``count`` of them (all where None) decoded once and then kept in memory.

    Takes ``cached_bytes(split)`` as they come, or the like share of that. The others are decoded whenever they are
    asked for.
    """

    def __init__(self, split: Split, count: int | None = None) -> None:
        self.size, self.labels, self.name, self._split = split.size, split.labels, split.name, split
        count = len(split) if count is None else count
        self._pixels: U8 = np.empty((count, split.size, split.size, 3), np.uint8)
        self._decoded = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, out: U8 | None = None) -> U8:
        if index >= len(self._decoded):
            return self._split.image(index, out)
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


def kept(dataset: DataSet) -> tuple[DataSet, str]:
    """``dataset`` with decoded images kept in up to a quarter of the free memory, and one line about that.

    Training images come before validation images, and lower indices before higher ones: in every epoch all images are
    asked for once, so it does not matter which are kept, and a choice made once never costs anything again. A prepared
    store's images are kept too: decoding them takes many times as long as copying. Where all images are in memory
    already (drawn shapes), nothing changes, and the line is empty.
    """
    each, limit = 3 * dataset.train.size**2, free_memory() // 4
    splits: list[Split] = []
    count = total = 0
    for split in (dataset.train, dataset.valid):
        if isinstance(split, CachedSplit):
            splits.append(split)
            continue
        some = min(len(split), limit // each - count)
        splits.append(CachedSplit(split, some))
        count, total = count + some, total + len(split)
    if not total:
        return dataset, ""
    told = f"memory: all {total:,} images are kept once they are decoded, {count * each / 1e6:,.0f} MB"
    if count < total:
        told = (
            f"memory: {count:,} of {total:,} images are kept once they are decoded, as many as fit into "
            f"{limit / 1e6:,.0f} MB, a quarter of what is free; the others are decoded in every epoch"
        )
    return replace(dataset, train=splits[0], valid=splits[1]), told


def free_memory() -> int:
    """Bytes that can be allocated without swapping: Linux's own estimate, elsewhere what no one uses.

    Not more than the control groups allow in which this process runs, which containers and batch systems set.
    """
    return min(_machine_memory(), *_group_memory())


def _machine_memory() -> int:
    try:
        for line in Path(MEMINFO).read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_memory() -> list[int]:
    """What is left in each control group around this process that has a limit, in either version of such groups."""
    left = [sys.maxsize]
    try:
        groups = [line.split(":", 2)[1:] for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return left
    for controllers, path in groups:
        if controllers == "":
            root, names, files = GROUPS, ("memory.max", "memory.current"), "inactive_file"
        elif controllers == "memory":
            root, files = GROUPS / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            try:
                limit, used = (int((group / name).read_text()) for name in names)
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left.append(max(0, limit - used + int(stat[files])))  # files in memory give way where it is short
            except (OSError, ValueError, KeyError):  # no limit: "max"; or a container, which sees less than there is
                pass
            group = group.parent
    return left
