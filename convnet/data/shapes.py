"""The built-in data set: ten classes of drawn shapes, made from the seed alone.

An image depends on (index, split, seed, size) and on nothing else. Parameters come from Philox counters; pixels are
computed from signed distances with additions, multiplications, square roots and comparisons in float32, which IEEE 754
rounds alike everywhere: no sine, no BLAS, no drawing library whose rasteriser changes between versions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import rng
from .cache import CachedSplit, cached_bytes
from .dataset import U8, DataSet, Split, placed

TRAIN_IMAGES, VALID_IMAGES = 12_000, 1_000
VERSION = 1  # part of the fingerprint; grows when the pixels change
CACHE_BYTES = 512 * 2**20  # drawn images of a split are kept up to this size, larger splits are drawn anew
F64 = NDArray[np.float64]

Plane = Any  # float32 (size, size); to a type checker NumPy's functions return Any

# A signed distance in units of the shape's radius: negative inside. x to the right, y down, after rotation.
Distance = Callable[[Plane, Plane], Plane]


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)


def _arrow(x: Plane, y: Plane) -> Plane:
    x = np.abs(x)
    head = np.maximum(y + 0.05, 0.789 * x - 0.614 * (y + 0.95))
    return np.minimum(head, np.maximum(x - 0.25, np.abs(y - 0.4) - 0.5))


def _circle(x: Plane, y: Plane) -> Plane:
    return _length(x, y) - 0.8


def _crescent(x: Plane, y: Plane) -> Plane:
    return np.maximum(_length(x, y) - 0.9, 0.72 - _length(x - 0.45, y))


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.9, np.minimum(x, y) - 0.28)


def _heart(x: Plane, y: Plane) -> Plane:
    x = np.abs(x)  # a square on its corner and a disc on each of its two upper sides
    return np.minimum(0.7071 * (x + np.abs(y) - 0.76), _length(x - 0.38, y + 0.38) - 0.5374)


def _hourglass(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(y - 0.78, 0.82 * (x - 0.7 * y - 0.07))


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(_length(x, y) - 0.68) - 0.2


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - 0.72


def _star(x: Plane, y: Plane) -> Plane:
    # A pentagram is where at most one of five half-planes is left: the second largest of their distances.
    largest = second = np.full_like(x, -np.inf)
    for k in range(5):
        plane = np.float32(math.sin(k * math.tau / 5)) * x + np.float32(math.cos(k * math.tau / 5)) * y - 0.309
        second = np.maximum(second, np.minimum(largest, plane))
        largest = np.maximum(largest, plane)
    return second


def _triangle(x: Plane, y: Plane) -> Plane:
    return np.maximum(y - 0.5, 0.866 * np.abs(x) - 0.5 * y - 0.5)


SHAPES: dict[str, Distance] = {
    "arrow": _arrow,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "hourglass": _hourglass,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
_DISTANCES = list(SHAPES.values())


class ShapesSplit:
    """``count`` drawn images; ``split`` (0 training, 1 validation) keeps the two apart for equal seeds."""

    def __init__(self, count: int, *, size: int, seed: int, split: int) -> None:
        self.size, self._seed, self._split = size, seed, split
        # Eight counters of four words per image. Columns: 0 label, 1 angle, 2 radius, 3-4 centre, 5-10 background
        # colours, 11-22 candidates for the shape's colour, 23 background kind, 24 its angle, 25 its scale, 26 its
        # phase, 27 noise.
        counters = np.arange(8)[:, None]
        words = rng.philox(np.arange(count)[None, :], split, counters, rng.SHAPES, seed)
        self._u: F64 = rng.uniform(words).transpose(2, 1, 0).reshape(count, 32)
        self.labels = (self._u[:, 0] * len(SHAPES)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"shapes {'val' if self._split else 'train'} {index}"

    def image(self, index: int, out: U8 | None = None) -> U8:
        u, size = self._u[index], self.size
        axis = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1).astype(np.float32)
        x, y = axis[None, :], axis[:, None]

        first, second, colour = _colours(u)
        t = _background(u, x, y)

        radius = 0.45 + 0.25 * u[2]
        reach = 0.87 - radius  # keeps the shape inside a random crop of 7/8 of the image
        cx, cy = (2 * u[3] - 1) * reach, (2 * u[4] - 1) * reach
        cos, sin = math.cos(math.tau * u[1]) / radius, math.sin(math.tau * u[1]) / radius
        dx, dy = x - np.float32(cx), y - np.float32(cy)
        distance = _DISTANCES[self.labels[index]](
            np.float32(cos) * dx + np.float32(sin) * dy, np.float32(cos) * dy - np.float32(sin) * dx
        )
        cover = np.clip(np.float32(0.5) - distance * np.float32(radius * size / 2), 0, 1)  # one pixel of antialiasing

        planes = np.empty((3, size, size), np.float32)
        for c in range(3):
            ground = np.float32(first[c]) + np.float32(second[c] - first[c]) * t
            np.add(ground, (np.float32(colour[c]) - ground) * cover, out=planes[c])
        planes += np.float32(_noise_scale(u)) * self._noise(index)
        planes += np.float32(0.5)
        image: U8 = np.ascontiguousarray(np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0))
        return placed(image, out)

    def _noise(self, index: int) -> Plane:
        """Triangular noise (3, size, size), the sum of two random bytes about zero."""
        # NumPy's Philox (4x64), whose raw stream is promised to stay: compiled, and therefore faster than rng.philox.
        source = np.random.Philox(counter=[0, index, self._split, rng.SHAPES], key=[self._seed & (2**64 - 1), 0])
        n = 3 * self.size * self.size
        raw = source.random_raw(-(-n // 4)).astype("<u8", copy=False).view(np.uint8)
        pairs = raw[: 2 * n].reshape(2, 3, self.size, self.size)
        return pairs[0].astype(np.float32) + pairs[1] - np.float32(255)


def _noise_scale(u: F64) -> float:
    """From a standard deviation of 2 to 18 levels; the raw noise has one of 104.5."""
    return float(2 + 16 * u[27]) / 104.5


def _colours(u: F64) -> tuple[F64, F64, F64]:
    """Two background colours and the one of four lighter candidates that differs most from both; (3,) each, 0..255."""
    first = 150 * u[5:8]
    second = first + 0.5 * (150 * u[8:11] - first)
    candidates = 105 + 150 * u[11:23].reshape(4, 3)
    contrast = np.minimum(np.abs(candidates - first).sum(axis=1), np.abs(candidates - second).sum(axis=1))
    return first, second, candidates[contrast.argmax()]


def _background(u: F64, x: Plane, y: Plane) -> Plane:
    """Weight of the second background colour, float32 (size, size) or (1, 1): plain, gradient, stripes or checks."""
    kind = int(u[23] * 4)
    if kind == 0:
        return np.zeros((1, 1), np.float32)
    cos, sin = np.float32(math.cos(math.tau * u[24])), np.float32(math.sin(math.tau * u[24]))
    along = cos * x + sin * y
    if kind == 1:
        return np.clip(np.float32(0.5) + np.float32(0.5) * along, 0, 1)
    scale, phase = np.float32(1 + 3 * u[25]), np.float32(u[26])
    wave = _wave(along * scale + phase)
    if kind == 2:
        return np.clip(np.float32(0.5) + wave, 0, 1)
    return np.clip(np.float32(0.5) + np.float32(2) * wave * _wave((cos * y - sin * x) * scale + phase), 0, 1)


def _wave(t: Plane) -> Plane:
    """A triangle wave of period 1 between -1 and 1."""
    return np.float32(4) * np.abs(t - np.floor(t) - np.float32(0.5)) - np.float32(1)


def _kept(split: Split) -> Split:
    return CachedSplit(split) if cached_bytes(split) <= CACHE_BYTES else split


def open_shapes(*, size: int, seed: int) -> DataSet:
    """The drawn shapes as a data set of ``size`` x ``size`` images."""
    train, valid = (
        _kept(ShapesSplit(count, size=size, seed=seed, split=split))
        for split, count in enumerate((TRAIN_IMAGES, VALID_IMAGES))
    )
    return DataSet(
        name=f"drawn shapes: {len(SHAPES)} classes, {len(train):,} training and {len(valid):,} validation images",
        classes=list(SHAPES),
        train=train,
        valid=valid,
        fingerprint=hashlib.sha256(f"shapes {VERSION} {seed} {len(train)} {len(valid)}".encode()).hexdigest(),
    )
