"""Batches for training and evaluation: decoded in parallel ahead of the consumer, the same for any number of workers.

Workers are threads: the decoders work outside the interpreter lock, and a thread can neither be lost silently nor needs
a copy of the data set. They decode straight into the memory of a batch, which is used again and again: touching new
memory would take as long as half the decoding. Every random decision is a function of (seed, epoch, position in the
epoch), made here and not in the workers, so that neither their number nor a resume changes a batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels import rng
from .dataset import F32, I32, U8, Split, Statistics
from .minibatches import Minibatches

AHEAD = 3  # batches decoded or being decoded before the consumer asks for them: this bounds the memory
CHUNK = 16  # images per task: small enough that all workers share the next batch, large enough to hide the hand-over
# The paper's: standard deviation of the colour noise along a principal component, in units of the component's own.
NOISE = 0.1

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """``n`` whole images and what to cut out of them; see ``Loader``."""

    images: U8  # (n, size, size, 3); theirs until the next batch of the epoch is asked for, then other images lie there
    indices: I64  # (n,): which of the split they are
    labels: I32  # (n,)
    windows: I32  # (n, 3): top, left, flip (0 or 1)
    noise: F32  # (n, 3), to be added to red, green and blue, in levels of 0..255
    position: int  # of the first image of the minibatch in the epoch's order
    of: int  # how many images the minibatch has: more than these where it is shared out
    wait_seconds: float  # how long the consumer waited for this batch


class Loader:
    """Batches of ``split``, epoch by epoch.

    With ``shuffle`` the order is a permutation of the split made from (seed, epoch); else it is the order as stored,
    and minibatches start anew in each of the data batches that the split comes in, ``batches`` giving their images.
    With ``augment`` every image gets a random crop window and flip, and colour noise along the principal components of
    the training images (Krizhevsky, Sutskever and Hinton 2012, section 4.1: directions @ (deviations * noise * z), z
    normal, noise 0.1); else the centre window, no flip and no noise. ``crop_chunk`` images that follow each other in a
    data batch share one window and flip, 32 in the 2012 program. ``shuffle`` is as ``augment`` unless given.

    ``workers`` threads decode up to ``AHEAD`` batches ahead; 0 decodes in the calling thread, when a batch is asked
    for. Without ``decode`` images have no pixels: they lie elsewhere, and ``indices`` say which they are. Of every
    minibatch of n images a batch has ``share(n)``, all of them unless given. Where ``cuts(n)`` says at which images
    shares of a minibatch begin, and where the last one ends, images are shuffled within parts of the split that go to
    the same share in every epoch.

    An exception of a worker is raised to the consumer. ``close``, or leaving the ``with`` block, ends the workers after
    the image they are at.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        crop: int,
        seed: int,
        augment: bool,
        statistics: Statistics,
        workers: int,
        shuffle: bool | None = None,
        batches: Sequence[int] = (),
        crop_chunk: int = 1,
        decode: bool = True,
        share: Callable[[int], slice] = lambda n: slice(0, n),
        cuts: Callable[[int], Sequence[int]] = lambda n: (0, n),
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"Loader: batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}"
            )
        if not 1 <= crop <= split.size:
            raise ValueError(f"Loader: crop must be 1 to the images' size of {split.size}, got {crop}")
        self._split, self._batch_size, self._crop, self._seed = split, batch_size, crop, seed
        self._augment, self._shuffle = augment, augment if shuffle is None else shuffle
        self._minibatches = Minibatches(batch_size, tuple(batches) or (len(split),))
        if crop_chunk < 1 or self._minibatches.images != len(split) or (batches and self._shuffle):
            raise ValueError(
                f"Loader: crop_chunk must be at least 1 and batches those of {len(split)} images that are not "
                f"shuffled, got {crop_chunk} and {self._minibatches.images}"
            )
        self._crop_chunk, self._share, self._cuts = crop_chunk, share, cuts
        self._side = split.size if decode else 0  # of the images that are decoded
        self._colours = statistics.directions.astype(np.float64) * statistics.deviations
        self._free: list[U8] = []  # memory of batches that nobody reads or writes any more
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="convnet-data") if workers and decode else None
        self._closed = False

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what was decoded ahead and ends the workers; the loader cannot be used any more."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def epoch(self, number: int, start: int = 0, noise: float = NOISE) -> Iterator[Batch]:
        """The batches of epoch ``number`` from image ``start`` of its order on; the last one may be short.

        ``noise`` scales the colour noise; 0 is none.
        """
        count = len(self._split)
        if not 0 <= start <= count:
            raise ValueError(f"Loader.epoch: start must be 0 to {count}, got {start}")
        if not 0 <= noise < math.inf:
            raise ValueError(f"Loader.epoch: noise must be at least 0, got {noise}")
        if self._closed:
            raise RuntimeError("Loader.epoch: the loader is closed")
        return self._batches(number, self._order(number), start, noise)

    def _order(self, epoch: int) -> I64:
        index = np.arange(len(self._split))
        if not self._shuffle:
            return index
        high, low = rng.philox(index, epoch, 0, rng.SHUFFLE, self._seed)[:2].astype(np.uint64)
        drawn = high << np.uint64(32) | low
        taken = [np.diff(self._cuts(end - start)) for start, end in self._minibatches.spans(0)]
        share_of = np.concatenate([np.repeat(np.arange(len(sizes)), sizes) for sizes in taken] or [index])
        order, first = np.empty_like(index), 0
        for share in range(share_of.max(initial=0) + 1):
            places = np.flatnonzero(share_of == share)
            part = np.argsort(drawn[first : first + len(places)], kind="stable")
            order[places], first = part + first, first + len(places)
        return order

    def _batches(self, epoch: int, order: I64, start: int, noise: float) -> Iterator[Batch]:
        waiting: deque[tuple[int, int, slice, U8, list[Future[None]]]] = deque()
        spans = self._minibatches.spans(start)
        try:
            while True:
                # Without workers the one batch is decoded right here, so nothing is gained by more.
                while len(waiting) < (AHEAD if self._pool else 1) and (span := next(spans, None)) is not None:
                    first, end = span
                    share = self._share(end - first)
                    own = slice(first + share.start, first + share.stop)
                    memory = self._free.pop() if self._free else self._memory()
                    waiting.append((*span, own, memory, self._submit(order[own], memory)))
                if not waiting:
                    return
                position, end, own, memory, tasks = waiting.popleft()
                indices = order[own]
                began = time.perf_counter()
                if self._pool is None and self._side:
                    self._decode(indices, memory)
                for task in reversed(tasks):  # the last one first: the others are then done, and it wakes up once only
                    task.result()
                waited = time.perf_counter() - began
                windows, tints = self._augmentation(np.arange(own.start, own.stop), epoch, noise)
                images, labels = memory[: len(indices)], self._split.labels[indices]
                yield Batch(images, indices, labels, windows, tints, position, end - position, waited)
                self._free.append(memory)
        finally:  # also when the consumer leaves the loop, or a task failed; workers may still write into what waits
            for *_, tasks in waiting:
                for task in tasks:
                    task.cancel()

    def _memory(self) -> U8:
        most = min(self._batch_size, len(self._split))
        share = self._share(most)
        count = min(share.stop - share.start + 1, most)  # of fewer images the share may be one larger
        return np.empty((count, self._side, self._side, 3), np.uint8)

    def _submit(self, indices: I64, images: U8) -> list[Future[None]]:
        if self._pool is None:
            return []
        chunks = range(0, len(indices), CHUNK)
        return [self._pool.submit(self._decode, indices[k : k + CHUNK], images[k : k + CHUNK]) for k in chunks]

    def _decode(self, indices: I64, images: U8) -> None:
        for row, index in enumerate(indices.tolist()):
            if self._closed:
                raise RuntimeError("Loader: closed while a batch was being decoded")
            self._split.image(index, images[row])

    def _augmentation(self, positions: I64, epoch: int, noise: float) -> tuple[I32, F32]:
        border = self._split.size - self._crop  # border + 1 places for the window on each axis
        windows = np.zeros((len(positions), 3), np.int32)
        tints = np.zeros((len(positions), 3), np.float32)
        if not self._augment or not len(positions):
            windows[:, :2] = border // 2
            return windows, tints
        begin = self._minibatches.start(int(positions[0]))  # no minibatch reaches into another data batch
        first = positions - (positions - begin) % self._crop_chunk
        words = rng.philox(first, epoch, 0, rng.AUGMENT, self._seed).astype(np.uint64)
        places = np.array([border + 1, border + 1, 2], np.uint64)
        windows[:] = (words[:3].T * places) >> np.uint64(32)
        if noise:
            z = rng.normal(rng.philox(positions, epoch, 0, rng.NOISE, self._seed))[:3]
            # Not a matrix product: its rounding would depend on how many images a batch has.
            tints[:] = sum(self._colours[:, k] * noise * z[k, :, None] for k in range(3))
        return windows, tints
