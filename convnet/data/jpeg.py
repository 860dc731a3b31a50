"""JPEG bytes into pixels: by simplejpeg where it is installed (the extra ``fast``), else by Pillow; the same pixels.

Both are libjpeg-turbo underneath. simplejpeg is faster, writes where it is told, leaves the interpreter lock alone
meanwhile, and notices damage that Pillow decodes into wrong pixels without a word.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .dataset import U8

try:
    import simplejpeg
except ImportError:  # not installed, or not loadable here
    simplejpeg = None

MAX_PIXELS = 64 * 10**6


class BadImage(Exception):
    """The file is no image that can be used; the message says why, without the file's name."""


def decoder() -> str:
    """Which of the two decodes here: "simplejpeg" or "Pillow"."""
    return "simplejpeg" if simplejpeg is not None else "Pillow"


def decode_rgb(raw: bytes, out: U8 | None = None) -> U8:
    """The JPEG image ``raw`` as uint8 (H, W, 3), red green blue, as stored: EXIF orientation is not applied.

    Grey and CMYK become RGB as Pillow converts them. With ``out``, uint8 (H, W, 3) and contiguous, the pixels are
    written there and it is returned. Raises ``BadImage`` for what is no JPEG, is damaged, is above 64 megapixels (found
    in the header, before anything is decoded), or has another size than ``out``.
    """
    if simplejpeg is None:
        return _by_pillow(raw, out)
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:  # no JPEG, or one with a sampling that simplejpeg does not know
        return _by_pillow(raw, out)
    if colourspace in ("CMYK", "YCCK"):
        return _by_pillow(raw, out)
    _check_size(height, width, out)
    try:
        pixels: U8 = simplejpeg.decode_jpeg(raw, "RGB", buffer=out)
    except ValueError as error:
        raise _unreadable(error) from error
    return pixels if out is None else out


def _by_pillow(raw: bytes, out: U8 | None) -> U8:
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG",)) as image:
            _check_size(image.height, image.width, out)
            pixels = image if image.mode == "RGB" else image.convert("RGB")
            if out is None:
                return np.array(pixels)
            out[:] = np.asarray(pixels)
            return out
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise _unreadable(error) from error


def _check_size(height: int, width: int, out: U8 | None) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels")
    if out is not None and out.shape != (height, width, 3):
        raise BadImage(f"{width} x {height} pixels, where {out.shape[1]} x {out.shape[0]} were expected")


def _unreadable(error: Exception) -> BadImage:
    return BadImage(f"not a readable JPEG image ({' '.join(str(error).split())})")
