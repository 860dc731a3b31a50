"""The references themselves: gradients against finite differences, values against cases worked out by hand."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

CONV = [
    cases.ConvCase("plain", 2, 3, 5, 4, 4, 3, 2),
    cases.ConvCase("strided-padded", 2, 4, 6, 5, 6, 3, 3, stride=2, padding=(1, 2, 0, 1), groups=2),
    cases.ConvCase("overhang", 1, 2, 6, 7, 3, 2, 3, stride=3, ceil_mode=True),
]


def finite_differences(function, x, dy, step=1e-6):
    """The gradient of sum(function(x) * dy), one element of x at a time."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = (function(x) * dy).sum()
        x[index] = kept - step
        gradient[index] = (above - (function(x) * dy).sum()) / (2 * step)
        x[index] = kept
    return gradient


def check(actual, function, x, dy):
    np.testing.assert_allclose(actual, finite_differences(function, x, dy), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CONV, ids=lambda case: case.id)
def test_conv_gradients(case):
    x, weight, bias, dy = (values.astype(np.float64) for values in case.inputs())
    dx, dweight, dbias = reference.conv_backward(dy, x, weight, **case.geometry)
    check(dx, lambda x: reference.conv_forward(x, weight, bias, **case.geometry), x, dy)
    check(dweight, lambda w: reference.conv_forward(x, w, bias, **case.geometry), weight, dy)
    check(dbias, lambda b: reference.conv_forward(x, weight, b, **case.geometry), bias, dy)


LOCAL = [
    cases.LocalCase("plain", 2, 3, 5, 4, 4, 3, 2),
    cases.LocalCase("strided-padded", 2, 4, 6, 5, 6, 3, 3, stride=2, padding=(1, 2, 0, 1), groups=2),
    cases.LocalCase("overhang", 1, 2, 6, 7, 3, 2, 3, stride=3),
]


@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case.id)
def test_local_gradients(case):
    x, weight, bias, dy = (values.astype(np.float64) for values in case.inputs())
    dx, dweight, dbias = reference.local_backward(dy, x, weight, **case.geometry)
    check(dx, lambda x: reference.local_forward(x, weight, bias, **case.geometry), x, dy)
    check(dweight, lambda w: reference.local_forward(x, w, bias, **case.geometry), weight, dy)
    check(dbias, lambda b: reference.local_forward(x, weight, b, **case.geometry), bias, dy)


def test_local_by_hand():
    """Every pixel has a factor of its own for the pixel below its own; below the last row there is nothing."""
    x = np.arange(1.0, 7).reshape(1, 1, 2, 3)
    weight = np.zeros((2, 3, 1, 1, 2, 1))
    weight[:, :, 0, 0, 1, 0] = [[1, 10, 100], [7, 7, 7]]
    bias = np.array([[[0, 0, 0.5], [0, 2, 0]]])
    y = reference.local_forward(x, weight, bias, stride=1, top=0, left=0, P=2, Q=3)
    np.testing.assert_array_equal(y[0, 0], [[4, 50, 600.5], [0, 2, 0]])


def test_conv_by_hand():
    """A filter of one 1 moves the image; the overhang of a rounded-up size reads zeros; groups see their channels."""
    x = np.arange(1.0, 13).reshape(1, 1, 3, 4)
    weight = np.zeros((1, 1, 2, 2))
    weight[0, 0, 1, 0] = 1  # the pixel below
    y = reference.conv_forward(x, weight, stride=1, top=0, left=0, P=3, Q=4)
    np.testing.assert_array_equal(y[0, 0], [[5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 0]])
    y = reference.conv_forward(x, weight, stride=2, top=1, left=1, P=2, Q=2)
    np.testing.assert_array_equal(y[0, 0], [[0, 2], [0, 10]])
    two = np.concatenate([x, 10 * x], axis=1)
    ones = np.ones((2, 1, 1, 1))
    y = reference.conv_forward(two, ones, stride=1, top=0, left=0, P=3, Q=4, groups=2)
    np.testing.assert_array_equal(y, two)


def test_linear_gradients():
    x, weight, bias, dy = (values.astype(np.float64) for values in cases.LinearCase("fd", 3, 5, 4).inputs())
    dx, dweight, dbias = reference.linear_backward(dy, x, weight)
    check(dx, lambda x: reference.linear_forward(x, weight, bias), x, dy)
    check(dweight, lambda w: reference.linear_forward(x, w, bias), weight, dy)
    check(dbias, lambda b: reference.linear_forward(x, weight, b), bias, dy)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_lrn_gradient(size, groups):
    case = cases.LrnCase("fd", 2, 6, 2, 2, spread=3.0)
    x, dy = (values.astype(np.float64) for values in case.inputs())
    constants = {"size": size, "alpha": 0.2, "beta": 0.75, "k": 1.5, "groups": groups}
    dx, magnitude = reference.lrn_backward(dy, x, **constants)
    check(dx, lambda x: reference.lrn_forward(x, **constants), x, dy)
    assert (magnitude >= np.abs(dx) - 1e-12).all()


