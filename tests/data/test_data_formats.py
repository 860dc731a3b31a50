"""Which files are pictures: every format by its content, whatever the name; and a reason for everything else."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from data_files import picture
from PIL import Image, features

from convnet.data import BadImage, load_square
from convnet.data.formats import _PICTURES, HEAD, SUFFIXES, looks_like_picture, other_kind, picture_format
from convnet.data.images import upright


def saved(kind, image=None, **options):
    file = io.BytesIO()
    (image or picture(60, 44)).save(file, kind, **options)
    return file.getvalue()


def sun_raster(image):
    """Sun's raster file of 24 bits: Pillow reads it, but does not write it."""
    blue_first = np.asarray(image)[:, :, ::-1].tobytes()
    head = (0x59A66A95, image.width, image.height, 24, len(blue_first), 1, 0, 0)
    return struct.pack(">8I", *head) + blue_first


def photoshop(image):
    """A Photoshop file of one flat picture."""
    planes = np.asarray(image).transpose(2, 0, 1).tobytes()
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, image.height, image.width, 8, 3)
    return head + bytes(12) + struct.pack(">H", 0) + planes


def without_loss():
    """Files whose pixels are exactly those of ``picture(60, 44)``, by what they are."""
    image = picture(60, 44)
    yield "PNG", saved("PNG")
    yield "WEBP", saved("WEBP", lossless=True)
    yield "BMP", saved("BMP")
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}):
        yield "TIFF", saved("TIFF", **options)
    yield "TIFF", saved("TIFF", big_tiff=True)
    yield "PPM", saved("PPM")
    yield "JPEG2000", saved("JPEG2000")
    yield "JPEG2000", saved("JPEG2000", no_jp2=True)
    yield "ICO", saved("ICO", sizes=[(60, 44)])
    yield "PCX", saved("PCX")
    yield "SGI", saved("SGI")
    yield "SUN", sun_raster(image)
    yield "QOI", saved("QOI")
    yield "DDS", saved("DDS")
    yield "PSD", photoshop(image)
    yield "TGA", saved("TGA")
    yield "TGA", saved("TGA", compression="tga_rle")


FILES = list(without_loss())


@pytest.mark.parametrize(("kind", "raw"), FILES, ids=[f"{kind}-{k}" for k, (kind, _) in enumerate(FILES)])
def test_every_format_is_read_by_its_content(kind, raw, tmp_path):
    for name in ("a.jpg", "a.png", "a", "a.txt"):
        (tmp_path / name).write_bytes(raw)
        np.testing.assert_array_equal(load_square(tmp_path / name, 44), np.asarray(picture(60, 44))[:, 8:52])
    assert looks_like_picture(raw[:HEAD]) == (kind != "TGA")
    assert picture_format(raw) in (kind, None)


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "JPEG"), ("MPO", "JPEG"), ("AVIF", "AVIF"), ("GIF", "GIF")])
def test_formats_that_lose_something_are_read_as_pillow_does(kind, name):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    raw = saved(kind)
    assert picture_format(raw) == name
    np.testing.assert_array_equal(upright(raw), Image.open(io.BytesIO(raw)).convert("RGB"))


def test_every_format_that_is_known_is_tested():
    assert {kind for kind, _ in FILES} | {"JPEG", "AVIF", "GIF"} == set(_PICTURES)
    usual = {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".pgm",
        ".jp2",
    }
    assert usual <= set(SUFFIXES)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB"])
