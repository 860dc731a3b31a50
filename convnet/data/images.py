"""One image file, or the bytes of one, as a square of pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from convnet.data.dataset import U8
from convnet.data.jpeg import MAX_PIXELS, BadImage

SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_BYTES = 50 * 10**6

# EXIF orientation -> what brings the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_square(path: str | Path, size: int) -> U8:
    """The image file at ``path`` as uint8 (size, size, 3), red green blue.

    The centre square of the image, scaled so that the shorter side becomes ``size`` (bilinear, with antialiasing when
    it shrinks). JPEG and PNG only. Written rules for what is not plain RGB:

    - EXIF orientation is applied; of an animation the first frame counts;
    - grey, palette and CMYK become RGB as Pillow converts them; 16-bit grey keeps its upper eight bits;
    - transparency is laid over white;
    - a JPEG of at least four times ``size`` is decoded at a half, quarter or eighth, still at least twice ``size``.

    Raises ``BadImage`` for a file that is missing, unreadable, damaged, above 50 MB or above 64 megapixels; the two
    limits are checked before anything is decoded.
    """
    try:
        with open(path, "rb") as file:
            return decode_square(file, size)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def decode_square(file: BinaryIO, size: int) -> U8:
    """As ``load_square``, from an open binary file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length > MAX_BYTES:
        raise BadImage(f"{length:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels")
            return _square(image, size)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise BadImage(f"not a readable JPEG or PNG image ({' '.join(str(error).split())})") from error


def _square(image: Image.Image, size: int) -> U8:
    if min(image.size) >= 4 * size:
        image.draft(None, (2 * size, 2 * size))  # never smaller than asked for; nothing happens for PNG
    orientation = _orientation(image)
    rgb = _rgb(image)
    width, height = rgb.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if orientation in _UPRIGHT:  # turning the small square is turning the large image
        square = square.transpose(_UPRIGHT[orientation])
    return np.array(square)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF data does not make the pixels bad
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image.load()
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")