def test_lrn_windows_by_hand():
    assert [list(reference.lrn_window(c, 5, 3)) for c in range(5)] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]]
    assert [list(reference.lrn_window(c, 4, 4)) for c in range(4)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3]]
    assert [list(reference.lrn_window(c, 4, 3, 2)) for c in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_square_normalisation_gradients(size):
    """That of cnorm is the gradient where the means are constants."""
    case = cases.SpatialCase("fd", 2, 2, 4, 6, size, alpha=0.2)
    x, dy = (values.astype(np.float64) for values in case.inputs())
    for means in (0.0, reference.square_means(x, size)):
        dx, magnitude = reference.spatial_backward(dy, x, x - means, **case.constants)
        check(dx, lambda x: reference.spatial_forward(x, x - means, **case.constants), x, dy)  # noqa: B023
        assert (magnitude >= np.abs(dx) - 1e-12).all()


def test_square_windows_by_hand():
    x = np.arange(1.0, 13).reshape(1, 1, 3, 4)
    np.testing.assert_array_equal(
        reference.square_sums(x, 3)[0, 0], [[14, 24, 30, 22], [33, 54, 63, 45], [30, 48, 54, 38]]
    )
    np.testing.assert_array_equal(reference.square_sums(x, 2)[0, 0], [[1, 3, 5, 7], [6, 14, 18, 22], [14, 30, 34, 38]])
    assert reference.square_means(x, 3)[0, 0, 0, 0] == 14 / 4


@pytest.mark.parametrize("case", [case for case in cases.POOL if case.N <= 3 and case.H < 10], ids=lambda case: case.id)
def test_average_gradient(case):
    x, dy = (values.astype(np.float64) for values in case.inputs())
    place = {key: case.geometry[key] for key in ("size", "stride", "top", "left")}
    dx = reference.avg_pool_backward(dy, case.H, case.W, **place)
    check(dx, lambda x: reference.avg_pool_forward(x, **case.geometry), x, dy)


def test_blur_by_hand():
    taps = reference.blur_taps(3, 1.0)
    np.testing.assert_allclose(taps[1] / taps[1, 1], [np.exp(-0.5), 1, np.exp(-0.5)])
    x = np.zeros((1, 1, 3, 4))
    x[0, 0, 0, 1] = 1
    np.testing.assert_allclose(reference.blur(x, 3, 1.0)[0, 0], [[*taps[1], 0], [*taps[2], 0], [0, 0, 0, 0]])
    assert [reference.nailbed_pixels(side, 4) for side in (3, 4, 5, 8, 11)] == [[1], [2], [0, 4], [2, 6], [1, 5, 9]]


@pytest.mark.parametrize("case", [case for case in cases.POOL if case.N <= 3 and case.H < 13], ids=lambda case: case.id)
def test_pool_gradient(case):
    """Away from ties: every value differs from every other by more than the step."""
    random = case.random
    x = random.permutation(case.N * case.C * case.H * case.W).reshape(case.N, case.C, case.H, case.W) * 0.01
    geometry = case.geometry
    y, argmax = reference.pool_forward(x, **geometry)
    dy = random.standard_normal(y.shape)
    place = {key: geometry[key] for key in ("size", "stride", "top", "left")}
    dx = reference.pool_backward(dy, argmax, case.H, case.W, **place)
    n, c, h, w = np.nonzero(np.ones(x.shape))
    for i in random.choice(len(n), min(20, len(n)), replace=False):
        at = (n[i], c[i], h[i], w[i])
        kept, step = x[at], 1e-4
        x[at] = kept + step
        above = (reference.pool_forward(x, **geometry)[0] * dy).sum()
        x[at] = kept - step
        below = (reference.pool_forward(x, **geometry)[0] * dy).sum()
        x[at] = kept
        np.testing.assert_allclose(dx[at], (above - below) / (2 * step), rtol=1e-6, atol=1e-7)


def test_pool_ties():
    x = np.array([[[[7, 7], [7, 7]]]], np.float64)
    geometry = {"size": 2, "stride": 1, "top": 0, "left": 0, "P": 1, "Q": 1}
    assert reference.pool_forward(x, **geometry)[1].item() == 0
    assert reference.pool_forward(x, **geometry, last=True)[1].item() == 3


def test_softmax_gradient_and_ranks():
    logits, labels = cases.SoftmaxCase("fd", 4, 6).inputs()
    logits = logits.astype(np.float64)
    rows = np.arange(4)

    def losses(logits):
        return -reference.softmax(logits)[1][rows, labels]

    right = (reference.softmax(logits)[0] - (labels[:, None] == np.arange(6))) / 4
    check(right, losses, logits, np.full(4, 0.25))
    assert [reference.rank([2.0, 5.0, 2.0, 7.0], label) for label in range(4)] == [2, 1, 3, 0]


def test_ratio_is_strict():
    ones = np.ones(3)
    assert reference.ratio(ones, ones, 0.0) == 0
    assert reference.ratio(ones, ones + 1e-9, 0.0) == np.inf
    assert reference.ratio(ones, ones + 1.0, 0.5) == 2
    assert reference.ratio(np.array([1.0, np.nan, 1.0]), ones, 1.0) == np.inf
    assert reference.ratio(np.array([1.0, np.inf, 1.0]), ones, 1.0) == np.inf
    assert reference.ratio(np.ones(2), ones, 1.0) == np.inf


def test_random_and_integer_inputs_are_what_they_say():
    case = cases.CONV_EDGES[1]
    assert all((a == b).all() for a, b in zip(case.inputs(), case.inputs(), strict=True))
    for values in case.inputs(integers=True)[:2]:
        assert set(np.unique(values)) == {-3, -2, -1, 1, 2, 3}
    for family in (cases.CONV, cases.LINEAR, cases.POOL, cases.LRN, cases.SOFTMAX):
        assert len({case.id for case in family}) == len(family)
