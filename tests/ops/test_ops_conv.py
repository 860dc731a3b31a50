"""Convolution on every device against float64: forward, both backward passes, and references that are wrong."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference
from cases import ConvCase

from convnet import functional
from convnet.ops import ops


def by_id(case):
    return case.id


def skip_where_too_slow(case, device):
    if not case.runs_on(device):
        pytest.skip(f"{case.work / 1e6:.0f} million multiply-adds are too many for the emulator")


def forward_ratio(case: ConvCase, y, x, weight, bias, expected=None) -> float:
    if expected is None:
        expected = reference.conv_forward(x, weight, bias, relu=case.relu, **case.geometry)
    magnitude = reference.conv_forward(abs(x), abs(weight), abs(bias), **case.geometry)
    if expected.shape != magnitude.shape:
        return np.inf
    return reference.ratio(y, expected, reference.sum_limit(magnitude, weight[0].size + 1))


def backward_ratios(case: ConvCase, gradients, dy, x, weight, expected=None) -> dict[str, float]:
    """By pass; the length of a sum is that of the largest: taps over strides for dx, all output pixels for dweight."""
    if expected is None:
        expected = reference.conv_backward(dy, x, weight, **case.geometry)
    magnitudes = reference.conv_backward(abs(dy), abs(x), abs(weight), **case.geometry)
    taps = -(-case.R // case.stride) * -(-case.S // case.stride)
    pixels = dy[:, 0].size
    terms = (case.K // case.groups * taps, pixels, pixels)
    return {
        name: reference.ratio(actual, right, reference.sum_limit(magnitude, count))
        for name, actual, right, magnitude, count in zip(
            ("dx", "dweight", "dbias"), gradients, expected, magnitudes, terms, strict=True
        )
    }


@pytest.mark.parametrize("case", cases.CONV, ids=by_id)
def test_forward(device, case, within):
    skip_where_too_slow(case, device)
    x, weight, bias, _ = case.inputs()
    y = functional.conv2d(x, weight, bias, relu=case.relu, device=device, **case.options)
    within("conv forward", forward_ratio(case, y, x, weight, bias))


@pytest.mark.parametrize("case", cases.CONV, ids=by_id)
def test_backward(device, case, within):
    skip_where_too_slow(case, device)
    x, weight, _, dy = case.inputs()
    gradients = functional.conv2d_backward(dy, x, weight, device=device, **case.options)
    for name, ratio in backward_ratios(case, gradients, dy, x, weight).items():
        within(f"conv {name}", ratio)


@pytest.mark.parametrize("case", [*cases.CONV_EDGES, *cases.CONV_TENSOR, *cases.CONV_SHRUNK], ids=by_id)
def test_integers_are_exact(arithmetic, case):
    """Small integers leave nothing to round, whatever the order: one missing or doubled term shows. In bfloat16 the
    exact sums are rounded once, when they are stored."""
    x, weight, bias, dy = case.inputs(integers=True)
    options = {"device": arithmetic.device, "precision": arithmetic.precision, **case.options}
    y = functional.conv2d(x, weight, bias, relu=case.relu, **options)
    expected = reference.conv_forward(x, weight, bias, relu=case.relu, **case.geometry)
    np.testing.assert_array_equal(y, reference.held(expected, arithmetic.precision))
    dx, dweight, dbias = functional.conv2d_backward(dy, x, weight, **options)
    expected = reference.conv_backward(dy, x, weight, **case.geometry)
    np.testing.assert_array_equal(dx, reference.held(expected[0], arithmetic.precision))
    np.testing.assert_array_equal(dweight, expected[1])
    np.testing.assert_array_equal(dbias, expected[2])


REPEATED = [case for case in cases.CONV_EDGES if case.N in (5, 65)] + cases.CONV_SHRUNK[2:3]


@pytest.mark.parametrize("case", REPEATED, ids=by_id)
def test_same_call_gives_the_same_bits(device, case):
    x, weight, bias, dy = case.inputs()
    first = functional.conv2d(x, weight, bias, device=device, **case.options)
    np.testing.assert_array_equal(functional.conv2d(x, weight, bias, device=device, **case.options), first)
    once = functional.conv2d_backward(dy, x, weight, device=device, **case.options)
    again = functional.conv2d_backward(dy, x, weight, device=device, **case.options)
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_padded_lanes_do_not_leak(device):
    """65 images (two blocks on a GPU, the second with 63 empty lanes) equal 64 images and one more."""
    case = next(case for case in cases.CONV_EDGES if case.id == "batch-65-N65")
    x, weight, bias, dy = case.inputs(integers=True)
    y = functional.conv2d(x, weight, bias, device=device, **case.options)
    dx, dweight, dbias = functional.conv2d_backward(dy, x, weight, device=device, **case.options)
    parts = [slice(0, 64), slice(64, 65)]
    ys = [functional.conv2d(x[part], weight, bias, device=device, **case.options) for part in parts]
    np.testing.assert_array_equal(y, np.concatenate(ys))
    split = [functional.conv2d_backward(dy[part], x[part], weight, device=device, **case.options) for part in parts]
    np.testing.assert_array_equal(dx, np.concatenate([gradients[0] for gradients in split]))
    np.testing.assert_array_equal(dweight, split[0][1] + split[1][1])
    np.testing.assert_array_equal(dbias, split[0][2] + split[1][2])


def test_images_are_independent(device):
    """Other images in the batch change no bit of the output of one, and their order is no matter."""
    case = next(case for case in cases.CONV_EDGES if case.id == "primes-N5")
    x, weight, bias, dy = case.inputs()
    order = np.array([3, 0, 4, 1, 2])
    if device == "cpu":  # BLAS may round otherwise in another column
        x, weight, bias, dy = case.inputs(integers=True)
    y = functional.conv2d(x, weight, bias, device=device, **case.options)
    shuffled = functional.conv2d(x[order], weight, bias, device=device, **case.options)
    np.testing.assert_array_equal(shuffled, y[order])
    dx = functional.conv2d_backward(dy, x, weight, device=device, **case.options)[0]
    spoiled = dy.copy()
    spoiled[1:] = np.nan
    alone = functional.conv2d_backward(spoiled, x, weight, device=device, **case.options)[0]
    np.testing.assert_array_equal(alone[0], dx[0])


def test_one_tower_gives_the_bits_of_both(machine, device):
    """A tower alone on a device (groups 1) must give the bits it gives beside another one (groups 2)."""
    case = next(case for case in cases.CONV_EDGES if case.id == "groups2-stride2-N6")
    x, weight, bias, dy = case.inputs()
    whole = functional.conv2d(x, weight, bias, device=device, **case.options)
    dx, dweight, dbias = functional.conv2d_backward(dy, x, weight, device=device, **case.options)
    alone = {**case.options, "groups": 1}
    for tower in range(2):
        C, K = slice(tower * 5, tower * 5 + 5), slice(tower * 7, tower * 7 + 7)
        y = functional.conv2d(x[:, C], weight[K], bias[K], device=device, **alone)
        np.testing.assert_array_equal(y, whole[:, K])
        gradients = functional.conv2d_backward(dy[:, K], x[:, C], weight[K], device=device, **alone)
        for actual, expected in zip(gradients, (dx[:, C], dweight[K], dbias[K]), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_bias_and_its_gradient_may_be_left_out(machine):
    case = next(case for case in cases.CONV_EDGES if case.id == "groups3-N3")
    x, weight, _, dy = case.inputs(integers=True)
    shape = machine.padded(case.shape(N=case.N))
    packed = ops_weight(weight, case.groups)
    y, dw = machine.empty(shape.y), machine.empty(shape.weight)
    ops.conv_forward(machine.stream, shape, "fp32", machine.put_images(x), machine.put(packed), None, y)
    expected = reference.conv_forward(x, weight, None, **case.geometry)
    np.testing.assert_array_equal(machine.images(y, case.N), expected)
    workspace = machine.workspace(machine.device.kernels.conv_backward_filter_workspace(shape, "fp32"))
    ops.conv_backward_filter(
        machine.stream, shape, "fp32", machine.put_images(dy), machine.put_images(x), dw, None, workspace
    )
    expected = reference.conv_backward(dy, x, weight, **case.geometry)[1]
    np.testing.assert_array_equal(dw.download(), ops_weight(expected, case.groups))


def ops_weight(weight, groups):
    """(K, C/groups, R, S) as [groups][C/groups][R][S][K/groups]."""
    return np.stack([np.moveaxis(part, 0, -1) for part in np.split(weight, groups)])


# Mistakes that a kernel could make, as wrong references: name -> (does it change this case?, wrong y).


def _geometry(case, **changes):
    return {**case.geometry, **changes}


def _shapes_other(case):
    flipped = cases.replace(case, ceil_mode=not case.ceil_mode)
    try:
        return {key: flipped.geometry[key] for key in "PQ"}
    except ValueError:
        return {key: case.geometry[key] for key in "PQ"}


def _first_tap_removed(case, weight):
    """Without the tap that meets the first pixel in the first window."""
    wrong = weight.copy()
    wrong[:, :, case.geometry["top"], case.geometry["left"]] = 0
    return wrong


def _several_windows(case):
    return case.geometry["P"] * case.geometry["Q"] > 1


MUTANTS = {
    "window one row off": (lambda c: True, lambda c, x, w: (x, w, _geometry(c, top=c.geometry["top"] + 1))),
    "window one column off": (lambda c: True, lambda c, x, w: (x, w, _geometry(c, left=c.geometry["left"] + 1))),
    "stride one more": (_several_windows, lambda c, x, w: (x, w, _geometry(c, stride=c.stride + 1))),
    "ceil for floor": (
        lambda c: _shapes_other(c) != {key: c.geometry[key] for key in "PQ"},
        lambda c, x, w: (x, w, _geometry(c, **_shapes_other(c))),
    ),
    "filter turned round": (
        lambda c: c.R * c.S > 1 and c.H * c.W > 1,
        lambda c, x, w: (x, w[:, :, ::-1, ::-1], c.geometry),
    ),
    "filter transposed": (
        lambda c: c.R == c.S > 1 and c.H * c.W > 1,
        lambda c, x, w: (x, w.swapaxes(2, 3), c.geometry),
    ),
    "groups swapped": (
        lambda c: c.groups > 1,
        lambda c, x, w: (np.roll(x, c.C // c.groups, axis=1), w, c.geometry),
    ),
    "tap missing": (
        lambda c: c.geometry["top"] < c.R and c.geometry["left"] < c.S,
        lambda c, x, w: (x, _first_tap_removed(c, w), c.geometry),
    ),
    "last channel missing": (
        lambda c: True,
        lambda c, x, w: (x * (np.arange(c.C) < c.C - 1)[:, None, None], w, c.geometry),
    ),
    "last image as the first": (
        lambda c: c.N > 1,
        lambda c, x, w: (np.concatenate([x[:-1], x[:1]]), w, c.geometry),
    ),
}
SENSITIVE = [*cases.CONV_EDGES, *cases.CONV_SHRUNK]


@pytest.mark.parametrize("case", SENSITIVE, ids=by_id)
def test_wrong_references_fail(case):
    """The comparison notices every mistake: the right result is far outside the limits around a wrong reference."""
    x, weight, bias, dy = case.inputs()
    y = functional.conv2d(x, weight, bias, relu=case.relu, **case.options)
    gradients = functional.conv2d_backward(dy, x, weight, **case.options)
    done = 0
    for name, (applies, mutate) in MUTANTS.items():
        if not applies(case):
            continue
        wrong_x, wrong_weight, geometry = mutate(case, x, weight)
        wrong = reference.conv_forward(wrong_x, wrong_weight, bias, relu=case.relu, **geometry)
        assert forward_ratio(case, y, x, weight, bias, wrong) > 1, f"forward does not notice: {name}"
        if (geometry["P"], geometry["Q"]) == dy.shape[2:]:
            wrong = reference.conv_backward(dy, wrong_x, wrong_weight, **geometry)
            ratios = backward_ratios(case, gradients, dy, x, weight, wrong)
            assert max(ratios["dx"], ratios["dweight"]) > 1, f"backward does not notice: {name}"
        done += 1
    assert done >= 3
    no_bias = reference.conv_forward(x, weight, None, relu=case.relu, **case.geometry)
    assert forward_ratio(case, y, x, weight, bias, no_bias) > 1
    if case.relu:
        no_relu = reference.conv_forward(x, weight, bias, **case.geometry)
        assert forward_ratio(case, y, x, weight, bias, no_relu) > 1
    short = dy.copy()
    short[-1, :, -1, -1] = 0
    wrong = reference.conv_backward(short, x, weight, **case.geometry)
    assert backward_ratios(case, gradients, dy, x, weight, wrong)["dbias"] > 1
