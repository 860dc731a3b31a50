"""Images as luma and halved chroma: the formulas of JFIF, and how far colours end up from where they began."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from PIL import Image

from convnet.data.planar import to_planes


def back(image):
    return reference.planar_colours(*(plane[None] for plane in to_planes(image)))[0]


@pytest.mark.parametrize("size", [2, 7, 16])
def test_planes_are_those_of_jfif(size):
    random = np.random.default_rng(size)
    image = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    image[0, 0], image[-1, -1] = (0, 0, 255), (255, 0, 0)
    luma, cb, cr = to_planes(image)
    half = (size + 1) // 2
    assert [plane.shape for plane in (luma, cb, cr)] == [(size, size), (half, half), (half, half)]
    assert {plane.dtype for plane in (luma, cb, cr)} == {np.dtype(np.uint8)}
    R, G, B = image.transpose(2, 0, 1).astype(np.float64)
    assert np.abs(luma - (0.299 * R + 0.587 * G + 0.114 * B)).max() < 0.51
    rows = np.minimum(np.arange(2 * half), size - 1)
    for plane, chroma in (
        (cb, -0.168736 * R - 0.331264 * G + 0.5 * B + 128),
        (cr, 0.5 * R - 0.418688 * G - 0.081312 * B + 128),
    ):
        means = chroma[rows][:, rows].reshape(half, 2, half, 2).mean((1, 3))
        assert np.abs(plane - np.minimum(means, 255)).max() < 0.51


def test_pillow_computes_the_same_luma():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(image).convert("YCbCr"))[..., 0].astype(int)
    assert np.abs(to_planes(image)[0] - luma).max() <= 1


def test_colours_come_back_within_a_level():
    """Where the four pixels of a chroma value have one colour: all greys, the corners, and many others."""
    random = np.random.default_rng(1)
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    colours = np.concatenate([corners, greys, random.integers(0, 256, (64 * 64 - 264, 3), dtype=np.uint8)])
    image = colours.reshape(64, 64, 3).repeat(2, 0).repeat(2, 1)
    errors = np.abs(back(image).astype(int) - image)
    assert errors.max() == 1
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(back(grey), grey)
