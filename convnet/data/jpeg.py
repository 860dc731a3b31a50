"""JPEG bytes into pixels: by simplejpeg where it is installed (the extra ``fast``), else by Pillow; the same pixels.

Both are libjpeg-turbo underneath. simplejpeg is faster, writes where it is told, and leaves the interpreter lock alone
meanwhile. It also refuses whatever libjpeg complains about, where Pillow takes the pixels that libjpeg makes of it:
bytes too many, a missing end marker, some flipped bits. So that one verdict holds everywhere, Pillow decides about
every file that simplejpeg refuses, and neither is shown the parts of a file that are no picture (``stripped``): Pillow
reads them and stumbles over broken ones, simplejpeg does not look.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from .dataset import U8, placed

try:
    import simplejpeg
except ImportError:  # not installed, or not loadable here
    simplejpeg = None

MAX_PIXELS = 64 * 10**6
MAX_SCANS = 100  # of a progressive file; each goes over all pixels again, and takes a few bytes where it changes none
MARGIN = 3  # a reduced image's shorter side is at least so many times the size that it will be scaled to

_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class BadImage(Exception):
    """The file is no image that can be used; the message says why, without the file's name."""


class Stripped(NamedTuple):
    """A JPEG file without what is no picture, and the two parts of that in which its orientation may be told."""

    raw: bytes
    exif: bytes
    xmp: bytes
    sequential: bool  # for certain: each scan then has bytes for every block


def decoder() -> str:
    """Which of the two decodes here: "simplejpeg" or "Pillow"."""
    return "simplejpeg" if simplejpeg is not None else "Pillow"


def check_limit(width: int, height: int) -> None:
    """Raises ``BadImage`` for more than 64 megapixels."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels")


def stripped(raw: bytes) -> Stripped:
    """``raw`` without the comments and application segments before its first scan; as it is where it is no JPEG.

    Only the two that say how colours are stored are kept, where they are whole (JFIF's and Adobe's). From the first
    irregular byte on, everything stays: simplejpeg refuses such a file anyway.
    """
    kept, exif, xmp, sequential = [raw[:2]], b"", b"", False
    at, end = 2, len(raw)
    while raw.startswith(b"\xff\xd8") and at + 4 <= end and raw[at] == 0xFF:
        code = raw[at + 1]
        if code == 0xFF or code == 0x01:  # a byte that fills up; a marker that says nothing, and has no length
            at += 1 if code == 0xFF else 2
            continue
        if code < 0xC0 or 0xD0 <= code <= 0xDA:  # none that has a length, or the first scan
            break
        length = 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        body = raw[at + 4 : at + length]
        if length < 4 or len(body) != length - 4:
            break
        if not (0xE0 <= code <= 0xEF or code == 0xFE) or (
            (code == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14)
            or (code == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
        ):
            kept.append(raw[at : at + length])
            sequential = sequential or code in (0xC0, 0xC1)
        elif code == 0xE1 and body.startswith(_EXIF):
            exif = exif or body
        elif code == 0xE1 and body.startswith(_XMP):
            xmp = xmp or body
        at += length
    kept.append(raw[max(at, 2) :])
    return Stripped(b"".join(kept), exif, xmp, sequential)


def decode_rgb(raw: bytes, out: U8 | None = None) -> U8:
    """The JPEG image ``raw`` as uint8 (H, W, 3), red green blue, as stored: EXIF orientation is not applied.

    Grey and CMYK become RGB as Pillow converts them. With ``out``, uint8 (H, W, 3) and contiguous, the pixels are
    written there and it is returned. Raises ``BadImage`` for what is no JPEG, is damaged so that Pillow refuses it, is
    above 64 megapixels (found in the header, before anything is decoded), has more than ``MAX_SCANS`` scans, or has
    another size than ``out``.
    """
    return decode_reduced(raw, None, out).pixels


class Reduced(NamedTuple):
    """A decoded image: its pixels, uint8 (H, W, 3); by what its extents are divided; and those it has, as stored."""

    pixels: U8
    by: int
    width: int
    height: int


def decode_reduced(raw: bytes, size: int | None, out: U8 | None = None) -> Reduced:
    """As ``decode_rgb``, for an image whose shorter side will be scaled to ``size`` (None: all pixels are wanted).

    It is divided by 8, 4, 2 or 1, the largest that leaves the shorter side at least ``MARGIN * size``; parts of a pixel
    count as one. libjpeg then makes fewer pixels of every block: less work here, and less in scaling, after which they
    are less than one level on average from those of the whole image.
    """
    raw, _, _, sequential = stripped(raw)
    if not sequential and (scans := raw.count(b"\xff\xda")) > MAX_SCANS:
        raise BadImage(f"a JPEG image of {scans:,} scans; the limit is {MAX_SCANS}")
    if simplejpeg is None:
        return _by_pillow(raw, size, out)
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(raw)
    except Exception:  # no JPEG, or one with a sampling or a colour space that simplejpeg does not know
        return _by_pillow(raw, size, out)
    if colourspace in ("CMYK", "YCCK"):
        return _by_pillow(raw, size, out)
    by = _division(width, height, size, out)
    rows, columns = -(-height // by), -(-width // by)
    try:
        pixels = simplejpeg.decode_jpeg(raw, "RGB", min_height=rows, min_width=columns, buffer=out)
    except ValueError:
        return _by_pillow(raw, size, out)
    return Reduced(pixels if out is None else out, by, width, height)


def _by_pillow(raw: bytes, size: int | None, out: U8 | None) -> Reduced:
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG",)) as image:
            width, height = image.size
            by = _division(width, height, size, out)
            image.draft(image.mode, (width // by, height // by))
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text has an address in memory
        raise BadImage("not a readable JPEG image (its header is not one)") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise BadImage(f"not a readable JPEG image ({' '.join(str(error).split())})") from error
    return Reduced(pixels.copy() if out is None else placed(pixels, out), by, width, height)


def _division(width: int, height: int, size: int | None, out: U8 | None) -> int:
    """By what an image is divided. Raises ``BadImage`` for one that is above the limit or does not fit into ``out``."""
    check_limit(width, height)
    by = 1 if size is None else next((k for k in (8, 4, 2) if min(height, width) >= MARGIN * size * k), 1)
    if out is not None and out.shape != (-(-height // by), -(-width // by), 3):
        raise BadImage(f"{width} x {height} pixels, where {out.shape[1]} x {out.shape[0]} were expected")
    return by
