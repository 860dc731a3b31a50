"""One image file, or the bytes of one, upright, in RGB, as a square of pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..output.files import open_regular
from .dataset import U8
from .jpeg import MAX_PIXELS, BadImage, decode_rgb

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
    """The image file at ``path`` as uint8 (size, size, 3), red green blue: ``upright``, then ``scaled``.

    Raises ``BadImage`` for a file that is missing, unreadable, damaged, above 50 MB or above 64 megapixels; the two
    limits are checked before anything is decoded.
    """
    try:
        with open_regular(path) as file:
            return decode_square(file, size)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def decode_square(file: BinaryIO, size: int) -> U8:
    """As ``load_square``, from an open binary file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length > MAX_BYTES:
        raise BadImage(f"{length:,} bytes; the limit is {MAX_BYTES:,}")
    return np.array(scaled(upright(file.read()), size))


def upright(raw: bytes) -> Image.Image:
    """The JPEG or PNG image ``raw``, whole and in RGB. Written rules for what is not plain RGB:

    - EXIF orientation is applied; of an animation the first frame counts;
    - grey, palette and CMYK become RGB as Pillow converts them; 16-bit grey keeps its upper eight bits;
    - transparency is laid over white.

    Raises ``BadImage``.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels")
            orientation = _orientation(image)
            rgb = _rgb(image) if image.format == "PNG" else Image.fromarray(decode_rgb(raw))
            rgb.load()  # Pillow decodes PNG when the pixels are needed
            return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text has an address in memory
        raise BadImage("not a readable JPEG or PNG image (it does not begin like one)") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise BadImage(f"not a readable JPEG or PNG image ({' '.join(str(error).split())})") from error


def scaled(image: Image.Image, size: int, *, square: bool = True) -> Image.Image:
    """The shorter side brought to ``size`` (bilinear, with antialiasing when it shrinks), then the centre square.

    The longer side becomes round(longer * size / shorter), and the square begins at half of what it has too many,
    rounded down. Without ``square`` nothing is cut off. One ``resize`` with ``box`` would take three quarters of the
    time, but Pillow rounds the box to float32, and the order of its two passes depends on the version and the sizes:
    some pixels would not be those of a plain ``resize`` and ``crop``.
    Raises ``BadImage`` where an extreme strip would become larger than 64 megapixels.
    """
    width, height = image.size
    shorter = min(width, height)
    wide, high = round(width * size / shorter), round(height * size / shorter)
    if wide * high > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels, too long a strip: {wide} x {high} at the size of {size}")
    whole = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return whole.crop((left, top, left + size, top + size)) if square else whole


def centre(pixels: U8, size: int) -> U8:
    """The centre square of an image whose shorter side is ``size``: what ``scaled`` would have cut out."""
    top, left = ((extent - size) // 2 for extent in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


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
