"""Weighted sums and maxima of several arrays, on every device, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet import functional
from convnet.ops import ops
from convnet.ops.layout import to_float32

COUNTS = (1, 4, 1029)


def drawn(count: int, many: int, precision: str):
    random = np.random.default_rng([count, many])
    return [reference.held(random.standard_normal(count, dtype=np.float32), precision) for _ in range(many)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("coefficients", [[-0.7], [1.0, 1.0], [0.3, -2.5, 1.1]], ids=str)
def test_weighted_sum(device, precision, count, coefficients):
    """From the first on, every product and every sum rounded."""
    options = {"device": device, "precision": precision}
    *xs, dy = drawn(count, len(coefficients) + 1, precision)
    factors = [np.float32(c) for c in coefficients]
    expected = reference.held(xs[0] * factors[0], precision)
    for x, factor in zip(xs[1:], factors[1:], strict=True):
        expected = reference.held(expected + x * factor, precision)
    np.testing.assert_array_equal(functional.weighted_sum(xs, coefficients, **options), expected)
    gradients = functional.weighted_sum_backward(dy, coefficients, **options)
    for dx, factor in zip(gradients, factors, strict=True):
        np.testing.assert_array_equal(dx, reference.held(dy * factor, precision))


@pytest.mark.parametrize("count", COUNTS)
def test_both_may_be_weighted(machine, precision, count):
    """Also in place."""
    a, b = drawn(count, 2, precision)
    array, other = machine.put_rounded(a, precision), machine.put_rounded(b, precision)
    ops.weighted_add(machine.stream, precision, array, 0.3, other, -1.7, array)
    expected = np.float32(0.3) * a + np.float32(-1.7) * b
    np.testing.assert_array_equal(to_float32(array.download()), reference.held(expected, precision))
    assert count < 9 or (expected != (0.3 * a.astype(np.float64) - 1.7 * b).astype(np.float32)).any()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("many", [1, 2, 4])
def test_elementwise_max(device, precision, count, many):
    """The gradient goes to all that are equal to the maximum; zeros of both signs are."""
    options = {"device": device, "precision": precision}
    *xs, dy = drawn(count, many + 1, precision)
    for x in xs:
        x[::3] = reference.held(np.float32(0.7), precision)
    xs[0][-1:], xs[-1][-1:] = 9.0, 9.0
    if count > 9 and many > 1:
        xs[0][5], xs[1][5], xs[-1][5] = 0.0, -0.0, -0.0
        for x in xs[2:-1]:
            x[5] = -1
    y = functional.elementwise_max(xs, **options)
    np.testing.assert_array_equal(y, np.max(xs, axis=0))
    for dx, x in zip(functional.elementwise_max_backward(dy, xs, **options), xs, strict=True):
        np.testing.assert_array_equal(dx, np.where(x == np.max(xs, axis=0), dy, 0))


def test_nothing_hides_what_is_no_number(device, precision):
    options = {"device": device, "precision": precision}
    a, b = np.array([np.nan, 1, np.inf], np.float32), np.array([1, np.nan, -np.inf], np.float32)
    np.testing.assert_array_equal(functional.elementwise_max([a, b], **options), [np.nan, np.nan, np.inf])
    dx, _ = functional.elementwise_max_backward(np.ones(3, np.float32), [a, b], **options)
    np.testing.assert_array_equal(dx, [0, 0, 1])


def test_maximum_in_place(machine, precision):
    *xs, dy = drawn(1029, 3, precision)
    a, b, slope = (machine.put_rounded(values, precision) for values in (*xs, dy))
    y = machine.activations(dy.shape, precision)
    ops.maximum(machine.stream, precision, a, b, y)
    ops.maximum_backward(machine.stream, precision, slope, a, y, slope)
    np.testing.assert_array_equal(to_float32(slope.download()), np.where(xs[0] >= xs[1], dy, 0))
    ops.maximum(machine.stream, precision, a, b, b)
    np.testing.assert_array_equal(to_float32(b.download()), np.maximum(*xs))


def test_no_values_are_no_work(machine, precision):
    nothing = machine.activations((0,), precision)
    ops.weighted_add(machine.stream, precision, nothing, 1.0, nothing, 1.0, nothing)
    ops.maximum(machine.stream, precision, nothing, nothing, nothing)
    ops.maximum_backward(machine.stream, precision, nothing, nothing, nothing, nothing)
    assert nothing.download().size == 0


ONE, TWO = np.ones(1, np.float32), np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: functional.weighted_sum([], []), r"weighted_sum: xs must be a list of one array or more, got \[\]"),
        (
            lambda: functional.weighted_sum(ONE, [1]),
            "weighted_sum: xs must be a list of one array or more, got ndarray",
        ),
        (lambda: functional.weighted_sum([ONE, TWO], [1, 1]), r"weighted_sum: xs\[1\] must have shape \(1,\)"),
        (
            lambda: functional.weighted_sum([ONE, ONE], [1]),
            r"coefficients must be a list of 2, one for each array, got \[1\]",
        ),
        (lambda: functional.weighted_sum([ONE], [np.inf]), r"coefficients\[0\] must be a finite number"),
        (lambda: functional.weighted_sum_backward(ONE, 1.0), "coefficients must be a list"),
        (lambda: functional.elementwise_max([ONE, [1.0]]), r"elementwise_max: xs\[1\] must be a float32 array"),
        (
            lambda: functional.elementwise_max_backward(TWO, [ONE]),
            r"elementwise_max_backward: dy must have shape \(1,\)",
        ),
    ],
)
def test_wrong_calls(call, text):
    with pytest.raises(ValueError, match=text):
        call()
