"""Images as luma and halved chroma, 1.5 bytes a pixel: how they are kept on a device (``--cache device``).

The planes are those of a JPEG file with 4:2:0 subsampling, before its compression: JFIF 1.02, that is ITU-R BT.601 in
full range,

    luma = 0.299 R + 0.587 G + 0.114 B
    cb   = -0.168736 R - 0.331264 G + 0.5 B + 128       cr = 0.5 R - 0.418688 G - 0.081312 B + 128

in the fixed point of libjpeg, rounded to nearest; chroma of the mean colour of 2x2 pixels. ``ingest_planar`` says what
colours are made of them (``src/kernels/ingest_planar.hpp``).
"""

from __future__ import annotations

import numpy as np

from .dataset import U8

# 16 bits behind the point
LUMA = np.array([19595, 38470, 7471], np.int32)
CB = np.array([-11059, -21709, 32768], np.int32)
CR = np.array([32768, -27439, -5329], np.int32)


def to_planes(image: U8) -> tuple[U8, U8, U8]:
    """luma (size, size), cb and cr (half, half) of an image (size, size, 3); half is size / 2, rounded up.

    In an odd size the last row and column are taken twice into their mean.
    """
    colours = image.astype(np.int32)
    luma = (colours @ LUMA + (1 << 15)) >> 16
    odd = len(image) % 2
    padded = np.pad(colours, ((0, odd), (0, odd), (0, 0)), "edge")
    rows = padded[::2] + padded[1::2]
    sums = rows[:, ::2] + rows[:, 1::2]  # of 4 pixels: two more bits, and below 2^31 times 32768
    cb, cr = (np.minimum((sums @ weights + (128 << 18) + (1 << 17)) >> 18, 255) for weights in (CB, CR))
    return luma.astype(np.uint8), cb.astype(np.uint8), cr.astype(np.uint8)
