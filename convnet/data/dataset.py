"""What every data set looks like to the training loop: two splits of labelled square images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


VAL_SPLIT = 0.1  # the share held out where the data has no validation pictures
ACCEPTED = (
    "accepted are 'shapes' (drawn images), a folder of pictures (CLASS/*, or train/CLASS/* and val/CLASS/*, or with a "
    "CSV file of labels), what convnet-prepare made, and published files: ILSVRC-2012 archives, CIFAR batches, IDX, "
    ".npz, Parquet, WebDataset shards"
)


class DataError(Exception):
    """The data cannot be used as given; the message names the path, what was found and what is accepted."""


class NotThere(DataError):
    """There is nothing at the path, as ``what`` says: the data may have moved, and who asked knows how to name it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {ACCEPTED}")
        self.what = what


@dataclass(frozen=True)
class LeftOut:
    """A file among the pictures that is not used, and why."""

    group: str  # the class, or the folder, that it was found in
    name: str
    reason: str


def left_out_lines(left_out: Sequence[LeftOut], most: int = 8) -> list[str]:
    """How many files are left out of which class and why, the largest counts first; the rest in one line."""
    counts = Counter((entry.group, entry.reason) for entry in left_out).most_common()
    lines = [f"left out of {group!r}: {count:,} ({reason})" for (group, reason), count in counts[:most]]
    if rest := counts[most:]:
        lines.append(f"left out elsewhere: {sum(count for _, count in rest):,}")
    return lines


def depth_lines(bits: int | None) -> list[str]:
    """What is done with 16-bit pictures whose grey values take so many bits; nothing where there are none (None)."""
    if bits is None:
        return []
    return [f"16-bit pictures: their values take {bits} bits, and are divided by {2 ** (bits - 8)} (255 at most)"]


class Split(Protocol):
    """Images of one purpose (training or validation); ``image`` may be called from several threads at once."""

    size: int  # images are size x size
    labels: I32  # (n,), each in 0 .. number of classes - 1

    def __len__(self) -> int: ...

    def image(self, index: int, out: U8 | None = None) -> U8:
        """Image ``index`` as uint8 (size, size, 3), red green blue: the same pixels on every call.

        With ``out``, contiguous and of that shape, they are written there and ``out`` is returned.
        """
        ...

    def name(self, index: int) -> str:
        """What a person may find image ``index`` by: the path of its file, or its number."""
        ...


def placed(pixels: U8, out: U8 | None) -> U8:
    """``pixels``, in ``out`` where that is given: how splits end that cannot decode straight into it."""
    if out is None:
        return pixels
    out[:] = pixels
    return out


@dataclass(frozen=True)
class Statistics:
    """Of the training images, in levels of 0..255."""

    mean: F32  # (3, size, size): the mean image
    std: NDArray[np.floating[Any]]  # (3,): standard deviation of red, green and blue over all pixels
    deviations: F32  # (3,): standard deviation along each principal component of the colours, largest first
    directions: F32  # (3, 3): the components as unit vectors in columns; the largest entry of each is positive

    def colour(self) -> dict[str, list[Any]]:
        """All but the mean image, as JSON takes it."""
        return {name: getattr(self, name).tolist() for name in ("std", "deviations", "directions")}


@dataclass(frozen=True)
class HeldOut:
    """The validation images are the share ``share`` of every class of the pictures whose digest is ``of``, chosen by
    ``seed``."""

    of: str
    seed: int
    share: float

    @classmethod
    def read(cls, told: Any) -> HeldOut | None:
        """From what a store or a checkpoint says, None where it says nothing. Raises ``ValueError``."""
        if told is None:
            return None
        of, seed, share = (told.get(name) for name in ("of", "seed", "share")) if isinstance(told, dict) else (0, 0, 0)
        if type(of) is not str or type(seed) is not int or not 0 <= seed < 2**64 or type(share) is not float:
            raise ValueError(f"expected digest, seed and share of pictures that are held out, found {told!r:.80}")
        if not 0 < share < 1:
            raise ValueError(f"expected a share between 0 and 1 of pictures that are held out, found {share}")
        return cls(of, seed, share)


@dataclass(frozen=True)
class DataSet:
    """A recognised data set: ``name`` is one line for the user, equal ``fingerprint`` means equal data.

    ``statistics`` are those of the whole training images where they come with the data. ``notes`` are further lines
    for the user. ``depth`` is the number of bits that the grey values of its 16-bit pictures take. ``decodes`` tells
    whether images come from files of any size, so that ``convnet-prepare`` makes them quicker to read. ``held_out`` is
    None where the data came with validation images. ``batches``: how many training images there are in each of the
    data batches that they came in, one after another. ``mean``: the mean image that came with them, (3, size, size).
    ``as_they_are``: they lie in memory, and have this size there.
    """

    name: str
    classes: list[str]
    train: Split
    valid: Split
    fingerprint: str
    statistics: Statistics | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    depth: int = 16
    decodes: bool = False
    held_out: HeldOut | None = None
    batches: tuple[int, ...] = ()
    mean: F32 | None = None
    as_they_are: bool = False
