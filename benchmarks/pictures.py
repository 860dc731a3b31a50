"""Random images with the statistics of photographs, cheap enough for every batch of a benchmark to be another one.

Zeros and repeated batches make GPUs up to an eighth faster: fewer bits change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from convnet.data.planar import to_planes

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


class Album:
    """``DISTINCT`` pictures of ``size`` x ``size``, such as luma and halved chroma can show exactly."""

    def __init__(self, size: int):
        self.planes = tuple(
            np.stack(p) for p in zip(*(to_planes(picture(size, k)) for k in range(DISTINCT)), strict=True)
        )

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 (count, size, size, 3), by the formula of ``src/kernels/ingest_planar.hpp``."""
        luma = self.planes[0].astype(np.int32)
        size = luma.shape[1]
        cb, cr = (p.astype(np.int32).repeat(2, 1).repeat(2, 2)[:, :size, :size] - 128 for p in self.planes[1:])
        red = luma + ((91881 * cr + 32768) >> 16)
        green = luma + ((-22554 * cb - 46802 * cr + 32768) >> 16)
        blue = luma + ((116130 * cb + 32768) >> 16)
        return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Batch:
    """Which pictures, their labels and what is cut out of them."""

    indices: np.ndarray  # int64 (n,)
    labels: np.ndarray  # int32 (n,)
    windows: np.ndarray  # int32 (n, 3): top, left, flip
    noise: np.ndarray  # float32 (n, 3), zero

    def images(self, album: Album, crop: int) -> np.ndarray:
        """uint8 (n, crop, crop, 3)."""
        n = len(self.indices)
        cut = np.empty((n, crop, crop, 3), np.uint8)
        for k, (index, (top, left, flip)) in enumerate(zip(self.indices, self.windows, strict=True)):
            window = album.images[index, top : top + crop, left : left + crop]
            cut[k] = window[:, ::-1] if flip else window
        return cut


def batches(n: int, classes: int, size: int, crop: int, seed: int) -> list[Batch]:
    """``BATCHES`` random batches of crops from an album of pictures of ``size`` x ``size``."""
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
