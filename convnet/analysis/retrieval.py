"""Which images are alike: nearest neighbours in the space of a layer's activations (the paper's figure 4, right)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from ..data import DataError
from ..output.files import open_regular

Values = np.ndarray[Any, Any]
PART = 2**24  # bytes of rows in float64 at a time: bounds the memory
FEW = 1 / 32  # of all rows: where more are left, bounds that are closer cost less than differences
LONGEST = 2**20  # entries of a row whose bounds in float32 hold, see ``_bounds``


def nearest(queries: Values, features: Values | Iterable[Values], k: int) -> tuple[Values, Values]:
    """The ``k`` rows of ``features`` nearest to each query by Euclidean distance; among equals those that come first.

    ``queries`` (q, ...) and ``features`` (n, ...), or its consecutive parts one after another, so that they need not
    be in memory together; a row's entries count alike whatever their shape. Every distance is the root of the sum of
    squared differences in float64, so that equal rows are at exactly 0; distances that are infinite or no number come
    last. Returns indices, int64 (q, k), and distances, float64 (q, k), nearest first; fewer columns where there are
    fewer rows. Raises ``ValueError`` for k < 1 and rows of another length.

    Differences are taken of those rows alone that ``_bounds``, made of one product for all, does not rule out.
    """
    if k < 1:
        raise ValueError(f"nearest: k must be at least 1, got {k}")
    points, threads = _flat(queries, np.float64), ThreadpoolController()
    indices, squares = np.empty((len(points), 0), np.int64), np.empty((len(points), 0))
    seen = 0
    for rows in _parts([features] if isinstance(features, np.ndarray) else features, points):
        with np.errstate(over="ignore", invalid="ignore"):  # infinite entries, and squares of the largest ones
            for kind in (np.float32, np.float64) if points.shape[1] <= LONGEST else (np.float64,):
                with threads.limit(limits=1, user_api="blas"):  # in short products they wait longer than they work
                    low, high = _bounds(_flat(points, kind), _flat(rows, kind))
                near = ~(low > _farthest(np.hstack([squares, high]), k))  # also where nothing is known
                if near.sum() < FEW * near.size:
                    break
            found = np.full(near.shape, np.inf)  # of the others: k rows are nearer, so these are not looked at
            for own, point, chosen in zip(found, points, near, strict=True):
                own[chosen] = _squares(point, _flat(rows[chosen], np.float64))
        numbers = np.broadcast_to(np.arange(seen, seen + len(rows)), found.shape)
        seen += len(rows)
        squares, indices = np.hstack([squares, found]), np.hstack([indices, numbers])
        best = np.argsort(squares, axis=1, kind="stable")[:, :k]  # stable: earlier rows first among equals
        squares, indices = np.take_along_axis(squares, best, 1), np.take_along_axis(indices, best, 1)
    return indices, np.sqrt(squares)


def _farthest(together: Values, k: int) -> Values:
    """What ``k`` or more in each row (q, n) are not above, (q, 1): NaN where no number is that, inf where there are
    fewer."""
    if k > together.shape[1]:
        return np.full((len(together), 1), np.inf)
    return np.asarray(np.partition(together, k - 1, axis=1)[:, k - 1 : k])


def _squares(point: Values, rows: Values) -> Values:
    """The sum of squared differences of a point (d,) and each row (n, d), float64 (n,)."""
    return np.asarray(((rows - point) ** 2).sum(axis=1))


def _bounds(points: Values, rows: Values) -> tuple[Values, Values]:
    """Between which two numbers ``_squares`` of each point (q, d) and row (n, d) comes out, rounding and all: (q, n)
    twice. NaN, or from -inf to inf, where nothing is known. Both are float64, or were, and are rounded to float32.

    What is summed for a row of d entries, with S the sum of the squares of all of the point's and the row's: three sums
    of d products each, whose sizes add up to 2 S at most, and of the differences d squares, which add up to 2 S at
    most. With u half the distance from 1 to the next number, d products are summed to within d u times the sum of their
    sizes (Higham 2002, section 3.1): that is 4 d u S, 11 u S for the few operations besides, and 4 u S where entries
    were rounded. Taken twice, since S is rounded too, and for what d u adds where it is not small: it must not be above
    1/16. A product below the smallest normal number is wrong by less than that.
    """
    number = np.finfo(rows.dtype)
    sums = np.einsum("ij,ij->i", points, points)[:, None] + np.einsum("ij,ij->i", rows, rows)
    apart = sums - 2 * (rows @ points.T).T
    slack = 8 * (points.shape[1] + 4) * (number.eps / 2 * sums + number.tiny)
    slack[~(sums < number.max / 8)] = np.inf  # something may have overflowed
    return apart - slack, apart + slack


def _parts(blocks: Iterable[Values], points: Values) -> Iterator[Values]:
    """The rows of all blocks, few enough at a time that neither they nor one number for each of them and each of
    ``points`` take more than ``PART`` bytes in float64. Raises ``ValueError`` for rows of another length."""
    entries = points.shape[1]
    step = max(PART // (8 * max(entries, len(points), 1)), 1)
    for block in blocks:
        if (found := math.prod(block.shape[1:])) != entries:
            raise ValueError(f"nearest: rows must have the queries' {entries} entries, got {found}")
        for start in range(0, len(block), step):
            yield block[start : start + step]


def _flat(values: Values, kind: type[np.floating[Any]]) -> Values:
    """(n, entries), one row behind the other: how a sum is rounded depends on how its numbers lie."""
    return np.asarray(values, kind, order="C").reshape(len(values), math.prod(values.shape[1:]))


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
