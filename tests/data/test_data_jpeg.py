"""Both JPEG decoders: the same pixels, the same limits, and one verdict on every damaged file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from data_files import picture
from PIL import Image

from convnet.data import BadImage, decode_rgb, jpeg
from convnet.data.jpeg import MAX_SCANS, decode_reduced, stripped


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


def segments(raw: bytes) -> int:
    """Where the first scan begins."""
    return raw.index(b"\xff\xda")


def with_segment(raw: bytes, code: int, body: bytes) -> bytes:
    return raw[:2] + bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body + raw[2:]


def without_start(raw: bytes) -> bytes:
    """A file without JFIF's segment."""
    return raw[:2] + raw[4 + int.from_bytes(raw[4:6], "big") :] if raw[2:4] == b"\xff\xe0" else raw


def adobe(raw: bytes, transform: int) -> bytes:
    """Three colours that are said to be RGB (0) or YCbCr (1)."""
    return with_segment(without_start(raw), 0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def lines_at_the_end(raw: bytes) -> bytes:
    """A height of 0 in the header, and the height behind the scan."""
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + b"\0\0" + raw[at + 2 : -2] + b"\xff\xdc\0\x04" + raw[at : at + 2] + raw[-2:]


def of_depth(raw: bytes, bits: int) -> bytes:
    at = raw.index(b"\xff\xc0") + 4
    return raw[:at] + bytes([bits]) + raw[at + 1 :]


def another_frame(raw: bytes, code: int) -> bytes:
    """The same file, said to be coded in another way: 0xC9 is arithmetic, 0xC3 without loss."""
    at = raw.index(b"\xff\xc0") + 1
    return raw[:at] + bytes([code]) + raw[at + 1 :]


def sampled(raw: bytes, *factors: int) -> bytes:
    """The same data, said to be of other samplings: mostly nonsense, and some of it can be decoded."""
    at = raw.index(b"\xff\xc0") + 10
    for k, factor in enumerate(factors):
        raw = raw[: at + 3 * k + 1] + bytes([factor]) + raw[at + 3 * k + 2 :]
    return raw


WHOLE = {
    "plain": encoded(rough(67, 45)),
    "progressive": encoded(rough(67, 45), progressive=True),
    "4:4:4": encoded(rough(67, 45), subsampling=0),
    "4:2:2": encoded(rough(67, 45), subsampling=1),
    "4:1:1": encoded(rough(67, 45), subsampling="4:1:1"),
    "restart markers": encoded(rough(67, 45), restart_marker_blocks=2),
    "own Huffman tables": encoded(rough(67, 45), optimize=True),
    "grey": encoded(rough(67, 45).convert("L")),
    "four colours": encoded(rough(67, 45).convert("CMYK")),
    "RGB inside": adobe(encoded(rough(67, 45), subsampling=0), 0),
    "EXIF": encoded(
        rough(67, 45), exif=b"Exif\0\0MM\0*" + bytes([0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0])
    ),
}


def unusual() -> dict[str, bytes]:
    plain = WHOLE["plain"]
    zeros = plain[:-2] + bytes(396) + plain[-2:]
    found = {
        "zeros before the end": zeros,
        "no end marker": plain[:-2],
        "bytes behind the end": plain + b"anything",
        "two pictures in one file": plain + WHOLE["grey"],
        "a scan less": WHOLE["progressive"][: WHOLE["progressive"].rindex(b"\xff\xda")] + b"\xff\xd9",
        "filled up": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "a marker that says nothing": plain[:2] + b"\xff\x01" + plain[2:],
        "bytes between the segments": plain[:20] + b"abc" + plain[20:],
        "height at the end": lines_at_the_end(plain),
        "12 bits": of_depth(plain, 12),
        "arithmetic": another_frame(plain, 0xC9),
        "without loss": another_frame(plain, 0xC3),
        "hierarchical": another_frame(plain, 0xC5),
        "Adobe, cut": with_segment(plain, 0xEE, b"Adobe"),
        "Adobe, YCbCr": adobe(WHOLE["4:4:4"], 1),
        "Adobe, unknown": adobe(WHOLE["4:4:4"], 9),
        "YCCK": adobe(WHOLE["four colours"], 2),
        "CMYK, not Adobe's": with_segment(WHOLE["four colours"].replace(b"Adobe", b"adobe"), 0xFE, b"a comment"),
        "JFIF, cut": with_segment(without_start(plain), 0xE0, b"JFIF\0"),
        "no JFIF": without_start(plain),
        "EXIF without a header": with_segment(plain, 0xE1, b"Exif\0\0" + bytes(30)),
        "EXIF, cut": with_segment(plain, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01"),
        "a profile, cut": with_segment(plain, 0xE2, b"ICC_PROFILE\0"),
        "a list of pictures, cut": with_segment(plain, 0xE2, b"MPF\0MM\0*"),
        "Photoshop's, cut": with_segment(plain, 0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04"),
        "a segment longer than the file": plain[:2] + b"\xff\xe5\xff\xff" + plain[2:],
        "a segment of length 0": plain[:2] + b"\xff\xe5\0\0" + plain[2:],
    }
    for factors in (
        (0x14, 0x11, 0x11),
        (0x11, 0x22, 0x22),
        (0x31, 0x11, 0x11),
        (0x41, 0x11, 0x11),
        (0x12, 0x11, 0x11),
        (0x14, 0x12, 0x11),
    ):
        found[f"samplings {factors}"] = sampled(WHOLE["4:4:4"], *factors)
    return found


def damaged(raw: bytes, rng: np.random.Generator) -> bytes:
    """One of six kinds of damage: cut short, a byte, a bit, bytes too many or too few, several bytes of the header."""
    kind, header, found = rng.integers(6), segments(raw) + 14, bytearray(raw)
    at = int(rng.integers(2, len(raw)))
    if kind == 0:
        del found[at:]
    elif kind == 1:
        found[int(rng.integers(2, header))] = rng.integers(256)
    elif kind == 2:
        found[at] ^= 1 << rng.integers(8)
    elif kind == 3:
        found[at:at] = rng.bytes(int(rng.integers(1, 6)))
    elif kind == 4:
        del found[at : at + int(rng.integers(1, 40))]
    else:
        for place in rng.integers(2, header, 3).tolist():
            found[place] = rng.integers(256)
    return bytes(found)


def verdict(raw: bytes, size: int | None = None) -> np.ndarray | None:
    """The pixels, or None for a bad image."""
    try:
        return decode_reduced(raw, size).pixels
    except BadImage:
        return None


def compare(raws: list[bytes], monkeypatch, size: int | None = None) -> tuple[int, int]:
    """Both decoders' verdicts and pixels must agree; how many of ``raws`` are pictures, and of how many."""
    fast = [verdict(raw, size) for raw in raws]
    with monkeypatch.context() as patched:
        patched.setattr(jpeg, "simplejpeg", None)
        slow = [verdict(raw, size) for raw in raws]
    for k, (one, other) in enumerate(zip(fast, slow, strict=True)):
        assert (one is None) == (other is None), f"number {k}: only one of the decoders takes it"
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=f"number {k}")
    return sum(one is not None for one in fast), len(fast)


@pytest.mark.parametrize("kind", unusual())
def test_both_decoders_agree_about_unusual_files(kind, monkeypatch):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    compare([unusual()[kind]], monkeypatch)
    compare([unusual()[kind]], monkeypatch, 5)


@pytest.mark.parametrize("kind", WHOLE)
def test_both_decoders_agree_about_damaged_files(kind, monkeypatch):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 10**6)  # a damaged header may promise more, which takes long
    rng = np.random.default_rng(len(WHOLE[kind]))
    taken, of = compare([damaged(WHOLE[kind], rng) for _ in range(300)], monkeypatch)
    assert 0.2 * of < taken < 0.8 * of
    compare([damaged(WHOLE[kind], rng) for _ in range(100)], monkeypatch, 7)


@pytest.mark.parametrize("kind", ["plain", "progressive", "EXIF"])
def test_both_decoders_agree_wherever_a_file_is_cut_short(kind, monkeypatch):
    pytest.importorskip("simplejpeg", reason="simplejpeg is not installed")
    whole = WHOLE[kind]
    ends = [
        *range(segments(whole) + 20),
        *range(segments(whole) + 20, len(whole) - 40, 29),
        *range(len(whole) - 40, len(whole)),
    ]
    compare([whole[:end] for end in ends], monkeypatch)


def test_bytes_too_many_and_broken_metadata_do_not_make_an_image_bad(decoder):
    expected = decode_rgb(WHOLE["plain"])
    for kind in (
        "zeros before the end",
        "bytes behind the end",
        "two pictures in one file",
        "EXIF, cut",
    ):
        np.testing.assert_array_equal(decode_rgb(unusual()[kind]), expected)


@pytest.mark.parametrize("kind", ["no end marker", "12 bits", "height at the end", "without loss", "hierarchical"])
def test_what_no_decoder_here_can_do_is_refused(decoder, kind):
    with pytest.raises(BadImage, match="not a readable JPEG image"):
        decode_rgb(unusual()[kind])


def test_a_file_is_stripped_of_what_is_no_picture():
    plain = WHOLE["plain"]
    exif, xmp = b"Exif\0\0MM\0*", b"http://ns.adobe.com/xap/1.0/\0<x/>"
    raw = plain
    for code, body in ((0xFE, b"a comment"), (0xE1, xmp), (0xED, b"Photoshop 3.0\0"), (0xE2, b"MPF\0"), (0xE1, exif)):
        raw = with_segment(raw, code, body)
    assert stripped(raw) == (plain, exif, xmp, True)
    assert stripped(plain) == (plain, b"", b"", True)
    for other in (b"", b"\xff", b"\xff\xd8", b"text", plain[:3], plain[:21]):
        assert stripped(other) == (other, b"", b"", False)


def test_more_scans_than_any_program_writes_are_refused_before_anything_is_decoded(decoder):
    raw = WHOLE["progressive"]
    scan = raw.rindex(b"\xff\xda")
    many = raw[:scan] + (MAX_SCANS + 1) * raw[scan:-2] + raw[-2:]
    assert not stripped(raw).sequential
    with pytest.raises(BadImage, match=r"a JPEG image of 1\d\d scans; the limit is 100"):
        decode_rgb(many)
