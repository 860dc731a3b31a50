"""What a file is by its first bytes: a picture that Pillow reads, or something else that has a name.

Left out are formats for which Pillow starts another program (EPS), has only a stub (WMF, GRIB, HDF5), or which hold
films, and text formats of cursors and icons (XBM, XPM). HEIC, camera raw files and DICOM would need another library.
"""

from __future__ import annotations

import re

HEAD = 1024  # bytes that are enough to tell

# Pillow's name of a format -> its usual suffixes, and how such files begin. Targa is the one that begins like nothing.
_PICTURES = {
    "JPEG": ((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), rb"\xff\xd8\xff"),
    "PNG": ((".png", ".apng"), rb"\x89PNG\r\n\x1a\n"),
    "WEBP": ((".webp",), rb"RIFF.{4}WEBP"),
    "GIF": ((".gif",), rb"GIF8[79]a"),
    "BMP": ((".bmp",), rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    "TIFF": ((".tif", ".tiff"), rb"II(\*\0(?!.{4}CR)|\+\0)|MM\0[*+]"),
    "AVIF": ((".avif",), rb".{4}ftyp(.{4})*avi[fs]"),
    "PPM": ((".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6][\s#]"),
    "JPEG2000": ((".jp2", ".j2k", ".jpf", ".jpx"), rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    "ICO": ((".ico",), rb"\0\0\x01\0[^\0]\0.{3}\0"),
    "PCX": ((".pcx",), rb"\n[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]"),
    "SGI": ((".sgi",), rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]"),
    "SUN": ((".ras",), rb"\x59\xa6\x6a\x95"),
    "QOI": ((".qoi",), rb"qoif"),
    "DDS": ((".dds",), rb"DDS \x7c\0\0\0"),
    "PSD": ((".psd",), rb"8BPS\0\x01"),
    "TGA": ((".tga",), rb"(?!)"),
}
SUFFIXES = tuple(suffix for suffixes, _ in _PICTURES.values() for suffix in suffixes)

_TEXT = rb"[\t\n\r\x0c\x20-\x7e\x80-\xff]"
_CONVERT = "which is not read here; convert it to JPEG or PNG"
_AGAIN = "not a picture; fetch it again"
_OTHERS = (
    (rb"\Z", "the file is empty"),
    (rb"\0+\Z", f"nothing but zero bytes, {_AGAIN}"),
    (rb".{4}ftyp(.{4})*(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", f"a HEIC picture, {_CONVERT}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"a JPEG XL picture, {_CONVERT}"),
    (rb".{128}DICM", f"a DICOM file, {_CONVERT}"),
    (
        rb"II\*\0.{4}CR|.{4}ftypcrx |II\x1a\0.{2}HEAPCCDR|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM",
        f"a camera's raw file, {_CONVERT}",
    ),
    (rb"%!PS|\xc5\xd0\xd3\xc6", f"a PostScript file, {_CONVERT}"),
    (rb"%PDF-", f"a PDF file, {_CONVERT}"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", f"a Windows metafile, {_CONVERT}"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.*?>\s*)?(<!--.*?-->\s*)?(<!doctype svg.*?>\s*)?<svg", f"an SVG drawing, {_CONVERT}"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|script|meta|!--)", f"this is a page of HTML, {_AGAIN}"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not a picture; fetch the pictures with: git lfs pull"),
    (rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]", "a film, not a picture; save pictures of it"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|\xfd7zXZ|BZh|\x28\xb5\x2f\xfd", "an archive, not a picture; unpack it"),
    (rb"\x93NUMPY|\x89HDF|SIMPLE  =", "an array of numbers, not a picture; save pictures of it as PNG"),
    (_TEXT + rb"+\Z", f"this is text, {_AGAIN}"),
)
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, (_, pattern) in _PICTURES.items()}
_OTHER_PATTERNS = [(re.compile(pattern, re.DOTALL | re.IGNORECASE), told) for pattern, told in _OTHERS]


def picture_format(head: bytes) -> str | None:
    """Pillow's name of the format of a file that begins with ``head``; None for what begins like no picture."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(head[:HEAD])), None)


def looks_like_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (``HEAD`` bytes, or all of it) is in a format that is read here."""
    return picture_format(head) is not None


def other_kind(head: bytes) -> str | None:
    """What a file is that is no picture, and what to do about it: the reason in words; None where nothing is known."""
    return next((told for pattern, told in _OTHER_PATTERNS if pattern.match(head[:HEAD])), None)
