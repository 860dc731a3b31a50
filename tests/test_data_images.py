"""One image file at a time: geometry against plain Pillow, the written rules for unusual images, and refusals."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from data_files import picture
from PIL import Image, ImageOps

from convnet.data import BadImage, load_square
from convnet.data.images import MAX_BYTES, decode_square

BILINEAR = Image.Resampling.BILINEAR


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def largest_difference(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(int) - b.astype(int)).max()


# Sizes at which the scaled image and the crop fall on whole pixels: (width, height), size of the result.
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (48, 32, 32),
        (32, 48, 32),
        (32, 32, 32),
        (96, 64, 32),
        (64, 96, 32),
        (90, 60, 40),
        (60, 90, 40),
        (40, 24, 48),
        (72, 72, 40),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_shorter_side_resized_and_centre_cropped_as_plain_pillow_does(width, height, size, kind):
    file = encoded(picture(width, height), kind)
    image = Image.open(file)
    scaled = image.resize((width * size // min(width, height), height * size // min(width, height)), BILINEAR)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    expected = np.asarray(scaled.crop((left, top, left + size, top + size)))
    actual = decode_square(file, size)
    # Pillow's fixed-point filter weights may differ by rounding between the two ways.
    assert largest_difference(actual, expected) <= 1
    # The bound is sharp: one pixel beside the centre is far outside of it.
    assert largest_difference(np.roll(actual, 1, axis=1), expected) > 1


def test_square_images_equal_pillow_bit_for_bit():
    file = encoded(picture(75, 75), "JPEG")
    expected = np.asarray(Image.open(file).resize((40, 40), BILINEAR))
    np.testing.assert_array_equal(decode_square(file, 40), expected)


def test_large_jpegs_are_decoded_smaller_and_look_the_same():
    file = encoded(picture(640, 512), "JPEG", quality=95)
    box = (64, 0, 576, 512)
    exact = np.asarray(Image.open(file).resize((32, 32), BILINEAR, box=box))
    small = decode_square(file, 32)
    assert largest_difference(small, exact) <= 12  # another antialiasing filter, the same picture
    assert np.abs(small.astype(int) - exact).mean() < 2
    assert not np.array_equal(small, exact)  # the shorter way was taken


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(picture(60, 90), "JPEG", quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(file))
    box = (0, 15, 60, 75) if upright.height > upright.width else (15, 0, 75, 60)
    expected = np.asarray(upright.resize((40, 40), BILINEAR, box=box))
    assert largest_difference(decode_square(file, 40), expected) <= 1


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
        (encoded(picture(64, 64), "JPEG").getvalue()[:-200], "truncated"),
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
