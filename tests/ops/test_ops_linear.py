"""Fully-connected layers on every device against float64: all three products, and references that are wrong."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.shapes import LinearShape
from convnet.ops import ops


def forward_ratio(case, y, x, weight, bias, expected=None) -> float:
    if expected is None:
        expected = reference.linear_forward(x, weight, bias, case.relu)
    magnitude = reference.linear_forward(abs(x), abs(weight), abs(bias))
    return reference.ratio(y, expected, reference.sum_limit(magnitude, case.C + 1))


def backward_ratios(case, gradients, dy, x, weight, expected=None) -> dict[str, float]:
    if expected is None:
        expected = reference.linear_backward(dy, x, weight)
    magnitudes = reference.linear_backward(abs(dy), abs(x), abs(weight))
    terms = (case.K, case.N, case.N)
    return {
        name: reference.ratio(actual, right, reference.sum_limit(magnitude, count))
        for name, actual, right, magnitude, count in zip(
            ("dx", "dweight", "dbias"), gradients, expected, magnitudes, terms, strict=True
        )
    }


@pytest.mark.parametrize("case", cases.LINEAR, ids=lambda case: case.id)
def test_forward_and_backward(device, case, within):
    if not case.runs_on(device):
        pytest.skip(f"{case.work / 1e6:.0f} million multiply-adds are too many for the emulator")
    x, weight, bias, dy = case.inputs()
    y = functional.linear(x, weight, bias, relu=case.relu, device=device)
    within("linear forward", forward_ratio(case, y, x, weight, bias))
    gradients = functional.linear_backward(dy, x, weight, device=device)
    for name, ratio in backward_ratios(case, gradients, dy, x, weight).items():
        within(f"linear {name}", ratio)


@pytest.mark.parametrize(
    "case", [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR, *cases.LINEAR_TINY], ids=lambda case: case.id
)
def test_integers_are_exact(arithmetic, case):
    """In bfloat16 the exact sums are rounded once, when they are stored."""
    x, weight, bias, dy = case.inputs(integers=True)
    options = {"device": arithmetic.device, "precision": arithmetic.precision}
    y = functional.linear(x, weight, bias, relu=case.relu, **options)
    np.testing.assert_array_equal(
        y, reference.held(reference.linear_forward(x, weight, bias, case.relu), arithmetic.precision)
    )
    dx, dweight, dbias = functional.linear_backward(dy, x, weight, **options)
    expected = reference.linear_backward(dy, x, weight)
    np.testing.assert_array_equal(dx, reference.held(expected[0], arithmetic.precision))
    np.testing.assert_array_equal(dweight, expected[1])
    np.testing.assert_array_equal(dbias, expected[2])


def _case(id: str) -> cases.LinearCase:
    return next(case for case in cases.LINEAR if case.id == id)


@pytest.mark.parametrize("id", ["primes-N13", "batch-65-N65", "long-sum-N2", "fc6-shrunk-N16"])
def test_same_call_gives_the_same_bits(device, id):
    x, weight, bias, dy = _case(id).inputs()
    first = functional.linear(x, weight, bias, device=device)
    np.testing.assert_array_equal(functional.linear(x, weight, bias, device=device), first)
    once = functional.linear_backward(dy, x, weight, device=device)
    again = functional.linear_backward(dy, x, weight, device=device)
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_padded_lanes_do_not_leak(device):
    x, weight, bias, dy = _case("batch-65-N65").inputs(integers=True)
    parts = [slice(0, 64), slice(64, 65)]
    ys = [functional.linear(x[part], weight, bias, device=device) for part in parts]
    np.testing.assert_array_equal(functional.linear(x, weight, bias, device=device), np.concatenate(ys))
    whole = functional.linear_backward(dy, x, weight, device=device)
    split = [functional.linear_backward(dy[part], x[part], weight, device=device) for part in parts]
    np.testing.assert_array_equal(whole[0], np.concatenate([gradients[0] for gradients in split]))
    np.testing.assert_array_equal(whole[1], split[0][1] + split[1][1])
    np.testing.assert_array_equal(whole[2], split[0][2] + split[1][2])


def test_half_of_the_outputs_gives_the_bits_of_all(device):
    """A tower owns half of the outputs; alone it must give the bits that the whole layer gives."""
    case = _case("fc6-shrunk-N16")
    x, weight, bias, _ = case.inputs()
    whole = functional.linear(x, weight, bias, device=device)
    half = functional.linear(x, weight[: case.K // 2], bias[: case.K // 2], device=device)
    if device == "cpu":  # BLAS chooses its order by the size of the matrix
        assert reference.ratio(half, whole[:, : case.K // 2].astype(np.float64), abs(whole).max() * 1e-5) <= 1
    else:
        np.testing.assert_array_equal(half, whole[:, : case.K // 2])


def test_bias_and_its_gradient_may_be_left_out(machine):
    case = _case("primes-N13")
    x, weight, _, dy = case.inputs(integers=True)
    shape = machine.padded(LinearShape(case.N, case.C, case.K, 1))
    y, dw = machine.empty(shape.y), machine.empty(shape.weight)
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, "fp32"))
    put = machine.put_images
    ops.linear_forward(
        machine.stream, shape, "fp32", put(x), machine.put(weight.T), None, y, False, None, None, workspace
    )
    np.testing.assert_array_equal(machine.images(y, case.N), reference.linear_forward(x, weight))
    ops.linear_backward_filter(machine.stream, shape, "fp32", put(dy), put(x), dw, None, workspace)
    np.testing.assert_array_equal(dw.download().T, reference.linear_backward(dy, x, weight)[1])


@pytest.mark.parametrize("case", [*cases.LINEAR_EDGES, *cases.LINEAR_SHRUNK], ids=lambda case: case.id)
def test_wrong_references_fail(case):
    x, weight, bias, dy = case.inputs()
    y = functional.linear(x, weight, bias, relu=case.relu)
    gradients = functional.linear_backward(dy, x, weight)

    def noticed(wrong_x, wrong_weight, wrong_bias, relu):
        wrong = reference.linear_forward(wrong_x, wrong_weight, wrong_bias, relu)
        return forward_ratio(case, y, x, weight, bias, wrong) > 1

    last_input = np.arange(case.C) == case.C - 1
    assert not noticed(x, weight, bias, case.relu)
    assert noticed(x, weight, None, case.relu)
    assert noticed(x * ~last_input, weight, bias, case.relu)
    if case.C > 1:
        assert noticed(x[:, ::-1], weight, bias, case.relu)
    if case.K > 1:
        assert noticed(x, np.roll(weight, 1, axis=0), bias, case.relu)
    if case.N > 1:
        assert noticed(np.roll(x, 1, axis=0), weight, bias, case.relu)
    if case.C == case.K > 1:
        assert noticed(x, weight.T, bias, case.relu)
    if case.relu:
        assert noticed(x, weight, bias, False)

    wrongs = {
        "dx": reference.linear_backward(dy * (np.arange(case.K) < case.K - 1), x, weight),
        "dweight": reference.linear_backward(dy, np.where(np.arange(case.N)[:, None] == case.N - 1, 0, x), weight),
        "dbias": reference.linear_backward(np.where(np.arange(case.N)[:, None] == case.N - 1, 0, dy), x, weight),
    }
    for name, wrong in wrongs.items():
        assert backward_ratios(case, gradients, dy, x, weight, wrong)[name] > 1, name
