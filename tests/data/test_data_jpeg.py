"""Both JPEG decoders: the same pixels, the same limits, and what only the stricter one notices."""

from __future__ import annotations

import io

import numpy as np
import pytest
from data_files import picture
from PIL import Image

from convnet.data import BadImage, decode_rgb, jpeg


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    assert jpeg.decoder() == request.param
    return request.param


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def rough(width: int, height: int) -> Image.Image:
    """A picture with fine texture, so that chroma upsampling and rounding show."""
    noise = np.random.default_rng(width * 1000 + height).integers(-40, 40, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(picture(width, height)) + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 13), (3, 50), (255, 33), (64, 48)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": s, "progressive": s == 1} for s in (0, 1, 2)], ids=str)
def test_the_pixels_are_those_of_pillow(decoder, size, mode, options):
    raw = encoded(rough(*size).convert(mode), **options)
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    actual = decode_rgb(raw)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected)
    room = np.full((2, *expected.shape), 7, np.uint8)
    assert np.shares_memory(decode_rgb(raw, room[1]), room)
    np.testing.assert_array_equal(room[1], expected)
    assert (room[0] == 7).all()


def test_orientation_is_left_as_stored(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_rgb(encoded(picture(20, 10), exif=exif)).shape == (10, 20, 3)


def header_of(width: int, height: int) -> bytes:
    """A JPEG whose header announces another size than its data have."""
    raw = bytearray(encoded(picture(16, 16)))
    frame = raw.index(b"\xff\xc0") + 5
    raw[frame : frame + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(raw)


def test_the_limit_holds_before_anything_is_decoded(decoder):
    with pytest.raises(BadImage, match="8001 x 8000 pixels; the limit is 64,000,000"):
        decode_rgb(header_of(8001, 8000))
    with pytest.raises(BadImage, match=r"65000 x 65000|65000x65000|exceeds limit"):  # Pillow's own limit may come first
        decode_rgb(header_of(65000, 65000))


def test_another_size_than_expected_is_refused(decoder):
    room = np.zeros((10, 10, 3), np.uint8)
    for width, height in ((10, 9), (9, 10), (11, 10), (5, 20)):
        with pytest.raises(BadImage, match=f"{width} x {height} pixels, where 10 x 10 were expected"):
            decode_rgb(encoded(picture(width, height)), room)
    assert not room.any()


@pytest.mark.parametrize("raw", [b"", b"this is text", encoded(rough(64, 64))[:-200], encoded(rough(64, 64))[:100]])
def test_what_is_no_whole_jpeg_is_refused(decoder, raw):
    for out in (None, np.zeros((64, 64, 3), np.uint8)):
        with pytest.raises(BadImage, match="not a readable JPEG image") as caught:
            decode_rgb(raw, out)
        assert "\n" not in str(caught.value)


def test_png_is_no_jpeg(decoder):
    file = io.BytesIO()
    picture(8, 8).save(file, "PNG")
    with pytest.raises(BadImage, match="not a readable JPEG image"):
        decode_rgb(file.getvalue())


def test_simplejpeg_sees_damaged_data():
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    raw = bytearray(encoded(rough(64, 64)))
    raw[1500] ^= 0x55  # in the middle of the entropy-coded data
    with pytest.raises(BadImage, match="Corrupt JPEG data"):
        decode_rgb(bytes(raw))
