"""Random images with the statistics of photographs, cheap enough for every batch of a benchmark to be another one.

Zeros and repeated batches make GPUs up to an eighth faster: fewer bits change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

DISTINCT = 128  # pictures; batches are made of random crops of them
BATCHES = 8


def picture(size: int, seed: int) -> np.ndarray:
    """uint8 (size, size, 3): smooth colours with texture of medium and fine grain."""
    random = np.random.default_rng(seed)

    def layer(points: int, channels: int) -> np.ndarray:
        coarse = random.integers(0, 256, (points, points, channels), dtype=np.uint8)
        enlarged = Image.fromarray(coarse.squeeze()).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(enlarged, np.float32).reshape(size, size, channels)

    pixels = layer(9, 3) + (layer(max(2, size * 3 // 8), 1) - 128) / 4
    return pixels.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Batch:
    """Which pictures, their labels and what is cut out of them."""

    indices: np.ndarray  # int64 (n,)
    labels: np.ndarray  # int32 (n,)
    windows: np.ndarray  # int32 (n, 3): top, left, flip
    noise: np.ndarray  # float32 (n, 3), zero

    def images(self, pictures: np.ndarray, crop: int) -> np.ndarray:
        """uint8 (n, crop, crop, 3)."""
        n = len(self.indices)
        cut = np.empty((n, crop, crop, 3), np.uint8)
        for k, (index, (top, left, flip)) in enumerate(zip(self.indices, self.windows, strict=True)):
            window = pictures[index, top : top + crop, left : left + crop]
            cut[k] = window[:, ::-1] if flip else window
        return cut


def batches(n: int, classes: int, size: int, crop: int, seed: int) -> list[Batch]:
    """``BATCHES`` random batches of crops from ``DISTINCT`` pictures of ``size`` x ``size``."""
    random = np.random.default_rng(seed)
    return [
        Batch(
            random.integers(0, DISTINCT, n),
            random.integers(0, classes, n).astype(np.int32),
            random.integers(0, (size - crop + 1, size - crop + 1, 2), (n, 3)).astype(np.int32),
            np.zeros((n, 3), np.float32),
        )
        for _ in range(BATCHES)
    ]
