"""Mean image and principal colour components of the training images, and what networks make of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dataset import F32, U8, DataSet, Split, Statistics

LIMIT = 2_000  # images looked at: the mean of a pixel is then known to about one or two levels

Progress = Callable[[int, int], None]  # is told how many images of how many have been looked at


def normalisation(found: Statistics, kind: str) -> tuple[F32, tuple[float, float, float] | None]:
    """What a network subtracts from pixels, float32 (3, size, size), and then multiplies red, green and blue by.

    "mean-image" is the paper's: the mean image, and no factors but the network's own (None). "mean-std" brings every
    channel to mean 0 and standard deviation 1; a channel that hardly varies counts as if it did by one level.
    """
    if kind == "mean-image":
        return found.mean, None
    if kind != "mean-std":
        raise ValueError(f"normalisation must be mean-image or mean-std, got {kind}")
    colour = found.mean.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    red, green, blue = (1 / np.maximum(found.std.astype(np.float64), 1)).tolist()
    return np.ascontiguousarray(np.broadcast_to(colour[:, None, None], found.mean.shape)), (red, green, blue)


def statistics(dataset: DataSet, crop: int, workers: int = 1, progress: Progress | None = None) -> Statistics:
    """Those that come with the data, their mean image cut to its centre; else those of some training images, of all of
    them where they lie in memory as they are."""
    known, mean = dataset.statistics, dataset.mean
    if known is None:
        limit = len(dataset.train) if dataset.as_they_are else LIMIT
        known = sampled_statistics(dataset.train, crop, limit, workers, progress)
    mean = known.mean if mean is None else mean
    before = (mean.shape[1] - crop) // 2
    return replace(known, mean=np.ascontiguousarray(mean[:, before : before + crop, before : before + crop]))


def sampled_statistics(
    split: Split, crop: int, limit: int = LIMIT, workers: int = 1, progress: Progress | None = None
) -> Statistics:
    """Statistics of the centre crops of at most ``limit`` evenly spaced images, decoded by ``workers`` threads.

    All sums are sums of integers below 2^53 and therefore exact: neither threads nor BLAS change the result. Raises
    ``ValueError`` for a crop larger than the images, or no images.
    """
    count = min(limit, len(split))
    if not 1 <= crop <= split.size or count < 1:
        raise ValueError(
            f"sampled_statistics: crop must be 1 to {split.size} and there must be images, got {crop} and {count}"
        )
    indices = (np.arange(count) * len(split) // count).tolist()
    before = (split.size - crop) // 2
    inside = slice(before, before + crop)

    def look(index: int) -> tuple[U8, NDArray[np.float64]]:
        centre = split.image(index)[inside, inside]
        pixels = centre.reshape(-1, 3).astype(np.float64)
        return centre, pixels.T @ pixels

    total, products = np.zeros((crop, crop, 3), np.int64), np.zeros((3, 3))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (centre, squares) in enumerate(pool.map(look, indices), 1):
            total += centre
            products += squares
            if progress:
                progress(done, count)

    return from_sums(total, products, count)


def from_sums(total: NDArray[Any], products: NDArray[Any], count: int) -> Statistics:
    """Statistics of ``count`` images from the sum of them, (size, size, 3), and of the products of their colours."""
    pixels_seen = total[..., 0].size * count
    mean = total / count
    colour = total.sum(axis=(0, 1)) / pixels_seen
    covariance = products / pixels_seen - np.outer(colour, colour)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(3)])
    return Statistics(
        mean=np.ascontiguousarray(mean.transpose(2, 0, 1), np.float32),
        std=np.sqrt(np.maximum(covariance.diagonal(), 0)).astype(np.float32),
        deviations=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        directions=directions.astype(np.float32),
    )
