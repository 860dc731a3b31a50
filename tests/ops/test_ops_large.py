"""Tensors of more than 2^31 elements need 64-bit offsets. On the CPU they are small: there only the test is tested."""

from __future__ import annotations

import numpy as np
import pytest

from convnet.kernels.shapes import ConvShape, LrnShape, NailbedShape, PoolShape, SpatialNormShape
from convnet.ops import ops

LANES, C = 64, 32


@pytest.fixture
def big(machine, device):
    """A machine, image sizes that make 64 images of 32 maps 2^31 elements and more, and access to last pixels."""
    H, W = (1025, 1024) if device == "cuda" else (9, 8)
    assert device != "cuda" or LANES * C * H * W > 2**31

    def last_pixels(array, maps):
        pixels = H * W * LANES
        return [array.view((LANES,), channel * pixels + pixels - LANES) for channel in range(maps)]

    return machine, H, W, last_pixels


def filled(machine, shape, views, values):
    array = machine.device.empty(shape)
    for view, value in zip(views(array, C), values, strict=True):
        machine.stream.upload(view, value)
    return array


def test_convolution(big):
    machine, H, W, last = big
    random = np.random.default_rng(0)
    x, weight = (random.integers(1, 4, size).astype(np.float32) for size in ((C, LANES), (1, C, 1, 1, 1)))
    shape = ConvShape.of(LANES, C, H, W, 1, 1, 1, lanes=LANES)
    images, y = filled(machine, shape.x, last, x), machine.device.empty(shape.y)
    w = machine.put(weight)
    ops.conv_forward(machine.stream, shape, "fp32", images, w, None, y)
    np.testing.assert_array_equal(last(y, 1)[0].download(), (x * weight.reshape(C, 1)).sum(axis=0))
    machine.stream.upload(last(y, 1)[0], x[0])
    ops.conv_backward_data(machine.stream, shape, "fp32", y, w, images, None)
    for channel, pixel in enumerate(last(images, C)):
        np.testing.assert_array_equal(pixel.download(), x[0] * weight[0, channel].item())


def test_pooling_normalisation_and_relu(big):
    machine, H, W, last = big
    x = np.random.default_rng(1).uniform(-9, 9, (C, LANES)).astype(np.float32)
    shape = PoolShape.of(LANES, C, H, W, 1, 1, lanes=LANES)
    images, y = filled(machine, shape.x, last, x), machine.device.empty(shape.y)
    argmax = machine.device.empty(shape.y, np.uint8)
    ops.max_pool_forward(machine.stream, shape, "fp32", images, y, argmax)
    for pixel, expected in zip(last(y, C), x, strict=True):
        np.testing.assert_array_equal(pixel.download(), expected)
    ops.lrn_forward(machine.stream, LrnShape(LANES, C, H, W, 1, LANES, 1, 0.0, 1.0, 2.0), "fp32", images, y)
    for pixel, expected in zip(last(y, C), x / 2, strict=True):
        np.testing.assert_allclose(pixel.download(), expected, rtol=1e-6)
    ops.relu_forward(machine.stream, "fp32", images, y)
    for pixel, expected in zip(last(y, C), np.maximum(x, 0), strict=True):
        np.testing.assert_array_equal(pixel.download(), expected)


def test_windows_of_one_map(big):
    machine, H, W, last = big
    x = np.random.default_rng(1).uniform(-9, 9, (C, LANES)).astype(np.float32)
    pool, norm = PoolShape.of(LANES, C, H, W, 1, 1, lanes=LANES), (LANES, C, H, W, LANES)
    images, y = filled(machine, pool.x, last, x), machine.device.empty(pool.y)
    ops.avg_pool_forward(machine.stream, pool, "fp32", images, y)
    for pixel, expected in zip(last(y, C), x, strict=True):
        np.testing.assert_array_equal(pixel.download(), expected)
    ops.rnorm_forward(machine.stream, SpatialNormShape(*norm, 1, 0.0, 1.0, 2.0), "fp32", images, y)
    for pixel, expected in zip(last(y, C), x / 2, strict=True):
        np.testing.assert_allclose(pixel.download(), expected, rtol=1e-6)
    ops.nailbed_forward(machine.stream, NailbedShape.of(LANES, C, H, W, 1, lanes=LANES), "fp32", images, y)
    for pixel, expected in zip(last(y, C), x, strict=True):
        np.testing.assert_array_equal(pixel.download(), expected)
