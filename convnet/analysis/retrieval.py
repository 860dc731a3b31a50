"""Which images are alike: nearest neighbours in the space of a layer's activations (the paper's figure 4, right)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError
from ..output.files import open_regular

Values = np.ndarray[Any, Any]
ROWS = 256  # of an array at a time: bounds the memory for float64 copies


def nearest(queries: Values, features: Values | Iterable[Values], k: int) -> tuple[Values, Values]:
    """The ``k`` rows of ``features`` nearest to each query by Euclidean distance; among equals those that come first.

    ``queries`` (q, ...) and ``features`` (n, ...), or its consecutive parts one after another, so that they need not
    be in memory together; a row's entries count alike whatever their shape. Every distance is the root of the sum of
    squared differences in float64, so that equal rows are at exactly 0. Returns indices, int64 (q, k), and distances,
    float64 (q, k), nearest first; fewer columns where there are fewer rows. Raises ``ValueError`` for k < 1 and rows
    of another length.
    """
    if k < 1:
        raise ValueError(f"nearest: k must be at least 1, got {k}")
    blocks = _cut(features) if isinstance(features, np.ndarray) else features
    points = _flat(queries)
    indices, squares = np.empty((len(points), 0), np.int64), np.empty((len(points), 0))
    seen = 0
    for block in blocks:
        rows = _flat(block)
        if rows.shape[1] != points.shape[1]:
            raise ValueError(f"nearest: rows must have the queries' {points.shape[1]} entries, got {rows.shape[1]}")
        # Differences, not the sum of squares less the product: that would cancel, and depend on the block.
        found = np.array([((rows - point) ** 2).sum(axis=1) for point in points]).reshape(len(points), len(rows))
        numbers = np.broadcast_to(np.arange(seen, seen + len(rows)), found.shape)
        seen += len(rows)
        squares, indices = np.hstack([squares, found]), np.hstack([indices, numbers])
        best = np.argsort(squares, axis=1, kind="stable")[:, :k]  # stable: earlier rows first among equals
        squares, indices = np.take_along_axis(squares, best, 1), np.take_along_axis(indices, best, 1)
    return indices, np.sqrt(squares)


def _cut(features: Values) -> Iterable[Values]:
    return (features[start : start + ROWS] for start in range(0, len(features), ROWS))


def _flat(values: Values) -> Values:
    return values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64)


def read_rows(path: Path) -> tuple[Values, list[dict[str, str]]]:
    """What ``RowsFile`` wrote: the array, read from the disk as it is used, and the lines of FILE.csv by column.

    Raises ``DataError``.
    """
    try:
        open_regular(path).close()  # or np.load waits
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected an array in a .npy file: {error}") from error
    index = path.with_suffix(".csv")
    try:
        with io.TextIOWrapper(open_regular(index), encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{index}: expected the names of the rows of {path.name}: {error}") from error
    if not isinstance(values, np.ndarray) or values.ndim < 2 or len(values) != len(lines):
        raise DataError(f"{path}: expected a row for each of the {len(lines)} lines of {index.name}, found others")
    if values.dtype != np.float32 or any("name" not in line for line in lines):
        raise DataError(f"{path}: expected float32 numbers and a column of names in {index.name}, found others")
    return values, lines
