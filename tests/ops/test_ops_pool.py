"""Max-pooling on every device: maxima, their places, gradients, and references that are wrong."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.ops import ops

BACKWARD_KEYS = ("size", "stride", "top", "left")


def expected_backward(case, dy, x, last=False):
    argmax = reference.pool_forward(x, last=last, **case.geometry)[1]
    geometry = {key: case.geometry[key] for key in BACKWARD_KEYS}
    return reference.pool_backward(dy, argmax, case.H, case.W, **geometry)


def backward_ratio(case, dx, dy, x, expected=None, precision="fp32") -> float:
    windows = (-(-case.size // case.stride)) ** 2  # that may share one pixel
    limit = reference.sum_limit(expected_backward(case, abs(dy), x), windows) if windows > 1 else 0.0
    right = expected_backward(case, dy, x)
    if windows > 1:  # otherwise nothing is rounded
        limit = reference.held_limit(limit, right, precision)
    return reference.ratio(dx, right if expected is None else expected, limit)


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_forward_and_places(machine, precision, case):
    """Both exact: a maximum is not rounded, and the first one in row order wins."""
    x = reference.held(case.inputs()[0], precision)
    shape = machine.padded(case.shape(N=case.N))
    y, argmax = machine.activations(shape.y, precision), machine.empty(shape.y, np.uint8)
    ops.max_pool_forward(machine.stream, shape, precision, machine.put_images(x, precision), y, argmax)
    expected, places = reference.pool_forward(x, **case.geometry)
    np.testing.assert_array_equal(machine.images(y, case.N), expected)
    np.testing.assert_array_equal(machine.images(argmax, case.N), places)
    again = machine.activations(shape.y, precision)
    ops.max_pool_forward(machine.stream, shape, precision, machine.put_images(x, precision), again, None)
    np.testing.assert_array_equal(machine.images(again, case.N), expected)


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_backward(device, precision, case, within):
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {**case.options, "device": device, "precision": precision}
    dx = functional.max_pool2d_backward(dy, x, case.size, case.stride, **options)
    within("max-pool dx", backward_ratio(case, dx, dy, x, precision=precision))
    again = functional.max_pool2d_backward(dy, x, case.size, case.stride, **options)
    np.testing.assert_array_equal(dx, again)
    _, dy = case.inputs(integers=True)
    dx = functional.max_pool2d_backward(dy, x, case.size, case.stride, **options)
    np.testing.assert_array_equal(dx, expected_backward(case, dy, x))


@pytest.mark.parametrize("case", [case for case in cases.POOL if case.N > 2], ids=lambda case: case.id)
def test_mask_drops_what_a_relu_would_drop(machine, precision, case):
    """In front of the ReLU: the same bits as its mask behind the pooling, also for NaN."""
    x, dy = (reference.held(values, precision) for values in case.inputs())
    y, argmax = reference.pool_forward(np.maximum(x, 0), **case.geometry)
    y, argmax = y.astype(np.float32), argmax.astype(np.uint8)
    y[0, 0, 0, 0] = np.nan
    assert (y <= 0).any() or case.id == "one-everything-N1" or not case.ties
    shape = machine.padded(case.shape(N=case.N))
    put, places = machine.put_images, machine.put_images(argmax)
    results = []
    for gradient, mask in ((dy, put(y, precision)), (np.where(y > 0, dy, np.float32(0)), None)):
        dx = machine.activations(shape.x, precision)
        operands = machine.stream, shape, precision, put(gradient, precision), places, mask
        ops.max_pool_backward(*operands, dx)
        results.append(machine.images(dx, case.N))
    np.testing.assert_array_equal(*results)


def test_bf16_is_rounded_once():
    """A sum that is rounded after every addition would show."""
    case = cases.PoolCase("rounded", 2, 3, 11, 11, 3, 1)
    x, dy = (reference.held(values, "bf16") for values in case.inputs())
    argmax, twice = reference.pool_forward(x, **case.geometry)[1], np.zeros(x.shape)
    for n, c, p, q in np.ndindex(dy.shape):
        pixel = (n, c, p + argmax[n, c, p, q] // 3, q + argmax[n, c, p, q] % 3)
        twice[pixel] = reference.bf16(twice[pixel] + dy[n, c, p, q])
    once = reference.bf16(expected_backward(case, dy, x))
    assert backward_ratio(case, once, dy, x, precision="bf16") <= 1
    assert backward_ratio(case, twice, dy, x, precision="bf16") > 1


def test_published_example(device):
    """Ties in 2x2 windows with stride 1: the maxima, and the pixels that receive the gradient."""
    x = np.array([[[[1, 2, 5, 2, 3], [9, 4, 1, 4, 8], [1, 2, 5, 2, 3]]]], np.float32)
    y = functional.max_pool2d(x, 2, 1, device=device)
    np.testing.assert_array_equal(y[0, 0], [[9, 5, 5, 8], [9, 5, 5, 8]])
    dx = functional.max_pool2d_backward(np.ones_like(y), x, 2, 1, device=device)
    np.testing.assert_array_equal(dx[0, 0], [[0, 0, 2, 0, 0], [2, 0, 0, 0, 2], [0, 0, 2, 0, 0]])


def test_padded_lanes_do_not_leak(device):
    case = next(case for case in cases.POOL if case.id == "batch-65-N65")
    x, dy = case.inputs()
    dx = functional.max_pool2d_backward(dy, x, case.size, case.stride, device=device)
    for part in (slice(0, 64), slice(64, 65)):
        alone = functional.max_pool2d_backward(dy[part], x[part], case.size, case.stride, device=device)
        np.testing.assert_array_equal(alone, dx[part])


@pytest.mark.parametrize("case", cases.POOL, ids=lambda case: case.id)
def test_wrong_references_fail(case):
    x, dy = case.inputs()
    y = functional.max_pool2d(x, case.size, case.stride, **case.options)
    dx = functional.max_pool2d_backward(dy, x, case.size, case.stride, **case.options)
    geometry = case.geometry

    def noticed(**changes):
        return reference.ratio(y, reference.pool_forward(x, **{**geometry, **changes})[0], 0.0) > 0

    assert not noticed()
    if case.H == 1:
        return  # one pixel: nothing to be wrong about
    assert noticed(top=geometry["top"] + 1)
    assert noticed(left=geometry["left"] - 1)
    if not case.ties:  # whose few values hide a pixel more or less
        assert noticed(size=case.size - 1)
        assert noticed(size=case.size + 1) or case.size >= case.H
    if geometry["P"] > 1:
        assert noticed(stride=case.stride + 1)
    if case.ceil_mode:
        floor = cases.replace(case, ceil_mode=False).geometry
        if floor != geometry:
            assert noticed(**floor)
    if case.ties:
        wrong = expected_backward(case, dy, x, last=True)
        assert backward_ratio(case, dx, dy, x, wrong) > 1, "backward does not notice the last maximum for the first"
    if case.ties and geometry["top"] + geometry["left"] > 0:
        framed = np.pad(x, ((0, 0), (0, 0), (geometry["top"], 99), (geometry["left"], 99)))
        zeros = reference.pool_forward(framed, **{**geometry, "top": 0, "left": 0})[0]
        assert reference.ratio(y, zeros, 0.0) > 0, "forward does not notice padding that takes part as zero"


@pytest.mark.parametrize("padding", [0, 1])
def test_windows_of_minus_infinity_have_a_place_inside(machine, precision, padding):
    """The first that lies in the image, as where other values are equal."""
    case = cases.PoolCase("infinite", 3, 2, 7, 8, 3, 2, padding=padding)
    x = np.full((case.N, case.C, case.H, case.W), -np.inf, np.float32)
    shape = machine.padded(case.shape(N=case.N))
    y, argmax = machine.activations(shape.y, precision), machine.empty(shape.y, np.uint8)
    ops.max_pool_forward(machine.stream, shape, precision, machine.put_images(x, precision), y, argmax)
    places = reference.pool_forward(np.zeros_like(x), **case.geometry)[1]
    assert (machine.images(y, case.N) == -np.inf).all()
    np.testing.assert_array_equal(machine.images(argmax, case.N), places)
    assert (places.max() > 0) == (padding > 0)


def test_nan_shows_and_the_first_takes_the_gradient(device, precision):
    options = {"device": device, "precision": precision}
    x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    x[0, 1, 0, 1] = x[0, 1, 2, 0] = np.nan
    y = functional.max_pool2d(x, 3, 1, **options)
    np.testing.assert_array_equal(y[0, 0], [[10, 11], [14, 15]])
    np.testing.assert_array_equal(np.isnan(y[0, 1]), [[True, True], [True, False]])
    dx = functional.max_pool2d_backward(np.ones_like(y), x, 3, 1, **options)
    np.testing.assert_array_equal(dx[0, 1], [[0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
