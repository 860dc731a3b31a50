"""From stored images to the input of a network: what is uploaded with a batch, and images that stay on the devices.

Every device takes in whole batches: each has its own copy of all of this, images that stay included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import ops
from .backend import Array, DeviceError
from .layers import Side
from .shapes import IngestShape

Values = np.ndarray[Any, Any]


class Intake:
    """For batches of at most N images on ``sides``; ``inputs`` are what the first layer reads, one per side."""

    def __init__(self, sides: list[Side], N: int, lanes: int, crop: int, fold: int):
        self._sides, self._N, self._lanes, self._crop, self._fold = sides, N, lanes, crop, fold
        self._scale = (1.0, 1.0, 1.0)
        images = (N // lanes, 3 * fold**2, crop // fold, crop // fold, lanes)
        self.inputs = [side.activations(images) for side in sides]
        self._means = [side.device.empty((3, crop, crop)) for side in sides]
        self._windows = [side.device.empty((N, 3), np.int32) for side in sides]
        self._noise = [side.device.empty((N, 3)) for side in sides]
        self._images: list[Array] = []  # as many as a batch has, once there was one
        self._kept: list[tuple[Array, Array, Array]] = []  # luma, cb and cr of all images that stay, on every side
        self._index: list[Array] = []

    def set_input(self, mean: Values, scale: float | Sequence[float]) -> None:
        """See ``Network.set_input``."""
        shape = (3, self._crop, self._crop)
        if mean.shape != shape or mean.dtype != np.float32:
            raise ValueError(f"mean must be float32 of shape {shape}, got {mean.dtype} of shape {mean.shape}")
        factors = np.asarray(scale, np.float64)
        if factors.shape not in ((), (3,)) or not np.isfinite(factors).all():
            raise ValueError(f"scale must be a finite number, or one for each of the 3 channels, got {scale}")
        red, green, blue = np.broadcast_to(factors, 3).tolist()
        self._scale = (red, green, blue)
        for side, buffer in zip(self._sides, self._means, strict=True):
            side.stream.upload(buffer, np.ascontiguousarray(mean))

    def images(self, images: Values, windows: Values, noise: Values) -> None:
        """Fills ``inputs`` from uint8 (n, H, W, 3)."""
        n, H, W, _ = images.shape
        shape = self._shape(n, H, W, windows, noise)
        self._make_room(H, W)
        for i, side in enumerate(self._sides):
            stored = self._images[i].view(images.shape)
            side.stream.upload(stored, np.ascontiguousarray(images))
            places, tints = self._upload(i, windows, noise)
            ops.ingest(side.stream, shape, side.precision, stored, places, tints, self._means[i], self.inputs[i])

    def keep(self, count: int, size: int) -> None:
        """Makes room for ``count`` images of ``size`` x ``size`` on every device."""
        half = (size + 1) // 2
        wanted = count * (size * size + 2 * half * half) + self._N * size * size * 3
        self._kept, self._index = [], []
        for side in self._sides:
            free = side.device.free()
            if free is not None and wanted > free:
                raise DeviceError(
                    f"{side.device.name}: {count} images of {size}x{size} and a batch beside them take "
                    f"{wanted / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
                    "use --cache memory or none, or a smaller batch"
                )
        self._kept = [
            (
                side.device.empty((count, size, size), np.uint8),
                side.device.empty((count, half, half), np.uint8),
                side.device.empty((count, half, half), np.uint8),
            )
            for side in self._sides
        ]
        self._index = [side.device.empty((self._N,), np.int32) for side in self._sides]
        self._make_room(size, size)  # what validation needs is not to be missing in the middle of a run

    def store(self, first: int, planes: tuple[Values, Values, Values]) -> None:
        """Puts images in their places from ``first`` on."""
        if not self._kept:
            raise RuntimeError("store_images needs keep_images before it")
        count = len(planes[0])
        for array, plane in zip(self._kept[0], planes, strict=True):
            if plane.shape != (count, *array.shape[1:]) or plane.dtype != np.uint8 or first + count > array.shape[0]:
                raise ValueError(
                    f"store_images: planes must be uint8 of shape (n, {array.shape[1]}, {array.shape[2]}) with images "
                    f"{first} to {first + count - 1} of {array.shape[0]}, got {plane.dtype} of shape {plane.shape}"
                )
        for side, kept in zip(self._sides, self._kept, strict=True):
            for array, plane in zip(kept, planes, strict=True):
                rows, columns = array.shape[1:]
                side.stream.upload(array.view(plane.shape, first * rows * columns), np.ascontiguousarray(plane))

    def kept(self, indices: Values, windows: Values, noise: Values) -> None:
        """Fills ``inputs`` from images that stay on the devices."""
        if not self._kept:
            raise RuntimeError("train_batch_kept needs keep_images before it")
        n, (count, H, W) = len(indices), self._kept[0][0].shape
        if not 1 <= n <= self._N or indices.min() < 0 or indices.max() >= count:
            raise ValueError(f"indices must be 1 to {self._N} numbers in 0..{count - 1}, got {indices}")
        shape = self._shape(n, H, W, windows, noise)
        for i, side in enumerate(self._sides):
            index = self._index[i].view((n,))
            side.stream.upload(index, np.ascontiguousarray(indices, np.int32))
            operands = (*self._kept[i], index, *self._upload(i, windows, noise), self._means[i], self.inputs[i])
            ops.ingest_planar(side.stream, shape, side.precision, *operands)

    def _make_room(self, H: int, W: int) -> None:
        if not self._images or self._images[0].shape[1:] != (H, W, 3):
            self._images = [side.device.empty((self._N, H, W, 3), np.uint8) for side in self._sides]

    def _shape(self, n: int, H: int, W: int, windows: Values, noise: Values) -> IngestShape:
        crop = self._crop
        if windows.shape != (n, 3) or noise.shape != (n, 3):
            raise ValueError(f"windows and noise must have shape {(n, 3)}, got {windows.shape} and {noise.shape}")
        top, left = windows[:, 0], windows[:, 1]
        if min(H, W) < crop or (windows < 0).any() or (top > H - crop).any() or (left > W - crop).any():
            raise ValueError(f"every {crop}x{crop} window must lie inside its image of {H}x{W}")
        return IngestShape(self._N, n, H, W, crop, self._lanes, self._scale, self._fold)

    def _upload(self, i: int, windows: Values, noise: Values) -> tuple[Array, Array]:
        places, tints = (array[i].view((len(windows), 3)) for array in (self._windows, self._noise))
        self._sides[i].stream.upload(places, np.ascontiguousarray(windows, np.int32))
        self._sides[i].stream.upload(tints, np.ascontiguousarray(noise, np.float32))
        return places, tints
