"""Mean image and principal colour components of the training images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from convnet.data.dataset import F32, Split

LIMIT = 2_000  # images looked at: the mean of a pixel is then known to about one or two levels
_BLOCK = 64  # images held at a time


@dataclass(frozen=True)
class Statistics:
    """In levels of 0..255."""

    mean: F32  # (3, crop, crop)
    deviations: F32  # (3,): standard deviation along each principal component, largest first
    directions: F32  # (3, 3): the components as unit vectors in columns; the largest entry of each is positive


def statistics(split: Split, crop: int, limit: int = LIMIT, workers: int = 1) -> Statistics:
    """Statistics of the centre crops of at most ``limit`` evenly spaced images, decoded by ``workers`` threads.

    All sums are sums of integers below 2^53 and therefore exact: neither threads nor BLAS change the result. Raises
    ``ValueError`` for a crop larger than the images, or no images.
    """
    count = min(limit, len(split))
    if not 1 <= crop <= split.size or count < 1:
        raise ValueError(f"statistics: crop must be 1 to {split.size} and there must be images, got {crop} and {count}")
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

    pixels_seen = count * crop * crop
    mean = total / count
    colour = total.sum(axis=(0, 1)) / pixels_seen
    variances, directions = np.linalg.eigh(products / pixels_seen - np.outer(colour, colour))
    variances, directions = variances[::-1], directions[:, ::-1]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(3)])
    return Statistics(
        mean=np.ascontiguousarray(mean.transpose(2, 0, 1), np.float32),
        deviations=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
        directions=directions.astype(np.float32),
    )
