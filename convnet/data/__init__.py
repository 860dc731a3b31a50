"""Data sets for training: what a path holds is recognised, not asked for.

Imports NumPy, Pillow, the standard library, ``kernels.rng`` and ``output.files`` alone: data can be looked at without
any device.
"""

from __future__ import annotations

import os
from pathlib import Path

from .cache import cached
from .cifar import is_cifar_folder, open_cifar
from .dataset import ACCEPTED, DataError, DataSet, Split, Statistics
from .folder import open_folder
from .images import load_square
from .jpeg import BadImage, decode_rgb
from .loader import Batch, Loader
from .shapes import open_shapes
from .statistics import normalisation, sampled_statistics, statistics
from .store import open_store
from .views import view_windows

__all__ = [
    "BadImage",
    "Batch",
    "DataError",
    "DataSet",
    "Loader",
    "Split",
    "Statistics",
    "cached",
    "decode_rgb",
    "load_square",
    "normalisation",
    "open_dataset",
    "sampled_statistics",
    "statistics",
    "view_windows",
]


def open_dataset(path: str | Path, *, size: int, seed: int) -> DataSet:
    """The data set at ``path``, its images as uint8 (size, size, 3).

    ``path`` is ``"shapes"`` (a folder of that name is ``"./shapes"``), an image folder, a folder made by
    ``convnet-prepare``, or CIFAR-10 as published.
    ``seed`` matters to drawn images only. Raises ``DataError`` naming the path and what would be accepted; problems of
    layout are found here, not in mid-epoch.
    """
    if size < 1:
        raise ValueError(f"open_dataset: size must be at least 1, got {size}")
    if path == "shapes":
        return open_shapes(size=size, seed=seed)
    root = Path(path)
    try:
        if root.is_file():
            return open_cifar(root, size=size)
        if not root.is_dir():
            raise DataError(f"there is no {os.fspath(path)!r}; {ACCEPTED}")
        if is_cifar_folder(root):
            return open_cifar(root, size=size)
        if (root / "store.json").exists():
            return open_store(root, size=size)
        if (root / "unfinished.json").exists():
            raise DataError(f"{os.fspath(path)!r} is not prepared completely; run its convnet-prepare command again")
        if (root / "train").is_dir() or (root / "val").is_dir():
            return open_folder(root, size=size)
    except (OSError, ValueError) as error:  # no permission, a name too long, a null character
        raise DataError(f"cannot read {os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    raise DataError(f"{os.fspath(path)!r} is a folder, but not of a known kind; {ACCEPTED}")
