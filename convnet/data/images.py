"""One picture file, or the bytes of one, upright, in RGB, as a square of pixels."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging

from ..output.files import open_regular
from .dataset import U8
from .formats import HEAD, SUFFIXES, looks_like_picture, other_kind, picture_format
from .jpeg import MAX_PIXELS, BadImage, check_limit, decode_reduced, stripped

__all__ = [
    "MAX_BYTES",
    "SUFFIXES",
    "centre",
    "decode_square",
    "depth_of",
    "fitted",
    "load_square",
    "looks_like_picture",
    "scaled",
    "upright",
]

MAX_BYTES = 50 * 10**6
DEPTH = 16  # bits of the grey values of 16-bit pictures, where nobody has looked
# Pictures whose headers ``depth_of`` looks at, and how many of more than 8 bits it decodes.
HEADERS, DECODED = 500, 100

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

_AVIF_EXIF = re.compile(rb"(infe\x02.{7}|infe\x03.{9})Exif", re.DOTALL)  # the entry of such data in an AVIF file


def _silence_libtiff() -> None:
    """libtiff writes its own complaints to standard error, and Pillow has no switch for that; errors are raised too."""
    try:
        library = ctypes.CDLL(_imaging.__file__)  # with what it is linked to
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.restype, handler.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
            handler(None)
    except (OSError, AttributeError):  # this Pillow has no libtiff, or keeps its names to itself
        pass


_silence_libtiff()


def load_square(path: str | Path, size: int, depth: int = DEPTH) -> U8:
    """The picture at ``path`` as uint8 (size, size, 3), red green blue: as ``fitted``.

    Raises ``BadImage`` for a file that is missing, unreadable, damaged, above 50 MB or above 64 megapixels; the two
    limits are checked before anything is decoded.
    """
    try:
        with open_regular(path) as file:
            return decode_square(file, size, depth)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def decode_square(file: BinaryIO, size: int, depth: int = DEPTH) -> U8:
    """As ``load_square``, from an open binary file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length > MAX_BYTES:
        raise BadImage(f"{length:,} bytes; the limit is {MAX_BYTES:,}")
    return np.array(fitted(file.read(), size, depth))


def fitted(raw: bytes, size: int, depth: int = DEPTH, *, square: bool = True) -> Image.Image:
    """The picture ``raw`` in RGB, its shorter side ``size``: as ``upright`` and ``scaled`` say, but quicker if large.

    A large JPEG is decoded smaller (``decode_reduced``), and then scaled as the whole image would be: the same part of
    it, to the same width and height. Images in all other formats come whole. Raises ``BadImage``.
    """
    image, orientation, by, width, height = _decoded(raw, depth, size)
    image = _turned(image, orientation)
    if by == 1:
        return scaled(image, size, square=square)
    # The last row and column may reach beyond the whole image; after turning, they may be the first ones.
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    left = image.width - width / by if orientation in (2, 3, 6, 7) else 0
    top = image.height - height / by if orientation in (3, 4, 7, 8) else 0
    return _scaled(image, size, square, width, height, (left, top, left + width / by, top + height / by))


def upright(raw: bytes, depth: int = DEPTH) -> Image.Image:
    """The picture ``raw``, whole and in RGB, whichever of the formats in ``formats.py`` it is in, by its content.

    Written rules for what is not plain RGB:

    - EXIF orientation is applied (XMP's where there is none); broken EXIF data is none. Of an animation, of the pages
      of a TIFF and of the pictures of an MPO the first counts, of an icon the largest;
    - grey, palette and CMYK become RGB as Pillow converts them;
    - grey values of 16 bits are those of a data set that uses ``depth`` bits of them, 8 to 16: they lose their lower
      ``depth`` - 8 bits, and what is then above 255 becomes 255 (``depth_of`` finds ``depth``). So do whole numbers
      that are stored with more bits; where one is negative or above 65,535, or where they have fractions, there is no
      rule, and the picture is bad;
    - colours of 16 bits keep their upper eight: Pillow has no others;
    - transparency is laid over white.

    Raises ``BadImage``.
    """
    image, orientation, *_ = _decoded(raw, depth, None)
    return _turned(image, orientation)


