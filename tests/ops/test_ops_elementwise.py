"""ReLU, tanh, add, scale, SGD and ingest on every device. All but tanh forward and ingest are exact to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.shapes import IngestShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

COUNTS = (1, 3, 4, 5, 255, 1024, 1025, 4099)


def values(count: int, seed: int = 0, precision: str = "fp32"):
    """Random numbers with both zeros and extremes among them."""
    x = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    special = np.array([0.0, -0.0, 1e-38, -1e-38, 3e38, -3e38], np.float32)
    x[: min(count, 6)] = special[: min(count, 6)]
    return reference.held(np.random.default_rng(seed + 1).permutation(x), precision)


@pytest.mark.parametrize("count", COUNTS)
def test_relu(device, precision, count):
    x, dy = values(count, 0, precision), values(count, 2, precision)
    options = {"device": device, "precision": precision}
    y = functional.relu(x, **options)
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0))
    assert not np.signbit(y).any()  # of -0.0 too
    np.testing.assert_array_equal(functional.relu_backward(dy, y, **options), np.where(x > 0, dy, 0))
    assert (functional.relu_backward(np.ones_like(y), np.zeros_like(y), **options) == 0).all()


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_no_values_are_no_work(device, precision, name):
    """A launch without thread blocks is an error; nothing to do is none."""
    nothing, options = np.zeros(0, np.float32), {"device": device, "precision": precision}
    assert getattr(functional, name)(nothing, **options).size == 0
    assert getattr(functional, f"{name}_backward")(nothing, nothing, **options).size == 0


def test_no_values_are_added_or_scaled(machine, precision):
    nothing = machine.activations((0,), precision)
    ops.add(machine.stream, precision, nothing, nothing, nothing)
    assert nothing.download().size == 0
    ops.scale(machine.stream, precision, nothing, 2.0, nothing)
    assert nothing.download().size == 0


def test_relu_keeps_the_shape(device):
    x = values(60).reshape(3, 4, 5)
    y = functional.relu(x, device=device)
    assert y.shape == x.shape
    assert functional.relu_backward(x, y, device=device).shape == x.shape


UNITS = {"fp32": 2.0**-20, "tf32": 2.0**-20, "bf16": 2.0**-7}  # enough for tests to notice


def tanh_limit(expected, precision):
    """tanhf and NumPy's tanh are within 2 units in the last place of the rounded result, which is half a unit off."""
    return reference.held_limit(
        2.5 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64), expected, precision
    )


@pytest.mark.parametrize("count", COUNTS)
def test_tanh(device, precision, within, count):
    """Forward in units of the last place, from tiny to saturated values; backward from y alone, to the bit."""
    random = np.random.default_rng(count)
    x = random.choice([-1.0, 1.0], count) * np.exp(random.uniform(-20, 3, count))
    x, dy = reference.held(x.astype(np.float32), precision), values(count, 2, precision)
    options = {"device": device, "precision": precision}
    y = functional.tanh(x, **options)
    expected = np.tanh(x.astype(np.float64))
    limit = tanh_limit(expected, precision)
    within(f"tanh {precision}", reference.ratio(y, expected, limit))
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    if count > 5:
        assert reference.ratio(y, np.tanh(x * (1 + UNITS[precision])), limit) > 1
    slope = np.float32(1) - y * y
    np.testing.assert_array_equal(functional.tanh_backward(dy, y, **options), reference.held(dy * slope, precision))


def test_tanh_at_the_ends(device):
    x = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 20.0]], np.float32)
    y = functional.tanh(x, device=device)
    np.testing.assert_array_equal(y, [[np.nan, 1, -1, 0, 0, 1]])
    assert (np.signbit(y[0, 2:5]) == [True, False, True]).all()
    np.testing.assert_array_equal(
        functional.tanh_backward(np.ones_like(y), y, device=device), [[np.nan, 0, 0, 1, 1, 0]]
    )


