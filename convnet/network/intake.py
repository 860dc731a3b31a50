"""From stored images to the input of a network: what is uploaded with a batch, and images that stay on the devices.

Every device takes in whole batches: each has its own copy of all of this, images that stay included. Batches come in on
streams of their own, into one of two slots, so that the next one can arrive while the network works on this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..devices import switches
from ..devices.foreign import ALIGNMENT, CudaMemory, Given
from ..devices.protocol import Array, DeviceError, Event
from ..kernels.shapes import IngestShape
from ..ops import arguments, ops
from ..ops.gather import gather
from .layers import Side

Values = np.ndarray[Any, Any]


class Slot:
    """Where a batch lies from its upload until the network has used it: lists have an array per side."""

    def __init__(self, sides: list[Side], N: int, images: tuple[int, ...]):
        self.inputs = [side.device.empty(images, side.dtype) for side in sides]
        self.windows = [side.device.empty((N, 3), np.int32) for side in sides]
        self.noise = [side.device.empty((N, 3)) for side in sides]
        self.index = [side.device.empty((N,), np.int32) for side in sides]
        self.labels = sides[0].device.empty((N,), np.int32)
        self.images: list[Array] = []  # as many as a batch has, once there was one
        self.used: list[Event | None] = [None] * len(sides)  # the network has read what was here


class Intake:
    """For batches of at most N images on ``sides``."""

    def __init__(self, sides: list[Side], N: int, lanes: int, crop: int, fold: int):
        self._sides, self._N, self._lanes, self._crop, self._fold = sides, N, lanes, crop, fold
        self._scale = (1.0, 1.0, 1.0)
        own = switches.on("intake")
        self._streams = [side.device.stream() if own else side.stream for side in sides]
        self._means = [side.device.empty((3, crop, crop)) for side in sides]
        self._kept: list[tuple[Array, Array, Array]] = []  # luma, cb and cr of all images that stay, on every side
        self._batch = (N // lanes, 3 * fold**2, crop // fold, crop // fold, lanes)
        self.slots = [Slot(sides, N, self._batch)]
        self._last = 0

    def next_slot(self) -> int:
        """The slot that the last batch is not in; the second one comes with the first call."""
        self._make_slots()
        self._last ^= 1
        return self._last

    def _make_slots(self) -> None:
        if len(self.slots) == 1:
            self.slots.append(Slot(self._sides, self._N, self._batch))

    def take(self, slot: int) -> list[Array]:
        """The batch in a slot, as inputs of the first layer: later work of all sides starts when it is there."""
        for side, stream in zip(self._sides, self._streams, strict=True):
            side.stream.wait(stream.record())
        return self.slots[slot].inputs

    def give_back(self, slot: int) -> None:
        """The work queued so far is the last that reads this batch."""
        self.slots[slot].used = [side.stream.record() for side in self._sides]

    def _wait_until_used(self, i: int, slot: int) -> None:
        """Later work on the stream of a side may write to the slot."""
        used = self.slots[slot].used[i]
        if used is not None:
            self._streams[i].wait(used)

    def _upload(self, i: int, slot: int, target: Array, values: Values) -> None:
        self._wait_until_used(i, slot)
        self._streams[i].upload(target, np.asarray(values, target.dtype))

    def values(self, x: Values) -> None:
        """Fills the inputs of slot 0 from values in their layout."""
        if len(self._sides) > 1:
            x = np.ascontiguousarray(x)  # each would put it in order
        for i, target in enumerate(self.slots[0].inputs):
            self._upload(i, 0, target, x)

    def gather(self, images: CudaMemory) -> None:
        """Fills the inputs of slot 0 from float32 (n, 3, crop, crop) on the GPU of one side."""
        inputs, first = self.slots[0].inputs, self._side_of(images)
        for i in range(len(inputs)):
            self._wait_until_used(i, 0)
        stream, precision = self._streams[first], self._sides[first].precision
        gather(stream, images, precision, inputs[first], self._N, self._lanes, self._fold)
        self._spread(first, inputs[first], inputs)

    def _side_of(self, memory: CudaMemory) -> int:
        """The side on whose device it lies."""
        for i, side in enumerate(self._sides):
            if side.device.holds(memory):
                return i
        names = ", ".join(side.device.name for side in self._sides)
        raise ValueError(f"images of shape {memory.shape} lie on another GPU than {names}; copy them there")

    def _spread(self, first: int, source: Array, targets: Sequence[Array]) -> None:
        """Copies what side ``first`` has to the others."""
        ready = self._streams[first].record()
        for i, (stream, target) in enumerate(zip(self._streams, targets, strict=True)):
            if i != first:
                stream.wait(ready)
                stream.copy(target, source)

    def labels(self, labels: Values, slot: int = 0) -> None:
        """Labels of a batch of ``len(labels)`` images; those beyond are 0."""
        padded = np.zeros(self._N, np.int32)
        padded[: len(labels)] = labels
        self._upload(0, slot, self.slots[slot].labels, padded)

    def set_input(self, mean: Values, scale: float | Sequence[float]) -> None:
        """See ``Network.set_input``."""
        arguments.array("set_input", "mean", mean, (3, self._crop, self._crop), "float32")
        factors = np.asarray(scale, np.float64)
        if factors.shape not in ((), (3,)) or not np.isfinite(factors).all():
            raise ValueError(f"scale must be a finite number, or one for each of the 3 channels, got {scale}")
        red, green, blue = np.broadcast_to(factors, 3).tolist()
        self._scale = (red, green, blue)
        for stream, buffer in zip(self._streams, self._means, strict=True):
            stream.upload(buffer, np.ascontiguousarray(mean))

    def input(self) -> tuple[Values, tuple[float, float, float]]:
        """See ``Network.input``."""
        return np.asarray(self._means[0].download()), self._scale

    def images(self, images: Given, windows: Any, noise: Any, slot: int = 0) -> None:
        """Fills the inputs of a slot from uint8 (n, H, W, 3). Images that lie on a device are read there, and may be
        overwritten when this returns."""
        n, H, W, _ = images.shape
        windows, noise = arguments.taken("a batch", None, windows=windows, noise=noise)
        shape = self._shape(n, H, W, windows, noise)
        batch = self.slots[slot]
        everywhere = self._stored(images, slot)
        for i, (side, stream) in enumerate(zip(self._sides, self._streams, strict=True)):
            stored = everywhere[i]
            places, tints = self._augmented(i, slot, windows, noise)
            ops.ingest(stream, shape, side.precision, stored, places, tints, self._means[i], batch.inputs[i])
        if isinstance(images, CudaMemory):
            for stream in self._streams:
                stream.synchronize()

    def _stored(self, images: Given, slot: int) -> list[Array]:
        """uint8 images on every side: where they lie, or in the slot."""
        if isinstance(images, np.ndarray):
            borrowed = [side.device.borrow(images) for side in self._sides]
            if None not in borrowed:
                return [array for array in borrowed if array is not None]
        self._make_room(images.shape[1], images.shape[2], slot)
        room = [array.view(images.shape) for array in self.slots[slot].images]
        if isinstance(images, np.ndarray):
            for i, array in enumerate(room):
                self._upload(i, slot, array, images)
            return room
        if not images.contiguous:
            raise ValueError(
                f"images in steps of {images.steps} values cannot be read as they are; make them contiguous"
            )
        first = self._side_of(images)
        room[first] = self._streams[first].adopt(images).view(images.shape, images.address % ALIGNMENT)
        for i in range(len(room)):
            self._wait_until_used(i, slot)
        self._spread(first, room[first], room)
        return room

    def keep(self, count: int, size: int) -> None:
        """Makes room for ``count`` images of ``size`` x ``size`` on every device."""
        count = arguments.integer("keep_images", "count", count, 1, 2**31 - 1)
        size = arguments.integer("keep_images", "size", size, self._crop, 2**15)
        half = (size + 1) // 2
        wanted = count * (size * size + 2 * half * half) + self._N * size * size * 3
        self._kept = []
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
        self._make_slots()
        self._make_room(size, size, 0)  # what validation needs is not to be missing in the middle of a run

    def store(self, first: int, planes: tuple[Values, Values, Values]) -> None:
        """Puts images in their places from ``first`` on."""
        if not self._kept:
            raise RuntimeError("store_images needs keep_images before it")
        arguments.array("store_images", "luma", planes[0], ("n", *self._kept[0][0].shape[1:]), "uint8")
        count, places = len(planes[0]), self._kept[0][0].shape[0]
        for name, array, plane in zip(("cb", "cr"), self._kept[0][1:], planes[1:], strict=True):
            arguments.array("store_images", name, plane, (count, *array.shape[1:]), "uint8")
        if not 0 <= arguments.integer("store_images", "first", first, -(2**63), 2**63) <= places - count:
            raise ValueError(
                f"store_images: there are places 0 to {places - 1}, got images {first} to {first + count - 1}"
            )
        for stream, kept in zip(self._streams, self._kept, strict=True):
            for array, plane in zip(kept, planes, strict=True):
                rows, columns = array.shape[1:]
                stream.upload(array.view(plane.shape, first * rows * columns), np.ascontiguousarray(plane))

    def kept(self, indices: Values, windows: Any, noise: Any, slot: int = 0) -> None:
        """Fills the inputs of a slot from images that stay on the devices."""
        if not self._kept:
            raise RuntimeError("train_batch_kept needs keep_images before it")
        n, (count, H, W) = len(indices), self._kept[0][0].shape
        windows, noise = arguments.taken("a batch", None, windows=windows, noise=noise)
        if indices.min() < 0 or indices.max() >= count:
            raise ValueError(f"indices must be numbers in 0..{count - 1}, got {indices.min()}..{indices.max()}")
        shape = self._shape(n, H, W, windows, noise)
        batch = self.slots[slot]
        for i, (side, stream) in enumerate(zip(self._sides, self._streams, strict=True)):
            index = batch.index[i].view((n,))
            self._upload(i, slot, index, indices)
            operands = (*self._kept[i], index, *self._augmented(i, slot, windows, noise), self._means[i])
            ops.ingest_planar(stream, shape, side.precision, *operands, batch.inputs[i])

    def _make_room(self, H: int, W: int, slot: int) -> None:
        batch = self.slots[slot]
        if not batch.images or batch.images[0].shape[1:] != (H, W, 3):
            batch.images = [side.device.empty((self._N, H, W, 3), np.uint8) for side in self._sides]

    def _shape(self, n: int, H: int, W: int, windows: Values, noise: Values) -> IngestShape:
        crop = self._crop
        arguments.array("a batch", "windows", windows, (n, 3), "integers")  # the kernel reads where they say
        arguments.array("a batch", "noise", noise, (n, 3), "real numbers")
        top, left = windows[:, 0], windows[:, 1]
        if min(H, W) < crop or (windows < 0).any() or (top > H - crop).any() or (left > W - crop).any():
            raise ValueError(f"every {crop}x{crop} window must lie inside its image of {H}x{W}")
        return IngestShape(self._N, n, H, W, crop, self._lanes, self._scale, self._fold)

    def _augmented(self, i: int, slot: int, windows: Values, noise: Values) -> tuple[Array, Array]:
        batch = self.slots[slot]
        places, tints = (array[i].view((len(windows), 3)) for array in (batch.windows, batch.noise))
        self._upload(i, slot, places, windows)
        self._upload(i, slot, tints, noise)
        return places, tints
