"""What lies on devices: bfloat16 numbers, padded weight copies, folded images and the convolution on them."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet.kernels.precision import activation_dtype
from convnet.kernels.shapes import ConvShape, IngestShape, LinearShape, LocalShape
from convnet.ops import layout


def bits(values):
    return np.asarray(values, np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0x00000000, 0x0000), (0x80000000, 0x8000), (0x3F800000, 0x3F80),
        (0x3F808000, 0x3F80), (0x3F818000, 0x3F82),  # ties go to the even one
        (0x3F808001, 0x3F81), (0x3F807FFF, 0x3F80), (0xBF808001, 0xBF81),
        (0x3FFFFFFF, 0x4000),  # into the next binade
        (0x7F7FFFFF, 0x7F80), (0x7F7F7FFF, 0x7F7F),  # the largest are nearer to infinity
        (0x7F800000, 0x7F80), (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FFF), (0xFFC12345, 0x7FFF), (0x7FFFFFFF, 0x7FFF),  # NaN, whatever its bits
        (0x00000001, 0x0000), (0x00008000, 0x0000), (0x00018000, 0x0002), (0x007FFFFF, 0x0080),  # subnormal
    ],
)  # fmt: skip
def test_bf16_of_special_values(value, expected):
    assert layout.to_bf16(bits([value]))[0] == expected


def test_bf16_of_many_values():
    """Against rounding of the significand in float64, and exact on the way back."""
    random = np.random.default_rng(0)
    values = bits(random.integers(0, 2**32, 100_000, dtype=np.uint32))
    values = values[np.isfinite(values) & (np.abs(values) > 2.0**-125) & (np.abs(values) < 2.0**127)]
    found = layout.to_bf16(values)
    assert found.dtype == activation_dtype("bf16")
    np.testing.assert_array_equal(layout.to_float32(found), reference.rounded(values, "bf16"))
    every = np.arange(2**16, dtype=np.uint16)
    back = layout.to_bf16(layout.to_float32(every))
    np.testing.assert_array_equal(back, np.where(np.isnan(layout.to_float32(every)), 0x7FFF, every))


def test_bf16_against_pytorch():
    torch = pytest.importorskip("torch")
    values = bits(np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint32))
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(layout.to_bf16(values), expected)


def test_float32_and_bytes_stay_as_they_are():
    for values in (np.ones((2, 3), np.float32), np.ones((2, 3), np.uint8)):
        assert layout.to_float32(values) is values
    assert layout.rounded(values, "tf32") is values


def test_weight_copies_are_padded_with_zeros():
    weight = np.random.default_rng(0).standard_normal((2, 3, 1, 2, 13), dtype=np.float32)
    copy = layout.weight_copy(weight)
    assert copy.shape == ConvShape.of(1, 6, 5, 5, 26, 1, 2, groups=2, lanes=1).weight_copy == (2, 3, 1, 2, 16)
    np.testing.assert_array_equal(layout.to_float32(copy[..., :13]), reference.rounded(weight, "bf16"))
    assert not copy[..., 13:].any()
    assert LinearShape(8, 5, 16, 8).weight_copy == (5, 16)
    assert LinearShape(8, 5, 17, 8).weight_copy == (5, 24)


@pytest.mark.parametrize(("size", "window", "stride"), [(24, 11, 4), (10, 7, 2), (12, 3, 3), (9, 4, 2), (7, 2, 3)])
def test_a_folded_convolution_is_the_same(size, window, stride):
    """Also where the last window overhangs, and where size or window are no multiples of the stride."""
    random = np.random.default_rng(0)
    shape = ConvShape.of(2, 3, size, size + 1, 5, window, window, stride=stride, ceil_mode=True, lanes=2)
    folded = shape.folded
    assert (folded.P, folded.Q, folded.stride) == (shape.P, shape.Q, 1)
    x = random.standard_normal((2, 3, size, size + 1)).astype(np.float32)
    weight = random.standard_normal((5, 3, window, window)).astype(np.float32)
    images = layout.fold_images(x, stride)
    assert images.shape == (2, folded.C, folded.H, folded.W)
    taps = np.zeros((5, folded.C, folded.R, folded.S), np.float32)
    for c, r, t in np.ndindex(3, window, window):
        taps[:, (c * stride + r % stride) * stride + t % stride, r // stride, t // stride] = weight[:, c, r, t]
    place = {"top": 0, "left": 0, "P": shape.P, "Q": shape.Q}
    expected = reference.conv_forward(x, weight, stride=stride, **place)
    np.testing.assert_allclose(reference.conv_forward(images, taps, stride=1, **place), expected, atol=1e-12)


def test_folding_needs_one_group_and_no_padding():
    for options in ({"padding": 1}, {"groups": 2}):
        with pytest.raises(ValueError, match="can be folded"):
            _ = ConvShape.of(1, 4, 8, 8, 4, 4, 4, stride=2, lanes=1, **options).folded


def test_folded_input_is_what_ingest_writes():
    first = ConvShape.of(128, 3, 224, 224, 96, 11, 11, stride=4, ceil_mode=True, lanes=64)
    assert IngestShape(128, 128, 256, 256, 224, 64, (1.0, 1.0, 1.0), 4).y == first.folded.x == (2, 48, 56, 56, 64)


@pytest.mark.parametrize(
    ("device", "user"),
    [
        ((7,), (7,)),
        ((3, 5), (5, 3)),
        ((2, 3, 4, 5, 6), (12, 3, 4, 5)),
        ((6, 2, 3), (6, 2, 3)),
        ((2, 3, 2, 4, 3, 1, 5), (2, 3, 10, 4, 3, 1)),
    ],
    ids=["bias", "matrix", "filters", "biases of pixels", "filters of pixels"],
)
def test_parameters_go_there_and_back(device, user):
    """A bias, a matrix and filters, and those of local layers."""
    values = np.arange(np.prod(device), dtype=np.float32).reshape(device)
    seen = layout.to_user(values)
    assert layout.user_shape(device) == seen.shape == user
    assert seen.flags.c_contiguous
    back = layout.to_device(seen, device)
    np.testing.assert_array_equal(back, values)
    assert back.flags.c_contiguous


def test_every_pixel_of_a_local_weight_is_one_of_filters():
    values = np.random.default_rng(0).standard_normal((2, 3, 10, 4, 3, 1), dtype=np.float32)
    packed = layout.pack_local_weight(values, 2)
    assert packed.shape == LocalShape.of(1, 8, 2, 3, 10, 3, 1, padding=(1, 1, 0, 0), groups=2, lanes=1).weight
    for p, q in np.ndindex(2, 3):
        np.testing.assert_array_equal(packed[p, q], layout.pack_weight(values[p, q], 2))
