"""What ``convnet-prepare`` does to each image, a few at a time: in its workers, which share nothing."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .dataset import U8, DataError
from .images import centre, fitted, scaled
from .jpeg import BadImage, decode_rgb
from .source import Encoded

LOST = 16  # so many unreadable files in a row are a source that is gone

U32 = NDArray[np.uint32]


@dataclass(frozen=True)
class Task:
    """Images to be packed, by their places or as pixels, uint8 (n, H, W, 3); ``sums`` asks for sums over them."""

    images: list[Encoded] | U8
    size: int
    quality: int
    keep_aspect: bool
    depth: int  # of 16-bit pictures, see ``images.depth_of``
    sums: bool


@dataclass(frozen=True)
class Packed:
    """For every image of a task its JPEG bytes, or the reason why it cannot be used; and sums over the stored pixels.

    ``total`` is the sum of the (centre) squares, uint32 (size, size, 3), and ``products`` that of the products of any
    two colours over all their pixels, 3 x 3.
    """

    images: list[bytes | str]
    total: U32
    products: list[list[int]]


def pack(task: Task) -> Packed:
    """Decodes, scales, encodes, and decodes again: what is stored can be read, and is what the sums are of.

    Raises ``DataError`` where one file after another cannot even be read: then it is not the images that are bad.
    """
    sums = Sums(task.size)
    images: list[bytes | str] = []
    unread = 0
    for image in task.images:
        unread += 1
        try:
            read = image if isinstance(image, np.ndarray) else image.read()
            unread = 0
            square = not task.keep_aspect
            if isinstance(read, np.ndarray):
                picture = scaled(Image.fromarray(read).convert("RGB"), task.size, square=square)
            else:
                picture = fitted(read, task.size, task.depth, square=square)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=task.quality)
            raw = file.getvalue()
            pixels = decode_rgb(raw)
        except (BadImage, OSError) as error:  # OSError: Pillow's encoder, for a side of more than 65,500
            reason = " ".join(str(error).split())
            images.append(reason)
            if unread == LOST:
                raise DataError(
                    f"{LOST} images in a row cannot be read, the last one in {image.file!r} ({reason}); is the source "
                    "still there? Finished shards are kept: repair this and run the same command again"
                ) from error
            continue
        images.append(raw)
        if task.sums:
            sums.add(centre(pixels, task.size))
    return Packed(images, sums.total, sums.products())


class Sums:
    """Exact sums over images of ``size`` x ``size``: neither their order nor how they are grouped changes a bit."""

    def __init__(self, size: int) -> None:
        self.total: U32 = np.zeros((size, size, 3), np.uint32)  # of up to 16 million images
        # Rows of four pixels in blocks of 256: sums of 256 products of bytes are below 2^24 and exact in float32. The
        # sums of a block's columns with one another hold those of the colours four times.
        self._count = size * size * 3
        self._rows = np.zeros((-(-size * size // 1024), 256, 12), np.float32)
        self._gram = np.zeros((12, 12))

    def add(self, pixels: U8) -> None:
        self.total += pixels
        self._rows.reshape(-1)[: self._count].reshape(pixels.shape)[:] = pixels
        self._gram += np.matmul(self._rows.transpose(0, 2, 1), self._rows).sum(axis=0, dtype=np.float64)

    def products(self) -> list[list[int]]:
        blocks = self._gram.reshape(4, 3, 4, 3)
        return [[int(n) for n in row] for row in blocks[range(4), :, range(4)].sum(axis=0)]
