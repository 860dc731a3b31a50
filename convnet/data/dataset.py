"""What every data set looks like to the training loop: two splits of labelled square images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


LAYOUT = "train/CLASS/ and val/CLASS/ with .jpg, .jpeg or .png files"
ACCEPTED = (
    f"accepted are 'shapes' (drawn images), a folder with {LAYOUT}, and a CIFAR-10 archive or folder (binary or Python "
    "version)"
)


class DataError(Exception):
    """The data cannot be used as given; the message names the path, what was found and what is accepted."""


class Split(Protocol):
    """Images of one purpose (training or validation); ``image`` may be called from several threads at once."""

    size: int  # images are size x size
    labels: I32  # (n,), each in 0 .. number of classes - 1

    def __len__(self) -> int: ...

    def image(self, index: int) -> U8:
        """Image ``index`` as uint8 (size, size, 3), red green blue: the same pixels on every call."""
        ...


@dataclass(frozen=True)
class DataSet:
    """A recognised data set: ``name`` is one line for the user, equal ``fingerprint`` means equal data."""

    name: str
    classes: list[str]
    train: Split
    valid: Split
    fingerprint: str
