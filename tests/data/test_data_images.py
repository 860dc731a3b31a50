"""One image file at a time: geometry against plain Pillow, the written rules for unusual images, and refusals."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from data_files import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from convnet.data import BadImage, load_square
from convnet.data.images import MAX_BYTES, decode_square, scaled

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


def test_large_jpegs_are_decoded_whole():
    file = encoded(picture(640, 512), "JPEG", quality=95)
    np.testing.assert_array_equal(decode_square(file, 32), plain(Image.open(file), 32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(picture(60, 90), "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    np.testing.assert_array_equal(decode_square(file, 37), plain(upright, 37))


def test_broken_exif_does_not_make_an_image_bad():
    file = encoded(picture(40, 40), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    np.testing.assert_array_equal(decode_square(file, 40), np.asarray(Image.open(file)))


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
        (b"", "not a readable"),
        (b"this is text", "not a readable"),
        (encoded(picture(64, 64), "JPEG").getvalue()[:-200], "not a readable"),
        (encoded(picture(64, 64)).getvalue()[:-200], "not a readable"),
        (encoded(picture(64, 64), "TIFF").getvalue(), "not a readable"),
        (encoded(picture(64, 64), "GIF").getvalue(), "not a readable"),
        (encoded(picture(64, 64), "BMP").getvalue(), "not a readable"),
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
