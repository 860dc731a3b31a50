"""Mean image and principal colour components of the training images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnet.data.dataset import DataSet, Split, Statistics

LIMIT = 2_000  # images looked at: the mean of a pixel is then known to about one or two levels
_BLOCK = 64  # images held at a time


def statistics(dataset: DataSet, crop: int) -> Statistics:
    """Those that come with the data, their mean image cut to its centre; else those of some training images."""
    known = dataset.statistics
    if known is None:
        return sampled_statistics(dataset.train, crop)
    before = (known.mean.shape[1] - crop) // 2
    return replace(known, mean=np.ascontiguousarray(known.mean[:, before : before + crop, before : before + crop]))


def sampled_statistics(split: Split, crop: int, limit: int = LIMIT, workers: int = 1) -> Statistics:
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

    total = np.zeros((crop, crop, 3), np.int64)
    products = np.zeros((3, 3))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for k in range(0, count, _BLOCK):
            for image in pool.map(split.image, indices[k : k + _BLOCK]):
                centre = image[inside, inside]
                total += centre
                pixels = centre.reshape(-1, 3).astype(np.float64)
                products += pixels.T @ pixels

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
