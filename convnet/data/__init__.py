"""Data sets: what a path holds is recognised, not asked for.

Imports NumPy, Pillow, the standard library, ``kernels.rng`` and ``output.files`` alone, and pyarrow where a Parquet
file is read: data can be looked at without any device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .cache import cached
from .dataset import VAL_SPLIT, DataError, DataSet, HeldOut, LeftOut, NotThere, Split, Statistics, depth_lines
from .images import load_square
from .jpeg import BadImage, decode_rgb
from .loader import Batch, Loader
from .recognise import find, open_source
from .shapes import open_shapes
from .source import Found, Part, contents, divided, grey_bits, own_side, ranged
from .splits import Subset, as_dataset, as_split
from .statistics import normalisation, sampled_statistics, statistics
from .store import open_store
from .views import view_windows

__all__ = [
    "VAL_SPLIT",
    "BadImage",
    "Batch",
    "DataError",
    "DataSet",
    "HeldOut",
    "LeftOut",
    "Loader",
    "NotThere",
    "Split",
    "Statistics",
    "Subset",
    "cached",
    "decode_rgb",
    "load_square",
    "normalisation",
    "open_dataset",
    "open_found",
    "open_labelled",
    "sampled_statistics",
    "statistics",
    "view_windows",
]


Ranges = tuple[str | None, str | None]  # which data batches are for training and for validation, as "1-4" and "5"


def open_dataset(
    path: str | Path, *, size: int | None, seed: int, val_split: float = VAL_SPLIT, ranges: Ranges = (None, None)
) -> DataSet:
    """The data set at ``path``, its images as uint8 (size, size, 3); ``size`` None leaves them as they are, which data
    must have one size for.

    ``path`` is ``"shapes"`` (a folder of that name is ``"./shapes"``), a folder made by ``convnet-prepare``, or what
    ``recognise.find`` knows. ``seed`` decides which images are drawn, and which share ``val_split`` is held out
    where the data has no validation images. ``ranges`` choose among numbered data batches (``source.ranged``). Raises
    ``DataError`` naming the path and what would be accepted, as ``NotThere`` where nothing is there; problems of layout
    are found here, not in mid-epoch.
    """
    if size is not None and size < 1:
        raise ValueError(f"open_dataset: size must be at least 1, got {size}")
    if path == "shapes":
        _no_batches("drawn shapes", ranges)
        return open_shapes(size=_sized(size, "shapes are drawn in any size"), seed=seed)
    root = Path(path)
    if (store := _store(root, size)) is not None:
        _no_batches(f"{str(path)!r} is a prepared store, and that", ranges)
        return store
    source = open_source(root, seed=seed, val_split=val_split, ranges=ranges)
    bits = grey_bits(source.train)
    if size is None:
        size = _sized(own_side(source.train), f"{str(path)!r} has pictures of any size")
    dataset = as_dataset(source, size=size, depth=bits or 16)
    return replace(dataset, notes=(*dataset.notes, *depth_lines(bits)))


def _sized(size: int | None, why: str) -> int:
    if size is None:
        raise DataError(f"{why}; say with --size, or with --crop, how large they are to be")
    return size


def _no_batches(what: str, ranges: Ranges) -> None:
    if ranges != (None, None):
        raise DataError(f"{what} has no numbered data batches; leave out --train-range and --test-range")


def open_found(found: Found, *, size: int | None, seed: int, val_split: float = VAL_SPLIT) -> DataSet:
    """The same of pixels that somebody has in memory."""
    source = divided(found, found.kind, seed=seed, val_split=val_split)
    return as_dataset(source, size=_sized(size or own_side(source.train), "pictures are not square"), depth=16)


def open_labelled(
    path: str | Path,
    classes: Sequence[str],
    *,
    size: int,
    seed: int,
    held_out: HeldOut | None,
    depth: int,
    ranges: Ranges = (None, None),
) -> DataSet:
    """Labelled images to try a network on that knows ``classes``, as a data set with these classes.

    ``held_out`` is what the data it was trained on tells: the same pictures are cut as they were then. Else all images
    are for validation where nothing says what they are for, and those of a test set where there are no others. Images
    of classes that the network does not know are left out, and named. ``depth`` is that of the network's 16-bit images,
    ``ranges`` as in ``open_dataset``. Raises ``DataError``, also where no class is known.
    """
    root = Path(path)
    if path == "shapes":
        _no_batches("drawn shapes", ranges)
        return _with_classes(open_shapes(size=size, seed=seed), classes)
    if (store := _store(root, size)) is not None:
        _no_batches(f"{str(path)!r} is a prepared store, and that", ranges)
        return _with_classes(store, classes)
    found = ranged(find(root), str(root), *ranges)
    parts = found.parts
    cut = held_out if held_out is not None and held_out.of == contents(found) else None
    if "train" in parts or cut:
        shared = (cut.seed, cut.share) if cut else (seed, VAL_SPLIT)
        source = divided(found, str(root), seed=shared[0], val_split=shared[1])
        return _with_classes(as_dataset(source, size=size, depth=depth), classes)
    chosen = next(name for name in ("all", "val", "test") if name in parts)
    nothing = Part(np.empty(0, np.int32), [], [])
    train, valid = (as_split(part, found.classes, size=size, depth=depth) for part in (nothing, parts[chosen]))
    test = as_split(parts["test"], found.classes, size=size, depth=depth) if "test" in parts else None
    name = f"{found.kind}: {len(found.classes)} classes, {len(valid):,} images"
    dataset = DataSet(
        name, found.classes, train, valid, "", None, test, tuple(found.notes), tuple(found.left_out), depth
    )
    return _with_classes(dataset, classes)


def _store(root: Path, size: int | None) -> DataSet | None:
    try:
        complete, begun = (root / "store.json").exists(), (root / "unfinished.json").exists()
        rest = (root / "train-names.txt").exists() and (root / "train.npy").exists()
    except (OSError, ValueError) as error:  # no permission, a name too long, a null character
        raise DataError(f"cannot read {os.fspath(root)!r}: {getattr(error, 'strerror', None) or error}") from error
    if complete:
        return open_store(root, size=size)
    if begun:
        raise DataError(f"{os.fspath(root)!r} is not prepared completely; run its convnet-prepare command again")
    if rest:
        raise DataError(f"{os.fspath(root)!r} was prepared, but its store.json is missing; prepare it anew")
    return None


def _with_classes(dataset: DataSet, classes: Sequence[str]) -> DataSet:
    """The images of those classes that are among ``classes``, under their numbers there."""
    if dataset.classes == list(classes):
        return dataset
    number = {name: k for k, name in enumerate(classes)}
    table = np.array([number.get(name, -1) for name in dataset.classes], np.int32)
    if unknown := [name for name in dataset.classes if name not in number]:
        if len(unknown) == len(dataset.classes):
            raise DataError(
                f"the data has the classes {_some(unknown)}, and the network knows none of them, but {_some(classes)}; "
                "give data with its classes"
            )
        dataset = replace(
            dataset,
            notes=(*dataset.notes, f"the network does not know {_some(unknown)}: left out"),
        )

    def known(split: Split) -> Split:
        labels = table[split.labels]
        kept = np.flatnonzero(labels >= 0)
        return Subset(split, kept, labels[kept])

    train, valid = known(dataset.train), known(dataset.valid)
    test = known(dataset.test) if dataset.test is not None else None
    return replace(dataset, classes=list(classes), train=train, valid=valid, test=test)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
