"""What every data set looks like to the training loop: two splits of labelled square images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


LAYOUT = "train/CLASS/ and val/CLASS/ with .jpg, .jpeg or .png files"
ACCEPTED = (
    f"accepted are 'shapes' (drawn images), a folder with {LAYOUT}, a folder made by convnet-prepare, and a CIFAR-10 "
    "archive or folder (binary or Python version)"
)


class DataError(Exception):
    """The data cannot be used as given; the message names the path, what was found and what is accepted."""


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
    std: F32  # (3,): standard deviation of red, green and blue over all pixels
    deviations: F32  # (3,): standard deviation along each principal component of the colours, largest first
    directions: F32  # (3, 3): the components as unit vectors in columns; the largest entry of each is positive

    def colour(self) -> dict[str, list[Any]]:
        """All but the mean image, as JSON takes it."""
        return {name: getattr(self, name).tolist() for name in ("std", "deviations", "directions")}


@dataclass(frozen=True)
class DataSet:
    """A recognised data set: ``name`` is one line for the user, equal ``fingerprint`` means equal data.

    ``statistics`` are those of the whole training images where they come with the data.
    """

    name: str
    classes: list[str]
    train: Split
    valid: Split
    fingerprint: str
    statistics: Statistics | None = None