def test_a_tiff_of_any_mode_is_read(mode):
    if mode == "P":
        image = Image.new("RGB", (9, 9), (200, 30, 10)).quantize(4)
    else:
        image = Image.new("RGB", (9, 9), (200, 200, 200)).convert("RGB" if mode == "LAB" else mode)
        image = Image.new("LAB", (9, 9), (200, 128, 128)) if mode == "LAB" else image
    pixel = upright(saved("TIFF", image)).getpixel((0, 0))
    expected = {"1": (255, 255, 255), "P": (200, 30, 10)}.get(mode, (200, 200, 200))
    assert np.abs(np.subtract(pixel, expected)).max() < (12 if mode == "LAB" else 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_of_several_pictures_in_a_file_the_first_counts(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    red, _, blue = upright(saved(kind, frames[0], save_all=True, append_images=frames[1:])).getpixel((5, 5))
    assert red > 245
    assert blue < 10


def test_a_broken_list_of_the_pictures_in_an_mpo_does_not_matter():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    raw = saved("MPO", frames[0], save_all=True, append_images=frames[1:])
    at = raw.index(b"MPF\0") + 4
    np.testing.assert_array_equal(upright(raw[:at] + b"\xff" * 20 + raw[at + 20 :]), upright(raw))


def with_size(kind, width, height):
    """A file whose header promises so many pixels, and which has none, or those of a smaller picture."""
    raw = saved(kind) if kind not in ("SUN", "PSD") else {"SUN": sun_raster, "PSD": photoshop}[kind](picture(60, 44))
    both = {
        "JPEG": (">HH", 44, 60), "MPO": (">HH", 44, 60), "PNG": (">II", 60, 44), "WEBP": ("<HH", 60, 44),
        "GIF": ("<HH", 60, 44), "BMP": ("<ii", 60, 44), "AVIF": (">II", 60, 44), "JPEG2000": (">II", 44, 60),
        "SGI": (">HH", 60, 44), "QOI": (">II", 60, 44), "DDS": ("<II", 44, 60), "TGA": ("<HH", 60, 44),
        "SUN": (">II", 60, 44), "PSD": (">II", 44, 60),
    }  # fmt: skip
    if kind == "PPM":
        return raw.replace(b"60 44", b"%d %d" % (width, height))
    if kind == "PCX":
        return raw[:8] + struct.pack("<HH", width - 1, height - 1) + raw[12:]
    if kind == "TIFF":
        for tag, old, new in ((256, 60, width), (257, 44, height)):
            raw = raw.replace(struct.pack("<HHII", tag, 4, 1, old), struct.pack("<HHII", tag, 4, 1, new))
        return raw
    form, *old = both[kind]
    assert struct.pack(form, *old) in raw
    raw = raw.replace(
        struct.pack(form, *old), struct.pack(form, *((width, height) if old[0] == 60 else (height, width)))
    )
    if kind == "PNG":  # has a checksum
        raw = raw[:29] + struct.pack(">I", zlib.crc32(raw[12:29])) + raw[33:]
    return raw


SIZED = [
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "PPM",
    "JPEG2000",
    "PCX",
    "SGI",
    "SUN",
    "QOI",
    "DDS",
]
SIZED += ["PSD", "TGA"]


@pytest.mark.parametrize("kind", SIZED)
def test_the_limit_holds_in_every_format_before_anything_is_decoded(kind, monkeypatch):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert upright(with_size(kind, 60, 44)).size == (60, 44)
    raw, decoded = with_size(kind, 8001, 8000), []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    with pytest.raises(BadImage, match=r"8001 x 8000 pixels; the limit is 64,000,000|8000 x 8001 pixels; the limit"):
        upright(raw)
    assert not decoded


@pytest.mark.parametrize("bitmap", ["png", "bmp"])
def test_the_limit_holds_for_what_is_in_an_icon(bitmap):
    raw = saved("ICO", sizes=[(60, 44)], bitmap_format=bitmap)
    assert upright(raw).size == (60, 44)
    if bitmap == "png":
        at = raw.index(b"IHDR") + 4
        raw = raw[:at] + struct.pack(">II", 8001, 8000) + raw[at + 8 :]
    else:
        raw = raw[:26] + struct.pack("<ii", 8001, 16_000) + raw[34:]
    with pytest.raises(BadImage, match="8001 x 8000 pixels; the limit"):
        upright(raw)


def box(brand, *others):
    body = b"ftyp" + brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + bytes(50)


PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
OTHERS = {
    "heic": (box(b"heic", b"mif1", b"heic"), "HEIC picture, .* convert it to JPEG or PNG"),
    "heif": (box(b"mif1", b"mif1", b"heic"), "HEIC picture, .* convert it to JPEG or PNG"),
    "sequence": (box(b"hevc", b"msf1"), "HEIC picture, .* convert it to JPEG or PNG"),
    "jpeg xl": (b"\xff\x0a" + bytes(40), "JPEG XL picture, .* convert it"),
    "jpeg xl box": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL picture, .* convert it"),
    "dicom": (bytes(128) + b"DICM" + bytes(20), "DICOM file, .* convert it"),
    "canon": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), "camera's raw file, .* convert it"),
    "canon 3": (box(b"crx ", b"isom"), "camera's raw file, .* convert it"),
    "fuji": (b"FUJIFILMCCD-RAW 0201", "camera's raw file, .* convert it"),
    "olympus": (b"IIRO\x08\0\0\0", "camera's raw file, .* convert it"),
    "panasonic": (b"IIU\0\x08\0\0\0", "camera's raw file, .* convert it"),
    "dng": (saved("TIFF", tiffinfo={0xC612: b"\x01\x04\0\0"}), "camera's raw file, .* convert it"),
    "nikon": (saved("TIFF", tiffinfo={0x014A: 8, 0x00FE: 1}), "camera's raw file, .* convert it"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript file, .* convert it"),
    "pdf": (b"%PDF-1.4\n", "PDF file, .* convert it"),
    "metafile": (b"\xd7\xcd\xc6\x9a" + bytes(40), "Windows metafile, .* convert it"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing, .* convert it"),
    "page": (PAGE, "this is a page of HTML, not a picture; fetch it again"),
    "page, indented": (b"\xef\xbb\xbf\n\n  <HTML>\n", "this is a page of HTML, not a picture; fetch it again"),
    "text": (b"Access denied\n", "this is text, not a picture; fetch it again"),
    "json": (b'{"error": "not found"}', "this is text, not a picture"),
    "words": ("Zugriff verweigert: für heute ist Schluß".encode(), "this is text, not a picture"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS, .* git lfs pull"),
    "film": (box(b"isom", b"mp41"), "a film, not a picture"),
    "archive": (b"PK\x03\x04" + bytes(30), "an archive, not a picture; unpack it"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), "an archive, not a picture; unpack it"),
    "array": (b"\x93NUMPY\x01\0", "an array of numbers, not a picture"),
    "zeros": (bytes(5000), "nothing but zero bytes, not a picture; fetch it again"),
    "empty": (b"", "the file is empty"),
    "noise": (np.random.default_rng(0).bytes(5000), "not a readable image .it begins like no picture that is known"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_picture_is_told_with_a_remedy(kind):
    raw, message = OTHERS[kind]
    with pytest.raises(BadImage, match=message) as caught:
        upright(raw)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    if kind not in ("dng", "nikon"):  # these begin like any TIFF
        assert not looks_like_picture(raw[:HEAD])


@pytest.mark.parametrize("kind", ["EPS", "WMF", "PDF", "GRIB", "HDF5", "BUFR", "FITS", "MPEG", "IPTC", "SPIDER", "XBM"])
def test_no_plugin_that_runs_programs_or_is_a_stub_is_asked(kind, monkeypatch):
    def never(file, name):
        raise AssertionError(kind)

    Image.init()
    for name in set(Image.OPEN) & {kind}:
        monkeypatch.setitem(Image.OPEN, name, (never, lambda prefix: True))
    for raw, _ in OTHERS.values():
        with pytest.raises(BadImage):
            upright(raw)
    for _, raw in FILES:
        upright(raw)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "group4"])
def test_no_library_writes_to_the_screen(compression, capfd):
    image = picture(60, 44).convert("1") if compression == "group4" else picture(60, 44)
    raw = saved("TIFF", image, compression=compression)
    for at in range(8, len(raw) - 40, 7):
        with contextlib.suppress(BadImage):
            upright(raw[:at] + b"\xff" * 30 + raw[at + 30 :])
    assert capfd.readouterr() == ("", "")


def test_text_that_begins_like_a_picture_is_text():
    for raw in (b"BMW and other cars", b"P1", b"P3.5 is a size", b"MM", b"GIF is a format", b"\n\nlines"):
        assert not looks_like_picture(raw)
        assert other_kind(raw) == "this is text, not a picture; fetch it again"


def test_avif_is_told_from_heic_by_its_brands():
    for head in (box(b"avif", b"mif1", b"miaf"), box(b"avis", b"avif"), box(b"mif1", b"avif", b"miaf")):
        assert picture_format(head) == "AVIF"


def test_looking_needs_no_pillow():
    code = "import sys, convnet.data.formats as f; print(f.looks_like_picture(b'GIF89a'), 'PIL.Image' in sys.modules)"
    parent = (
        "import sys, types; p = types.ModuleType('convnet.data'); p.__path__ = [{!r}]; sys.modules['convnet.data'] = p"
    )
    import convnet.data

    done = subprocess.run(
        [sys.executable, "-c", f"{parent.format(convnet.data.__path__[0])}\n{code}"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False"], done.stderr
