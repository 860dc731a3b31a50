"""Stochastic pooling on every device: what is drawn to the bit, means against float64, and the statistics of draws."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.control import control_words
from convnet.kernels.shapes import DropoutShape, PoolShape
from convnet.ops import ops
from convnet.ops.layout import to_float32

SMALL = [case for case in cases.POOL if case.N * case.C * case.H * case.W <= 3000]
SEED = {"seed": 2**40 + 7, "step": 3, "layer": 5}


def taken(x, places):
    """The values at ``places`` of each map."""
    return np.take_along_axis(x.reshape(*x.shape[:2], -1), places.reshape(*x.shape[:2], -1), 2).reshape(places.shape)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_what_is_drawn_and_its_gradient(device, precision, case):
    x, dy = case.inputs(integers=True)
    x = reference.held(x, precision)
    options = {**SEED, **case.options, "device": device, "precision": precision}
    places = reference.rand_pool_places(x, **case.geometry, **SEED)
    y = functional.rand_pool2d(x, case.size, case.stride, **options)
    np.testing.assert_array_equal(y, taken(x, places))
    expected = np.zeros((case.N, case.C, case.H * case.W), np.float32)
    for n, c in np.ndindex(case.N, case.C):
        np.add.at(expected[n, c], places[n, c].ravel(), dy[n, c].ravel())
    dx = functional.rand_pool2d_backward(dy, x, case.size, case.stride, **options)
    np.testing.assert_array_equal(dx, reference.held(expected.reshape(x.shape), precision))


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_means(device, precision, within, case):
    x = reference.held(case.inputs()[0], precision)
    y = functional.rand_pool2d_mean(x, case.size, case.stride, **case.options, device=device, precision=precision)
    expected = reference.rand_pool_mean(x, **case.geometry)
    limit = reference.sum_limit(np.abs(expected), case.size**2 + 2)
    within("rand-pool mean", reference.ratio(y, expected, reference.held_limit(limit, expected, precision)))
    if case.size > 1 and not case.ties:
        largest = functional.max_pool2d(x, case.size, case.stride, **case.options)
        assert reference.ratio(y, largest.astype(np.float64), limit) > 1


def test_values_are_drawn_as_often_as_they_are_large(device):
    """Of 65,536 windows of 1, 2, 0, -5, 3 and 4; the mean of what is drawn is that which is used at test."""
    x = np.tile(np.array([[1, 2, 0], [-5, 3, 4]], np.float32), (64, 16, 8, 8))
    options = {"stride": 3, "padding": (0, 0, 0, 0), "device": device}
    x = np.insert(x, np.arange(2, 17, 2), 0, axis=2)  # a row of zeros below each
    y = functional.rand_pool2d(x, 3, **options, **SEED)
    assert y.size == 65536
    for value in (0, -5):
        assert not (y == value).any()
    for value in (1, 2, 3, 4):
        p = value / 10
        assert abs((y == value).mean() - p) < 5 * np.sqrt(p * (1 - p) / y.size)
    mean = functional.rand_pool2d_mean(x, 3, **options)
    np.testing.assert_allclose(mean, 3.0, rtol=2e-7)
    assert abs(y.mean() - 3) < 5 * y.std() / np.sqrt(y.size)
    maps = y[:32].mean((1, 2, 3)), y[:, :8].mean((0, 2, 3))  # neither images nor maps agree
    assert all(np.unique(values).size > 1 for values in maps)
    correlation = np.corrcoef(y[:, :, :, :-1].ravel(), y[:, :, :, 1:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(y.size)


def test_draws_differ_and_are_repeated(device):
    x = np.random.default_rng(0).random((9, 4, 12, 12), np.float32)
    first = functional.rand_pool2d(x, 3, 2, **SEED, device=device)
    np.testing.assert_array_equal(functional.rand_pool2d(x, 3, 2, **SEED, device=device), first)
    np.testing.assert_array_equal(functional.rand_pool2d(x[:2], 3, 2, **SEED, device=device), first[:2])
    for name in SEED:
        other = functional.rand_pool2d(x, 3, 2, **{**SEED, name: SEED[name] + 1}, device=device)
        assert 0.5 < (other != first).mean() < 0.95


def test_parts_draw_what_the_whole_does(machine, precision):
    """Maps on two devices: each says where its windows lie among all."""
    whole = machine.padded(PoolShape.of(5, 4, 7, 6, 3, 2, lanes=1))
    x = np.random.default_rng(0).random((5, 4, 7, 6), np.float32)
    control, total = machine.put(control_words(step=3)), whole.C * whole.P * whole.Q

    def drawn(first, count):
        shape = replace(whole, C=count)
        features, offset = count * whole.P * whole.Q, first * whole.P * whole.Q
        draw = DropoutShape(shape.N, features, shape.lanes, offset, total, 0.0, 7, 5)
        y, places = machine.activations(shape.y, precision), machine.empty(shape.y, np.uint8)
        images = machine.put_images(x[:, first : first + count], precision)
        ops.rand_pool_forward(machine.stream, shape, draw, precision, images, y, places, control)
        without = machine.activations(shape.y, precision)
        ops.rand_pool_forward(machine.stream, shape, draw, precision, images, without, None, control)
        np.testing.assert_array_equal(to_float32(without.download()), to_float32(y.download()))
        return machine.images(y, 5)

    np.testing.assert_array_equal(np.concatenate([drawn(0, 1), drawn(1, 3)], 1), drawn(0, 4))


@pytest.mark.parametrize(
    ("window", "drawn", "mean"),
    [
        ([-3, -1, -2, -1], -1, -1),
        ([0, -1, 0, -2], 0, 0),
        ([-np.inf] * 4, -np.inf, -np.inf),
        ([1, np.nan, 5, np.nan], np.nan, np.nan),
        ([np.nan, -1, -2, -3], np.nan, np.nan),
        ([1, np.inf, 5, 2], np.inf, np.nan),
        ([0, 0, 7, 0], 7, 7),
        ([1e-40, 0, 0, 0], np.float32(1e-40), np.float32(1e-40)),
        ([-np.inf, 0, -1, 2e38], np.float32(2e38), np.float32(2e38)),
    ],
    ids=str,
)
def test_windows_out_of_the_ordinary(device, window, drawn, mean):
    x = np.array(window, np.float32).reshape(1, 1, 2, 2)
    assert np.array_equal(functional.rand_pool2d(x, 2, 2, **SEED, device=device).ravel(), [drawn], equal_nan=True)
    found = functional.rand_pool2d_mean(x, 2, 2, device=device).ravel()
    assert np.array_equal(found, [mean], equal_nan=True)
    dx = functional.rand_pool2d_backward(np.ones((1, 1, 1, 1), np.float32), x, 2, 2, **SEED, device=device)
    assert dx.sum() == 1
    assert np.array_equal(x[dx == 1], [np.float32(drawn)], equal_nan=True)


X = np.ones((2, 4, 6, 5), np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: functional.rand_pool2d(X, 16, 1, **SEED), "rand_pool2d: size must lie between 1 and 15"),
        (lambda: functional.rand_pool2d(X[0], 2, 1, **SEED), r"rand_pool2d: x must have shape \(N, C, H, W\)"),
        (lambda: functional.rand_pool2d(X, 2, 1, **{**SEED, "step": -1}), "rand_pool2d: step must lie between 0"),
        (lambda: functional.rand_pool2d(X, 2, 1, **{**SEED, "seed": 2**64}), "rand_pool2d: seed must lie between 0"),
        (lambda: functional.rand_pool2d_mean(X, 6, 1), "rand_pool2d_mean: a window of 6"),
        (lambda: functional.rand_pool2d_backward(X, X, 2, 1, **SEED), r"dy must have shape \(2, 4, 5, 4\)"),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("change", [{"N": 16}, {"features": 3}, {"lanes": 4}])
def test_draws_of_other_windows(machine, change):
    shape = PoolShape.of(8, 2, 4, 4, 2, 2, lanes=8)
    draw = DropoutShape(8, 8, 8, 0, 8, 0.0, 1, 1)
    kernel = machine.device.kernels.rand_pool_forward
    with pytest.raises(ValueError, match="rand_pool_forward: draw must be of the windows, got"):
        kernel(shape, replace(draw, **change), "fp32", 16, 16, 16, 16, 0)
