"""Pictures of one purpose as square pixels: decoded from where they lie, out of an array, or some of another split."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .dataset import I32, U8, DataError, DataSet, Split, placed
from .images import decode_square, scaled
from .jpeg import BadImage
from .source import Files, Part, Source, own_side

# More bad pictures than this share are an error, but some are forgiven in the smallest split. So many are warned about.
BAD_SHARE, BAD_FORGIVEN, BAD_TOLD = 0.05, 10, 5

_log = logging.getLogger("convnet.data")


class PlacesSplit:
    """Encoded pictures, decoded anew whenever they are asked for.

    One that cannot be decoded is replaced, always alike, by the next readable one of its class (round the corner), so
    that labels stay true; all are kept in ``bad`` (index -> reason), and warned about once, the first few by name.
    ``DataError`` when more than 5 % and more than 10 are bad, or when a class has no readable picture left.
    """

    def __init__(self, part: Part, classes: Sequence[str], *, size: int, depth: int) -> None:
        self.size, self.labels = size, part.labels
        self._part, self._classes, self._depth = part, classes, depth
        # the pictures of a class one after the other, and where each stands among them
        self._order = np.argsort(part.labels, kind="stable")
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(self._order))
        self._starts = np.searchsorted(part.labels[self._order], np.arange(len(classes) + 1))
        self._lock = threading.Lock()
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        images = self._part.images
        return images[index].file if isinstance(images, Files) else self._part.names[index]

    def image(self, index: int, out: U8 | None = None) -> U8:
        label = int(self.labels[index])
        start, end = self._starts[label : label + 2].tolist()
        at = int(self._rank[index])
        for place in chain(range(at, end), range(start, at)):
            candidate = int(self._order[place])
            if candidate in self.bad:
                continue
            try:
                raw = self._part.images[candidate].read()
                return placed(decode_square(io.BytesIO(raw), self.size, self._depth), out)
            except BadImage as error:
                self._report(candidate, str(error))
        raise DataError(f"class {self._classes[label]!r} has no readable image among {end - start:,}")

    def _report(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.bad:
                return
            self.bad[index] = reason
            count, name = len(self.bad), self.name(index)
            if count <= BAD_TOLD:
                _log.warning("bad image %r: %s; the next one of its class takes its place", name, reason)
            if count == BAD_TOLD + 1:
                _log.warning("there are more bad images; they are listed at the end")
            if count > max(BAD_FORGIVEN, BAD_SHARE * len(self)):
                raise DataError(
                    f"{count} of {len(self):,} images cannot be read, the last one {name!r} ({reason}); remove or "
                    "repair them, or let convnet-prepare sort them out, which lists all and keeps the others"
                )


class PixelSplit:
    """Pictures that lie in memory as pixels, (n, H, W, 3) or (n, H, W), brought to ``size`` on demand (bilinear)."""

    def __init__(self, part: Part, *, size: int) -> None:
        self.size, self.labels, self._names = size, part.labels, part.names
        assert isinstance(part.images, np.ndarray)
        self._pixels: U8 = part.images

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self._names[index]

    def image(self, index: int, out: U8 | None = None) -> U8:
        return placed(np.array(scaled(Image.fromarray(self._pixels[index]).convert("RGB"), self.size)), out)


class Subset:
    """The pictures ``indices`` of a split, in that order, under other ``labels`` where given."""

    def __init__(self, split: Split, indices: NDArray[np.int64], labels: I32 | None = None) -> None:
        self.split, self.indices, self.size = split, indices, split.size
        self.labels = split.labels[indices] if labels is None else labels

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, out: U8 | None = None) -> U8:
        return self.split.image(int(self.indices[index]), out)

    def name(self, index: int) -> str:
        return self.split.name(int(self.indices[index]))


def as_split(part: Part, classes: Sequence[str], *, size: int, depth: int) -> Split:
    if isinstance(part.images, np.ndarray):
        return PixelSplit(part, size=size)
    return PlacesSplit(part, classes, size=size, depth=depth)


def as_dataset(source: Source, *, size: int, depth: int) -> DataSet:
    """The pictures of ``source`` as ``size`` x ``size`` pixels."""

    def opened(part: Part) -> Split:
        return as_split(part, source.classes, size=size, depth=depth)

    return DataSet(
        source.name,
        source.classes,
        opened(source.train),
        opened(source.valid),
        source.trained_on,
        test=opened(source.test) if source.test is not None else None,
        notes=tuple(source.notes),
        left_out=tuple(source.left_out),
        depth=depth,
        decodes=not isinstance(source.train.images, np.ndarray),
        held_out=source.held_out,
        batches=tuple(count for _, count in source.train.batches),
        mean=source.mean if source.mean is not None and source.mean.shape[1] == size else None,
        as_they_are=own_side(source.train) == size,
    )