def depth_of(read: Callable[[int], bytes], count: int) -> int | None:
    """How many bits the grey values of the 16-bit pictures of a data set use, 8 to 16: the ``depth`` of ``upright``.

    ``read(index)`` gives the bytes of one of ``count`` pictures, or raises ``BadImage``. At most ``HEADERS`` of them,
    evenly spaced, are looked at, and the first ``DECODED`` whose headers promise grey values of more than 8 bits are
    decoded; the largest value decides. None where there is no such picture among them.
    """
    largest = []
    for k in range(min(count, HEADERS)):
        try:
            raw = read(k * count // min(count, HEADERS))
            kind = picture_format(raw[:HEAD])
            if kind not in ("PNG", "TIFF", "PPM", "JPEG2000"):
                continue
            with _opened(raw, kind) as image:
                if image.mode.startswith("I"):
                    largest.append(int(_grey_values(image).max()))
        except MemoryError:
            raise
        except Exception:  # a bad picture, of which ``upright`` says more
            continue
        if len(largest) == DECODED:
            break
    return max(8, max(largest).bit_length()) if largest else None


def scaled(image: Image.Image, size: int, *, square: bool = True) -> Image.Image:
    """The shorter side brought to ``size`` (bilinear, with antialiasing when it shrinks), then the centre square.

    The longer side becomes round(longer * size / shorter), and the square begins at half of what it has too many,
    rounded down. Without ``square`` nothing is cut off. One ``resize`` with ``box`` would take three quarters of the
    time, but Pillow rounds the box to float32, and the order of its two passes depends on the version and the sizes:
    some pixels would not be those of a plain ``resize`` and ``crop``.
    Raises ``BadImage`` where an extreme strip would become larger than 64 megapixels.
    """
    return _scaled(image, size, square, *image.size, None)


def _scaled(
    image: Image.Image, size: int, square: bool, width: int, height: int, box: tuple[float, float, float, float] | None
) -> Image.Image:
    """``image`` stands for one of ``width`` x ``height``, all of which is in its ``box`` (all of it where None)."""
    shorter = min(width, height)
    wide, high = round(width * size / shorter), round(height * size / shorter)
    if wide * high > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels, too long a strip: {wide} x {high} at the size of {size}")
    whole = image.resize((wide, high), Image.Resampling.BILINEAR, box)
    left, top = (wide - size) // 2, (high - size) // 2
    return whole.crop((left, top, left + size, top + size)) if square else whole


def centre(pixels: U8, size: int) -> U8:
    """The centre square of an image whose shorter side is ``size``: what ``scaled`` would have cut out."""
    top, left = ((extent - size) // 2 for extent in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


class _Decoded(NamedTuple):
    image: Image.Image  # in RGB, as it is stored
    orientation: int
    by: int  # what its width and height are divided by: see ``decode_reduced``
    width: int
    height: int


def _decoded(raw: bytes, depth: int, size: int | None) -> _Decoded:
    head = raw[:HEAD]
    kind = picture_format(head)
    if kind is None and (told := other_kind(head)):
        raise BadImage(told)
    try:
        if kind == "JPEG":
            picture, exif, xmp, _ = stripped(raw)
            pixels, *divided = decode_reduced(picture, size)
            return _Decoded(Image.fromarray(pixels), _orientation(exif) or _xmp_orientation(xmp), *divided)
        with _opened(raw, kind or "TGA") as file:
            image = _rgb(file, depth)
            image.load()  # Pillow decodes when the pixels are needed; now it has read all of the file
            return _Decoded(image, _told_orientation(file), 1, *image.size)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text has an address in memory
        told = (
            "its header is broken, or Pillow was built without this format"
            if kind
            else "it begins like no picture that is known"
        )
        raise BadImage(f"not a readable {kind + ' ' if kind else ''}image ({told})") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything: SyntaxError, struct.error, ...
        raise BadImage(f"not a readable {kind or 'TGA'} image ({' '.join(str(error).split())})") from error


def _opened(raw: bytes, kind: str) -> Image.Image:
    """The picture, its header read and its size found to be within the limit."""
    if kind == "ICO":
        _check_icon(raw)
    if kind == "AVIF":  # Pillow refuses a file whose EXIF data are broken, and the container says how it is turned
        raw = _AVIF_EXIF.sub(rb"\1none", raw)
    image = Image.open(io.BytesIO(raw), formats=(kind,))
    check_limit(*image.size)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    # DNG says so; other cameras' files have a small preview here, and what was taken in a directory below
    if 0xC612 in tags or (0x014A in tags and tags.get(0x00FE) == 1):
        raise BadImage("a camera's raw file, which is not read here; convert it to JPEG or PNG")
    return image


def _check_icon(raw: bytes) -> None:
    """The limit for each picture in an icon, which Pillow decodes as it opens the file."""
    for entry in range(6, 6 + 16 * int.from_bytes(raw[4:6], "little"), 16):
        at = int.from_bytes(raw[entry + 12 : entry + 16], "little")
        header = raw[at : at + 24]
        if header.startswith(b"\x89PNG"):
            check_limit(int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big"))
        else:
            height = abs(int.from_bytes(header[8:12], "little", signed=True))  # of colours and mask together
            check_limit(abs(int.from_bytes(header[4:8], "little", signed=True)), height // 2)


def _told_orientation(image: Image.Image) -> int:
    """What the metadata of a picture that is not JPEG say; Pillow turns TIFF itself and then takes it out of them."""
    exif = image.info.get("exif", b"")
    if not exif and (text := image.info.get("Raw profile type exif")):  # as ImageMagick writes it into PNG
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(text).split("\n")[3:]))
    xmp = image.info.get("xmp", b"")
    return _orientation(exif) or _xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp)


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 0 where it has none. Pillow would read all of it, and warns of what is broken."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if order and tag == 0x0112 and kind in (1, 3, 4):  # of one, two or four bytes
                return int(struct.unpack_from(order + "_B_HI"[kind], exif, entry + 8)[0])
    except struct.error:  # cut short
        pass
    return 0


def _xmp_orientation(xmp: bytes) -> int:
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 0


def _rgb(image: Image.Image, depth: int) -> Image.Image:
    if image.mode.startswith("I"):  # grey of more than 8 bits, which Pillow would clip at 255
        values = _grey_values(image) >> (depth - 8)
        return Image.fromarray(np.minimum(values, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage(
            "its grey values are numbers with fractions, and nothing says which is white; save them as whole numbers, "
            "in a PNG of 8 or 16 bits"
        )
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_values(image: Image.Image) -> NDArray[np.int32]:
    """The grey values (H, W) of a picture of more than 8 bits. Raises ``BadImage`` for what 16 bits do not hold."""
    values: NDArray[np.int32] = np.asarray(image.convert("I"))
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise BadImage(
            f"its grey values go from {low:,} to {high:,}, and only 0 to 65,535 can be used; bring them into that "
            "range and save them as PNG of 16 bits"
        )
    return values