@pytest.mark.parametrize("count", COUNTS)
def test_in_place(machine, precision, count):
    x, dy = values(count, 0, precision), values(count, 2, precision)
    array, gradient = machine.put_rounded(x, precision), machine.put_rounded(dy, precision)
    ops.relu_forward(machine.stream, precision, array, array)
    np.testing.assert_array_equal(to_float32(array.download()), np.where(x > 0, x, 0))
    ops.relu_backward(machine.stream, precision, gradient, array, gradient)
    np.testing.assert_array_equal(to_float32(gradient.download()), np.where(x > 0, dy, 0))
    array, gradient = machine.put_rounded(x, precision), machine.put_rounded(dy, precision)
    y, dx = machine.activations((count,), precision), machine.activations((count,), precision)
    ops.activation_forward(machine.stream, precision, "tanh", 1.0, 1.0, array, y)
    ops.activation_forward(machine.stream, precision, "tanh", 1.0, 1.0, array, array)
    np.testing.assert_array_equal(to_float32(array.download()), to_float32(y.download()))
    ops.activation_backward(machine.stream, precision, "tanh", 1.0, 1.0, gradient, y, dx)
    ops.activation_backward(machine.stream, precision, "tanh", 1.0, 1.0, gradient, y, gradient)
    np.testing.assert_array_equal(to_float32(gradient.download()), to_float32(dx.download()))


@pytest.mark.parametrize("count", COUNTS)
def test_add_and_scale(machine, precision, count):
    a, b = (reference.held(values(count, seed) * np.float32(0.25), precision) for seed in (0, 2))
    y, array = machine.activations((count,), precision), machine.put_rounded(a, precision)
    added, scaled = reference.held(a + b, precision), reference.held(a * np.float32(0.3), precision)
    ops.add(machine.stream, precision, array, machine.put_rounded(b, precision), y)
    np.testing.assert_array_equal(to_float32(y.download()), added)
    ops.scale(machine.stream, precision, array, 0.3, y)
    np.testing.assert_array_equal(to_float32(y.download()), scaled)
    ops.add(machine.stream, precision, array, machine.put_rounded(b, precision), array)
    ops.scale(machine.stream, precision, array, -2.0, array)
    np.testing.assert_array_equal(to_float32(array.download()), added * np.float32(-2))


@pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)
def test_tf32_rounds_nothing_but_products(device):
    x = values(240).reshape(2, 6, 4, 5) * np.float32(1e-30)
    options = {"device": device, "precision": "tf32"}
    np.testing.assert_array_equal(functional.relu(x, **options), np.where(x > 0, x, 0))
    np.testing.assert_array_equal(functional.max_pool2d(x, 1, 1, **options), x)
    np.testing.assert_array_equal(functional.dropout(x, 0.0, seed=1, step=2, layer=3, **options)[0], x)
    y = functional.local_response_norm(x, device=device)
    np.testing.assert_array_equal(functional.local_response_norm(x, **options), y)


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


def ingest_inputs(n, crop):
    """images, windows, noise, mean."""
    random = np.random.default_rng(n)
    H, W = crop + 6, crop + 4
    images = random.integers(0, 256, (n, H, W, 3), dtype=np.uint8)
    windows = np.stack([random.integers(0, H - crop + 1, n), random.integers(0, W - crop + 1, n), np.arange(n) % 2], 1)
    windows[0, :2] = H - crop, W - crop  # the last place there is
    noise = random.normal(0, 20, (n, 3)).astype(np.float32)
    return images, windows.astype(np.int32), noise, random.uniform(90, 150, (3, crop, crop)).astype(np.float32)


SCALE = (1 / 64, 1 / 58.4, 1 / 57.1)


def ingest(machine, precision, inputs, crop, scale=SCALE, fold=1):
    """y of all images, those that do not exist too."""
    n, H, W, _ = inputs[0].shape
    shape = machine.padded(IngestShape(n, n, H, W, crop, 1, scale, fold))
    y = machine.activations(shape.y, precision)
    ops.ingest(machine.stream, shape, precision, *map(machine.put, inputs), y)
    return machine.images(y, shape.N)


