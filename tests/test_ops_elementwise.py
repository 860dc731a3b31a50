"""ReLU, add, scale, SGD and ingest on every device. All but ingest are exact to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional, ops
from convnet.shapes import IngestShape

COUNTS = (1, 3, 4, 5, 255, 1024, 1025, 4099)


def values(count: int, seed: int = 0):
    """Random numbers with both zeros and extremes among them."""
    x = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    special = np.array([0.0, -0.0, 1e-38, -1e-38, 3e38, -3e38], np.float32)
    x[: min(count, 6)] = special[: min(count, 6)]
    return np.random.default_rng(seed + 1).permutation(x)


@pytest.mark.parametrize("count", COUNTS)
def test_relu(device, count):
    x, dy = values(count), values(count, 2)
    y = functional.relu(x, device=device)
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0))
    np.testing.assert_array_equal(functional.relu_backward(dy, y, device=device), np.where(x > 0, dy, 0))
    assert (functional.relu_backward(np.ones_like(y), np.zeros_like(y), device=device) == 0).all()


def test_relu_keeps_the_shape(device):
    x = values(60).reshape(3, 4, 5)
    y = functional.relu(x, device=device)
    assert y.shape == x.shape
    assert functional.relu_backward(x, y, device=device).shape == x.shape


@pytest.mark.parametrize("count", COUNTS)
def test_in_place(machine, count):
    x, dy = values(count), values(count, 2)
    array, gradient = machine.put(x), machine.put(dy)
    ops.relu_forward(machine.stream, "fp32", array, array)
    np.testing.assert_array_equal(array.download(), np.where(x > 0, x, 0))
    ops.relu_backward(machine.stream, "fp32", gradient, array, gradient)
    np.testing.assert_array_equal(gradient.download(), np.where(x > 0, dy, 0))


@pytest.mark.parametrize("count", COUNTS)
def test_add_and_scale(machine, count):
    a, b = values(count) * np.float32(0.25), values(count, 2) * np.float32(0.25)
    y = machine.empty((count,))
    ops.add(machine.stream, "fp32", machine.put(a), machine.put(b), y)
    np.testing.assert_array_equal(y.download(), a + b)
    ops.scale(machine.stream, "fp32", machine.put(a), 0.3, y)
    np.testing.assert_array_equal(y.download(), a * np.float32(0.3))
    array = machine.put(a)
    ops.add(machine.stream, "fp32", array, machine.put(b), array)
    ops.scale(machine.stream, "fp32", array, -2.0, array)
    np.testing.assert_array_equal(array.download(), (a + b) * np.float32(-2))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("lr", "momentum", "weight_decay"), [(0.01, 0.9, 5e-4), (0.3, 0.0, 0.0), (1e-3, 0.95, 0.1)])
def test_sgd_to_the_bit(device, count, lr, momentum, weight_decay):
    """Every operation rounded in the stated order: a fused multiply-add would show in the last bit."""
    random = np.random.default_rng(count)
    weight, velocity, gradient = (random.standard_normal(count, dtype=np.float32) for _ in range(3))
    kept = weight.copy(), velocity.copy(), gradient.copy()
    constants = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    for _ in range(3):
        new = functional.sgd(weight, velocity, gradient, **constants, device=device)
        for actual, expected in zip(new, reference.sgd(weight, velocity, gradient, **constants), strict=True):
            np.testing.assert_array_equal(actual, expected)
        for argument, before in zip((weight, velocity, gradient), kept, strict=True):
            np.testing.assert_array_equal(argument, before)
        weight, velocity = new
        kept = weight.copy(), velocity.copy(), gradient


def test_sgd_notices_other_orders():
    """With these numbers the order of the operations and a fused multiply-add do show."""
    random = np.random.default_rng(1025)
    w, v, g = (random.standard_normal(1025, dtype=np.float32) for _ in range(3))
    new_w, new_v = functional.sgd(w, v, g, lr=0.01, momentum=0.9, weight_decay=5e-4)
    lr, m, wd = np.float32(0.01), np.float32(0.9), np.float32(5e-4)
    assert (new_v != (m * v - lr * wd * w) - lr * g).any()
    assert (new_v != (m * v.astype(np.float64) - lr * (wd * w + g)).astype(np.float32)).any()
    assert (new_w != w + (m * v - lr * g)).any()


@pytest.mark.parametrize(("n", "crop"), [(1, 7), (3, 7), (8, 37), (65, 7)])
def test_ingest(machine, within, n, crop):
    """Crop, flip, mean, noise, scale and layout; images from ``valid`` on become zero."""
    random = np.random.default_rng(n)
    H, W, scale = crop + 6, crop + 4, 1 / 64
    images = random.integers(0, 256, (n, H, W, 3), dtype=np.uint8)
    windows = np.stack([random.integers(0, H - crop + 1, n), random.integers(0, W - crop + 1, n), np.arange(n) % 2], 1)
    windows[0, :2] = H - crop, W - crop  # the last place there is
    noise = random.normal(0, 20, (n, 3)).astype(np.float32)
    mean = random.uniform(90, 150, (3, crop, crop)).astype(np.float32)
    shape = machine.padded(IngestShape(n, n, H, W, crop, 1, scale))
    y = machine.empty(shape.y)
    put = machine.put
    ops.ingest(machine.stream, shape, "fp32", put(images), put(windows.astype(np.int32)), put(noise), put(mean), y)
    everything = machine.images(y, shape.N)
    expected = reference.ingest(images, windows, noise, mean, crop, scale)
    limit = 4 * reference.UNIT * (255 + 150 + 60) * scale
    within("ingest", reference.ratio(everything[:n], expected, limit))
    assert (everything[n:] == 0).all()

    def noticed(wrong_windows=windows, wrong_noise=noise, wrong_mean=mean, wrong_scale=scale):
        wrong = reference.ingest(images, wrong_windows, wrong_noise, wrong_mean, crop, wrong_scale)
        return reference.ratio(everything[:n], wrong, limit) > 1

    assert not noticed()
    assert noticed(wrong_windows=windows - [1, 0, 0] * (windows[:, :1] > 0))
    assert noticed(wrong_windows=windows - [0, 1, 0] * (windows[:, 1:2] > 0))
    assert noticed(wrong_windows=windows * [1, 1, 0] + [0, 0, 1] * (windows[:, 2:] == 0))
    assert noticed(wrong_noise=noise * 0)
    assert noticed(wrong_noise=noise[:, ::-1])
    assert noticed(wrong_mean=mean[:, :, ::-1])
    assert noticed(wrong_scale=scale * 1.001)


def test_relu_lets_nan_through(device):
    """Alone and behind a convolution or a linear layer: what has diverged must show."""
    x = np.array([[np.nan, -1, 0, 2]], np.float32)
    np.testing.assert_array_equal(functional.relu(x, device=device), [[np.nan, 0, 0, 2]])
    ones = np.ones((1, 1, 1, 1), np.float32)
    y = functional.conv2d(x.reshape(1, 1, 1, 4), ones, relu=True, device=device)
    np.testing.assert_array_equal(y.reshape(1, 4), [[np.nan, 0, 0, 2]])
    y = functional.linear(x.reshape(4, 1), np.ones((1, 1), np.float32), relu=True, device=device)
    np.testing.assert_array_equal(y.reshape(1, 4), [[np.nan, 0, 0, 2]])
