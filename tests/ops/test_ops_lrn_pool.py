"""Normalisation and pooling in one kernel against the two alone, to the bit, and against float64."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import reference
from test_ops_lrn import power_limit

from convnet.ops import ops


def geometry(case) -> dict:
    return {key: case.pool.geometry[key] for key in ("size", "stride", "top", "left")}


def shapes(machine, case):
    return machine.padded(case.lrn), machine.padded(case.pool.shape())


def forward(machine, case, precision, x):
    """p, argmax"""
    lrn, pool = shapes(machine, case)
    p, argmax = machine.activations(pool.y, precision), machine.empty(pool.y, np.uint8)
    ops.lrn_pool_forward(machine.stream, lrn, pool, precision, machine.put_images(x, precision), p, argmax)
    return p, argmax


def backward(machine, case, precision, dp, argmax, x, relu=False):
    """dx of the kernel under test."""
    lrn, pool = shapes(machine, case)
    operands = machine.put_images(dp, precision), argmax, machine.put_images(x, precision)
    dx = machine.activations(lrn.x, precision)
    ops.lrn_pool_backward(machine.stream, lrn, pool, precision, *operands, dx, relu)
    return machine.images(dx, case.N)


def forward_limit(case, x, precision):
    """Of every normalised value; see ``test_ops_lrn.forward_ratio``."""
    y = reference.lrn_forward(x, groups=case.groups, **case.constants)
    d = reference.lrn_denominator(x, case.window, 1e-4, 2.0, case.groups)
    limit = reference.UNIT * (2 + power_limit(d, case.beta, min(case.window, case.C))) * np.abs(y)
    return y, reference.held_limit(limit, y, precision)


def backward_ratio(case, dx, dp, argmax, x, precision):
    windows = (-(-case.size // case.stride)) ** 2  # that may share one pixel
    dy, absolute = (reference.pool_backward(d, argmax, case.H, case.W, **geometry(case)) for d in (dp, abs(dp)))
    right = reference.lrn_backward(dy, x, groups=case.groups, **case.constants)[0]
    magnitude = reference.lrn_backward(absolute, x, groups=case.groups, **case.constants)[1]
    d, terms = reference.lrn_denominator(x, case.window, 1e-4, 2.0, case.groups), min(case.window, case.C)
    # what test_ops_lrn allows for the normalisation, and a rounding for every window but the first
    limit = reference.UNIT * (7 + windows + terms + power_limit(d, case.beta + 1, terms).max()) * magnitude
    return reference.ratio(dx, right, reference.held_limit(limit, right, precision))


@pytest.mark.parametrize("case", cases.LRN_POOL, ids=lambda case: case.id)
def test_forward_is_that_of_the_two_kernels(machine, precision, case):
    x = reference.held(case.inputs()[0], precision)
    p, argmax = forward(machine, case, precision, x)
    lrn, pool = shapes(machine, case)
    y, expected = machine.activations(lrn.x, precision), machine.activations(pool.y, precision)
    places, images = machine.empty(pool.y, np.uint8), machine.put_images(x, precision)
    ops.lrn_forward(machine.stream, lrn, precision, images, y)
    ops.max_pool_forward(machine.stream, pool, precision, y, expected, places)
    np.testing.assert_array_equal(p.download(), expected.download())
    np.testing.assert_array_equal(argmax.download(), places.download())
    again = machine.activations(pool.y, precision)
    ops.lrn_pool_forward(machine.stream, lrn, pool, precision, images, again, None)
    np.testing.assert_array_equal(again.download(), expected.download())


@pytest.mark.parametrize("case", cases.LRN_POOL, ids=lambda case: case.id)
def test_forward_and_backward(machine, precision, case, within):
    x, dp = (reference.held(values, precision) for values in case.inputs())
    p, argmax = forward(machine, case, precision, x)
    places = machine.images(argmax, case.N).astype(int)
    y, limit = forward_limit(case, x, precision)
    # the largest of some numbers is as exact as the least exact of them, and so is the one that was taken for it
    expected = reference.pool_forward(y, **case.pool.geometry)[0]
    limit = reference.pool_forward(limit, **case.pool.geometry)[0]
    within("lrn-pool forward", reference.ratio(machine.images(p, case.N), expected, limit))
    n, c, h, w = np.ogrid[tuple(map(slice, expected.shape))]
    top, left, stride, size = (geometry(case)[key] for key in ("top", "left", "stride", "size"))
    chosen = y[n, c, h * stride - top + places // size, w * stride - left + places % size]
    within("lrn-pool place", reference.ratio(chosen, expected, 2 * limit))
    dx = backward(machine, case, precision, dp, argmax, x)
    within("lrn-pool dx", backward_ratio(case, dx, dp, places, x, precision))
    np.testing.assert_array_equal(backward(machine, case, precision, dp, argmax, x), dx)
    masked = backward(machine, case, precision, dp, argmax, x, relu=True)
    np.testing.assert_array_equal(masked, np.where(x > 0, dx, 0))


@pytest.mark.parametrize("case", cases.LRN_POOL, ids=lambda case: case.id)
def test_backward_is_that_of_the_two_kernels(machine, case):
    """In float32. bfloat16 gives the float32 result, rounded once."""
    x, dp = case.inputs()
    argmax = forward(machine, case, "fp32", x)[1]
    lrn, pool = shapes(machine, case)
    dy, expected = machine.empty(pool.x), machine.empty(lrn.x)
    ops.max_pool_backward(machine.stream, pool, "fp32", machine.put_images(dp), argmax, None, dy)
    ops.lrn_backward(machine.stream, lrn, "fp32", dy, machine.put_images(x), expected)
    expected = machine.images(expected, case.N)
    np.testing.assert_array_equal(backward(machine, case, "fp32", dp, argmax, x), expected)
    if machine.device.name != "cpu":
        x, dp = (reference.held(values, "bf16") for values in (x, dp))
        argmax = forward(machine, case, "bf16", x)[1]
        wide, narrow = (backward(machine, case, precision, dp, argmax, x) for precision in ("fp32", "bf16"))
        np.testing.assert_array_equal(narrow, reference.held(wide, "bf16"))


def test_wrong_references_fail(precision):
    """The bounds notice a window across groups, a sum left out, the last maximum for the first, and a pixel beside."""
    case = next(case for case in cases.LRN_POOL if case.id == "ties-N3")
    case = replace(case, ties=False)
    x, dp = (reference.held(values, precision) for values in case.inputs())
    y, limit = forward_limit(case, x, precision)
    places = reference.pool_forward(y, **case.pool.geometry)[1]
    limit = reference.pool_forward(limit, **case.pool.geometry)[0]

    def pooled(y):
        return reference.ratio(
            reference.held(reference.pool_forward(y, **case.pool.geometry)[0], precision),
            reference.pool_forward(reference.lrn_forward(x, groups=2, **case.constants), **case.pool.geometry)[0],
            limit,
        )

    assert pooled(y) <= 1
    assert pooled(reference.lrn_forward(x, groups=1, **case.constants)) > 1
    assert pooled(np.roll(y, 1, axis=3)) > 1

    def ratio(dy, groups=2):
        dx = reference.lrn_backward(dy, x, groups=groups, **case.constants)[0]
        return backward_ratio(case, reference.held(dx, precision), dp, places, x, precision)

    dy = reference.pool_backward(dp, places, case.H, case.W, **geometry(case))
    assert ratio(dy) <= 1
    assert ratio(dy, groups=1) > 1
    assert ratio(np.roll(dy, 1, axis=2)) > 1
    d = reference.lrn_denominator(x, 5, 1e-4, 2.0, 2)
    assert backward_ratio(case, dy * d**-0.75, dp, places, x, precision) > 1


def test_nan_and_infinity_as_in_the_two_kernels(machine, precision):
    case = cases.LrnPoolCase("special", 8, 12, 9, 8)
    x = case.inputs()[0]
    x[0, 2, 3, 4], x[1, 7, 0, 0], x[2, 11, 8, 7] = np.nan, np.inf, -np.inf
    x[:, 5] = np.where(x[:, 6] > 0, 0.0, -0.0)  # equal, so that the first of a window wins
    p, argmax = forward(machine, case, precision, x)
    lrn, pool = shapes(machine, case)
    y, expected = machine.activations(lrn.x, precision), machine.activations(pool.y, precision)
    places = machine.empty(pool.y, np.uint8)
    ops.lrn_forward(machine.stream, lrn, precision, machine.put_images(x, precision), y)
    ops.max_pool_forward(machine.stream, pool, precision, y, expected, places)
    np.testing.assert_array_equal(machine.images(p, 8), machine.images(expected, 8))
    np.testing.assert_array_equal(argmax.download(), places.download())
    assert np.isnan(machine.images(p, 8)).any()
    dx = backward(machine, case, precision, np.ones((8, 12, pool.P, pool.Q), np.float32), argmax, x)
    assert np.isnan(dx[0, 0:5, 3, 4]).all()
    assert np.isfinite(dx[:, :, 6, 2]).all()


def test_windows_of_minus_infinity_have_a_place_inside(machine, precision):
    """The first that lies in the image, with more padding than a stride. Small denominators make all overflow."""
    case = cases.LrnPoolCase("infinite", 3, 12, 9, 8, size=5, stride=1, padding=2)
    lrn, pool = shapes(machine, case)
    lrn = replace(lrn, alpha=1e-37, beta=1.5, k=2e-38)
    images = machine.put_images(np.full((3, 12, 9, 8), -1, np.float32), precision)
    p, argmax = machine.activations(pool.y, precision), machine.empty(pool.y, np.uint8)
    ops.lrn_pool_forward(machine.stream, lrn, pool, precision, images, p, argmax)
    places = reference.pool_forward(np.zeros((3, 12, 9, 8)), **case.pool.geometry)[1]
    assert (machine.images(p, 3) == -np.inf).all()
    np.testing.assert_array_equal(machine.images(argmax, 3), places)
    assert {0, 2, 10, 12} <= set(places.flat)


def test_shapes_that_do_not_belong_together(machine):
    case = cases.LRN_POOL[1]
    lrn, pool = shapes(machine, case)
    x, p, argmax = machine.empty(lrn.x), machine.empty(pool.y), machine.empty(pool.y, np.uint8)
    other = replace(pool, C=pool.C + 1)
    with pytest.raises(ValueError, match="lrn_pool: x must have shape"):
        ops.lrn_pool_forward(machine.stream, lrn, other, "fp32", x, machine.empty(other.y), None)
    with pytest.raises(ValueError, match="lrn_pool_backward: x must have shape"):
        ops.lrn_pool_backward(machine.stream, replace(lrn, C=2), pool, "fp32", p, argmax, x, machine.empty(pool.x))
    if machine.device.name != "cpu":
        kernels = machine.device.kernels
        with pytest.raises(ValueError, match="both shapes must have the same N, C, H, W and lanes"):
            kernels.lrn_pool_forward(lrn, other, "fp32", 64, 64, None, 0)
