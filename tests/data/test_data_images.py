"""One image file at a time: geometry against plain Pillow, the written rules for unusual images, and refusals.

What belongs to one format or another is in ``test_data_formats.py``.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from data_files import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from convnet.data import BadImage, jpeg, load_square
from convnet.data.images import DECODED, HEADERS, MAX_BYTES, decode_square, depth_of, fitted, scaled, upright
from convnet.data.jpeg import decode_reduced

BILINEAR = Image.Resampling.BILINEAR


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def plain(image, size):
    """The rule as anybody would write it."""
    shorter = min(image.size)
    image = image.resize((round(image.width * size / shorter), round(image.height * size / shorter)), BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


# Smaller and larger than the result, long strips, and halves to be rounded: 15 * 7 / 10, 25 * 5 / 10
SIZES = [(48, 32), (32, 48), (32, 32), (33, 32), (500, 375), (375, 500), (257, 256), (256, 257), (271, 15), (15, 271)]
SIZES += [(15, 10), (10, 15), (25, 10), (10, 25), (300, 1), (1, 300), (1, 1), (97, 89), (640, 427), (73, 74), (74, 73)]


@pytest.mark.parametrize("size", [5, 7, 32, 73])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixels_are_those_of_plain_pillow(width, height, size):
    image = picture(width, height)
    file = encoded(image)
    np.testing.assert_array_equal(decode_square(file, size), plain(image, size))
    file = encoded(image, "JPEG", quality=92)
    np.testing.assert_array_equal(scaled(upright(file.getvalue()), size), plain(Image.open(file), size))
    if min(width, height) < 6 * size:  # larger ones are decoded smaller
        np.testing.assert_array_equal(decode_square(file, size), plain(Image.open(file), size))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 100), st.integers(0, 100))
@settings(deadline=None)
def test_pixels_of_any_size_are_those_of_plain_pillow(width, height, size, seed):
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    np.testing.assert_array_equal(scaled(noise, size), plain(noise, size))
    whole = scaled(noise, size, square=False)
    assert min(whole.size) == size
    assert max(whole.size) == round(max(width, height) * size / min(width, height))


def test_a_strip_that_would_grow_beyond_the_limit_is_refused():
    strip = Image.new("L", (60_000, 2)).convert("RGB")
    with pytest.raises(BadImage, match="60000 x 2 pixels, too long a strip: 7680000 x 256 at the size of 256"):
        scaled(strip, 256)


def test_square_images_equal_pillow_bit_for_bit():
    file = encoded(picture(75, 75), "JPEG")
    expected = np.asarray(Image.open(file).resize((40, 40), BILINEAR))
    np.testing.assert_array_equal(decode_square(file, 40), expected)


@functools.cache
def detailed(width, height):
    """A picture with detail of every size, as photographs have."""
    rng = np.random.default_rng(width)
    sum_, cells = np.zeros((height, width, 3)), 4
    while cells < min(width, height):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        sum_ += np.asarray(noise.resize((width, height), BILINEAR)) / np.sqrt(cells)
        cells *= 2
    return Image.fromarray((255 * (sum_ - sum_.min()) / np.ptp(sum_)).astype(np.uint8))


def differences(actual, expected):
    """The mean over all pixels and the largest."""
    difference = np.abs(np.asarray(actual).astype(int) - np.asarray(expected))
    return difference.mean(), difference.max()


@pytest.mark.parametrize("size", [(1169, 877), (877, 1169), (2337, 1753), (800, 599)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_that_is_decoded_smaller_is_scaled_as_the_whole_would_be(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(detailed(*size), "JPEG", quality=92, exif=exif).getvalue()
    for square in (True, False):
        quick = fitted(raw, 33, square=square)
        exact = scaled(upright(raw), 33, square=square)
        assert quick.size == exact.size
        mean, largest = differences(quick, exact)
        assert 0 < mean < 1
        assert largest < 12
        shifted = np.roll(np.asarray(exact), 1, axis=1)[:, 1:]  # a part of a pixel more would show
        assert (
            differences((0.75 * np.asarray(exact)[:, 1:] + 0.25 * shifted).astype(int), np.asarray(exact)[:, 1:])[0] > 1
        )


def test_jpegs_are_decoded_smaller_from_six_times_the_size_on():
    for width, height, by in ((299, 197, 1), (200, 192, 1), (260, 198, 2), (400, 395, 2), (397, 396, 4), (792, 900, 8)):
        pixels, found, *whole = decode_reduced(encoded(picture(width, height), "JPEG").getvalue(), 33)
        assert (found, whole) == (by, [width, height])
        assert pixels.shape == (-(-height // by), -(-width // by), 3)


@pytest.mark.parametrize("size", [(640, 512), (801, 603), (1203, 999), (2001, 1602)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": s, "progressive": s == 1} for s in (0, 1, 2)], ids=str)
def test_both_decoders_make_the_same_smaller_picture(size, mode, options, monkeypatch):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    raw = encoded(detailed(*size).convert(mode), "JPEG", quality=90, **options).getvalue()
    one = fitted(raw, 64)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(one, fitted(raw, 64))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(picture(60, 90), "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    np.testing.assert_array_equal(decode_square(file, 37), plain(upright, 37))


# What EXIF data may look like. Warnings are errors here: none of it may reach a person.
BROKEN = {
    "no header": b"\xff" * 40,
    "nothing": b"",
    "cut in the header": b"II*\0\x08",
    "a directory beyond the end": b"II*\0" + struct.pack("<I", 10**9),
    "more entries than there are": b"MM\0*" + struct.pack(">IH", 8, 60_000),
    "data beyond the end": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x010F, 2, 10**6, 10**8) + bytes(4),
    "a resolution over 0": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x011A, 5, 1, 26) + bytes(4) + bytes(8),
    "an unknown type": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 99, 1, 6) + bytes(4),
    "an orientation that does not exist": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 77) + bytes(4),
    "a loop": b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_exif_does_not_make_an_image_bad(kind, broken):
    plain_ = encoded(picture(40, 40), kind).getvalue()
    if kind in ("WEBP", "AVIF"):
        whole = b"II*\0" + struct.pack("<IHI", 8, 0, 0) + bytes(90)
        raw = encoded(picture(40, 40), kind, exif=b"Exif\0\0" + whole).getvalue()
        assert raw.count(whole) == 1
        raw = raw.replace(whole, BROKEN[broken].ljust(len(whole), b"\xfe"))
    else:
        raw = encoded(picture(40, 40), kind, exif=b"Exif\0\0" + BROKEN[broken]).getvalue()
    assert BROKEN[broken] in raw
    assert raw != plain_
    np.testing.assert_array_equal(decode_square(io.BytesIO(raw), 40), decode_square(io.BytesIO(plain_), 40))


def test_broken_exif_in_text_does_not_make_an_image_bad():
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 9\nno hexadecimal number\n")
    np.testing.assert_array_equal(upright(encoded(picture(20, 30), "PNG", pnginfo=text).getvalue()), picture(20, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_applied_in_every_format_that_has_one(kind, order):
    exif = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IHHHIH", 8, 1, 0x0112, 3, 1, 6) + bytes(6)
    options = {"tiffinfo": {0x0112: 6}} if kind == "TIFF" else {"exif": b"Exif\0\0" + exif}
    raw = encoded(picture(20, 30), kind, **options).getvalue()
    turned = upright(raw)
    assert turned.size == (30, 20)
    np.testing.assert_array_equal(turned, ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))


def test_orientation_in_xmp_and_in_text_counts_where_exif_has_none():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    raw = encoded(picture(20, 30), "JPEG", xmp=xmp).getvalue()
    expected = Image.open(io.BytesIO(raw)).transpose(Image.Transpose.ROTATE_180)
    np.testing.assert_array_equal(upright(raw), expected)
    turned = np.asarray(picture(20, 30))[::-1, ::-1]
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    np.testing.assert_array_equal(upright(encoded(picture(20, 30), "PNG", pnginfo=text).getvalue()), turned)
    raw_profile = PngImagePlugin.PngInfo()  # as ImageMagick keeps EXIF data
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 3) + bytes(4)
    raw_profile.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    np.testing.assert_array_equal(upright(encoded(picture(20, 30), "PNG", pnginfo=raw_profile).getvalue()), turned)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700], tags.tagtype[700] = xmp, 1
    np.testing.assert_array_equal(upright(encoded(picture(20, 30), "TIFF", tiffinfo=tags).getvalue()), turned)
    exif = Image.Exif()
    exif[0x0112] = 1
    raw = encoded(picture(20, 30), "JPEG", xmp=xmp, exif=exif).getvalue()
    np.testing.assert_array_equal(upright(raw), Image.open(io.BytesIO(raw)))


def flat(file):
    """The one colour of an image of one colour."""
    pixels = decode_square(file, 8)
    assert (pixels == pixels[0, 0]).all()
    return tuple(pixels[0, 0].tolist())


def test_grey_palette_and_one_bit_become_rgb():
    assert flat(encoded(Image.new("L", (9, 9), 77))) == (77, 77, 77)
    assert flat(encoded(Image.new("L", (9, 9), 77), "JPEG")) == (77, 77, 77)
    assert flat(encoded(Image.new("1", (9, 9), 1))) == (255, 255, 255)
    assert flat(encoded(Image.new("RGB", (9, 9), (10, 200, 30)).quantize(4))) == (10, 200, 30)


def test_sixteen_bit_grey_keeps_its_upper_byte():
    values = np.full((9, 9), 0x4DFF, np.uint16)
    assert flat(encoded(Image.fromarray(values))) == (0x4D, 0x4D, 0x4D)


# How Pillow keeps grey values of more than 8 bits, and what writes them.
DEEP = {
    "PNG": (np.uint16, {}),
    "TIFF": (np.uint16, {}),
    "TIFF, most significant byte first": (">u2", {}),
    "TIFF, 32 bits": (np.int32, {}),
    "PPM": (np.uint16, {}),
}


def deep(kind, values):
    """A grey picture of ``values`` with more than 8 bits."""
    return encoded(Image.fromarray(np.array(values, DEEP[kind][0])), kind.partition(",")[0]).getvalue()


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("depth", [8, 10, 12, 15, 16])
def test_grey_values_of_more_bits_lose_their_lower_ones(kind, depth):
    values = np.random.default_rng(depth).integers(0, 1 << depth, (20, 30))
    values[0, 0], values[0, 1] = (1 << depth) - 1, 0
    expected = np.minimum(values >> (depth - 8), 255)
    pixels = np.asarray(upright(deep(kind, values), depth))
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))
    assert pixels.max() == 255
    np.testing.assert_array_equal(decode_square(io.BytesIO(deep(kind, values)), 20, depth), pixels[:, 5:25])


def test_grey_values_above_the_depth_are_white():
    assert np.asarray(upright(deep("PNG", [[4095, 4096, 60_000, 16]]), 12)).tolist() == [
        [[255] * 3, [255] * 3, [255] * 3, [1] * 3]
    ]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[-1000, 3000]], np.int32), "from -1,000 to 3,000"),
        (np.array([[0, 65_536]], np.int32), "from 0 to 65,536"),
    ],
)
def test_whole_numbers_that_16_bits_do_not_hold_are_refused_with_a_remedy(values, found):
    with pytest.raises(BadImage, match=f"grey values go {found}, .* save them as PNG of 16 bits"):
        upright(encoded(Image.fromarray(values), "TIFF").getvalue())


def test_signed_values_of_16_bits_are_seen_as_what_they_are():
    raw = bytearray(encoded(Image.fromarray(np.full((4, 4), 65_535, np.uint16)), "TIFF", tiffinfo={339: 2}).getvalue())
    with pytest.raises(BadImage, match="grey values go from -1 to -1,"):
        upright(bytes(raw))


def test_numbers_with_fractions_are_refused_with_a_remedy():
    with pytest.raises(BadImage, match=r"fractions, .* save them as whole numbers, in a PNG"):
        upright(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF").getvalue())


def png_of_16_bits(colour, kind):
    """One pixel; ``kind`` is PNG's: 2 for colours, 4 for grey and opacity, 6 for both."""
    body = zlib.compress(b"\0" + struct.pack(f">{len(colour)}H", *colour))
    chunks = b""
    for name, data in ((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_colours_of_16_bits_keep_their_upper_byte_whatever_the_depth():
    for depth in (8, 12, 16):
        assert upright(png_of_16_bits((0x12FF, 0x3400, 0x0FFF), 2), depth).getpixel((0, 0)) == (0x12, 0x34, 0x0F)
        assert upright(png_of_16_bits((0x12FF, 0xFFFF), 4), depth).getpixel((0, 0)) == (0x12,) * 3
        assert upright(png_of_16_bits((0x12FF, 0x3400, 0x0FFF, 0xFFFF), 6), depth).getpixel((0, 0)) == (
            0x12,
            0x34,
            0x0F,
        )


@pytest.mark.parametrize("kind", DEEP)
def test_the_depth_is_that_of_the_largest_value(kind):
    for largest, depth in ((100, 8), (255, 8), (256, 9), (3500, 12), (4095, 12), (4096, 13), (65_535, 16)):
        raws = [deep(kind, [[0, 7]]), encoded(picture(9, 9), "JPEG").getvalue(), deep(kind, [[largest, 0]])]
        assert depth_of(raws.__getitem__, 3) == depth


def test_the_depth_of_pictures_of_8_bits_is_none():
    raws = [encoded(picture(9, 9), kind).getvalue() for kind in ("JPEG", "PNG", "TIFF", "PPM", "GIF", "WEBP")]
    raws += [png_of_16_bits((0x12FF, 0x3400, 0x0FFF), 2), b"", b"text", deep("PNG", [[9]])[:-24]]
    assert depth_of(raws.__getitem__, len(raws)) is None
    assert depth_of(raws.__getitem__, 0) is None


def test_the_depth_is_looked_for_in_a_bounded_even_sample():
    asked = []

    def read(index):
        asked.append(index)
        if index % 7 == 0:
            raise BadImage("gone")
        return deep("PNG", [[1000]]) if index >= 900_000 else b"\xff\xd8\xff"

    assert depth_of(read, 10**6) == 10
    assert len(asked) == HEADERS
    assert asked == sorted(asked)
    assert np.ptp(np.diff(asked)) <= 1
    asked.clear()
    assert depth_of(lambda index: asked.append(index) or deep("PNG", [[1000]]), 10**6) == 10
    assert len(asked) == DECODED


def test_transparency_is_laid_over_white():
    assert flat(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)))) == (255, 255, 255)
    assert flat(encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 255)))) == (255, 0, 0)
    half = flat(encoded(Image.new("LA", (9, 9), (0, 128))))
    assert half == (127, 127, 127)
    assert flat(encoded(Image.new("RGB", (9, 9), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)
    palette = Image.new("RGB", (9, 9), (10, 200, 30)).quantize(4)
    assert flat(encoded(palette, transparency=palette.getpixel((0, 0)))) == (255, 255, 255)


def test_cmyk_jpeg_becomes_rgb():
    red, green, blue = flat(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240
    assert green < 15
    assert blue < 15


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    assert flat(encoded(frames[0], save_all=True, append_images=frames[1:])) == (255, 0, 0)


def test_one_pixel_is_an_image():
    assert flat(encoded(Image.new("RGB", (1, 1), (9, 8, 7)))) == (9, 8, 7)


def png_header(width, height):
    """A PNG that announces its size and then holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b"this is text", "this is text, not a picture"),
        (encoded(picture(64, 64), "JPEG").getvalue()[:-200], "not a readable"),
        (encoded(picture(64, 64)).getvalue()[:-200], "not a readable"),
        (png_header(8001, 8000), "8001 x 8000 pixels; the limit is 64,000,000"),
        (png_header(30000, 30000), "not a readable|30000 x 30000"),  # Pillow's own limit may come first
        (png_header(2**31 - 1, 2**31 - 1), "not a readable|pixels"),
        (png_header(64, 64), "not a readable"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, raw, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    with pytest.raises(BadImage, match=message) as caught:
        load_square(path, 32)
    assert "\n" not in str(caught.value)


def test_limits_hold_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    with open(path, "wb") as file:
        file.write(encoded(picture(64, 64), "JPEG").getvalue())
        file.truncate(MAX_BYTES + 1)  # sparse
    decoded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self))
    with pytest.raises(BadImage, match="50,000,001 bytes; the limit is 50,000,000"):
        load_square(path, 32)
    with pytest.raises(BadImage, match="limit"):
        decode_square(io.BytesIO(png_header(8001, 8000)), 32)
    assert not decoded


def test_missing_files_and_folders_are_bad_images(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(BadImage):
            load_square(path, 32)