@pytest.mark.parametrize(("n", "crop"), [(1, 7), (3, 7), (8, 37), (65, 7)])
def test_ingest(machine, precision, within, n, crop):
    """Crop, flip, mean, noise, scale and layout; images from ``valid`` on become zero."""
    inputs = images, windows, noise, mean = ingest_inputs(n, crop)
    everything = ingest(machine, precision, inputs, crop)
    expected = reference.ingest(images, windows, noise, mean, crop, SCALE)
    limit = reference.held_limit(4 * reference.UNIT * (255 + 150 + 60) * max(SCALE), expected, precision)
    within("ingest", reference.ratio(everything[:n], expected, limit))
    assert (everything[n:] == 0).all()

    def noticed(wrong_windows=windows, wrong_noise=noise, wrong_mean=mean, wrong_scale=SCALE):
        wrong = reference.ingest(images, wrong_windows, wrong_noise, wrong_mean, crop, wrong_scale)
        return reference.ratio(everything[:n], wrong, limit) > 1

    assert not noticed()
    assert noticed(wrong_windows=windows - [1, 0, 0] * (windows[:, :1] > 0))
    assert noticed(wrong_windows=windows - [0, 1, 0] * (windows[:, 1:2] > 0))
    assert noticed(wrong_windows=windows * [1, 1, 0] + [0, 0, 1] * (windows[:, 2:] == 0))
    assert noticed(wrong_noise=noise * 0)
    assert noticed(wrong_noise=noise[:, ::-1])
    assert noticed(wrong_mean=mean[:, :, ::-1])
    assert noticed(wrong_scale=np.array(SCALE) * (1.01 if precision == "bf16" else 1.001))
    assert noticed(wrong_scale=SCALE[::-1])


@pytest.mark.parametrize(("n", "crop", "fold"), [(3, 12, 4), (2, 9, 9), (8, 36, 2), (65, 6, 3), (1, 72, 4)])
@pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)
def test_folded_ingest(machine, precision, n, crop, fold):
    """The pixels of the plain one, bit by bit, every one in its place."""
    inputs = ingest_inputs(n, crop)
    plain = ingest(machine, precision, inputs, crop)
    folded = ingest(machine, precision, inputs, crop, fold=fold)
    expected, mirrored = np.full(folded.shape, np.nan), np.full(folded.shape, np.nan)
    for c, i, j in np.ndindex(3, crop, crop):
        expected[:, (c * fold + i % fold) * fold + j % fold, i // fold, j // fold] = plain[:, c, i, j]
        mirrored[:, (c * fold + j % fold) * fold + i % fold, i // fold, j // fold] = plain[:, c, i, j]
    np.testing.assert_array_equal(folded, expected)
    assert (folded[:n] != mirrored[:n]).any()


@pytest.mark.parametrize("lanes", [24, 104, 136])
@pytest.mark.parametrize("device", ["emu", "cuda"], indirect=True)
def test_ingest_into_blocks_of_any_size(machine, lanes):
    """A block of more images than a thread block has lanes is cut up."""
    n, crop = lanes + 13, 7
    inputs = images, *_ = ingest_inputs(n, crop)
    shape = IngestShape(2 * lanes, n, *images.shape[1:3], crop, lanes, SCALE)
    y = machine.empty(shape.y)
    ops.ingest(machine.stream, shape, "fp32", *map(machine.put, inputs), y)
    np.testing.assert_array_equal(machine.images(y, n), ingest(machine, "fp32", inputs, crop)[:n])
    assert (machine.images(y, 2 * lanes)[n:] == 0).all()


def test_a_fold_divides_the_crop(machine):
    if machine.device.name != "cpu":
        with pytest.raises(ValueError, match="fold must divide crop, got fold=2 crop=7"):
            ingest(machine, "fp32", ingest_inputs(1, 7), 7, fold=2)


def test_relu_lets_nan_through(device):
    """Alone and behind a convolution or a linear layer: what has diverged must show."""
    x = np.array([[np.nan, -1, 0, 2]], np.float32)
    np.testing.assert_array_equal(functional.relu(x, device=device), [[np.nan, 0, 0, 2]])
    ones = np.ones((1, 1, 1, 1), np.float32)
    y = functional.conv2d(x.reshape(1, 1, 1, 4), ones, relu=True, device=device)
    np.testing.assert_array_equal(y.reshape(1, 4), [[np.nan, 0, 0, 2]])
    y = functional.linear(x.reshape(4, 1), np.ones((1, 1), np.float32), relu=True, device=device)
    np.testing.assert_array_equal(y.reshape(1, 4), [[np.nan, 0, 0, 2]])
