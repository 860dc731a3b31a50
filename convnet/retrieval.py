"""Which images are alike: nearest neighbours in the space of a layer's activations (the paper's figure 4, right)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

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
