"""Local response normalisation on every device against float64, and references that are wrong."""

from __future__ import annotations

from dataclasses import replace

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.kernels.shapes import LrnShape
from convnet.ops import ops


def power_limit(d, beta: float, size: int):
    """Relative rounding of d^-beta, in units of 2^-24.

    d sums ``size`` squares in any order: size + 3 roundings, multiplied by beta. The power: two for its result, plus
    one rounding of log2(d) * beta where it goes through logarithms, which is as large as that number is.
    """
    return beta * (size + 3) + 2 + 2 * beta * np.abs(np.log2(d))


def forward_ratio(case, y, x, expected=None, precision="fp32") -> float:
    right = reference.lrn_forward(x, **case.constants)
    d = reference.lrn_denominator(x, case.size, case.alpha, case.k)
    limit = reference.UNIT * (2 + power_limit(d, case.beta, min(case.size, case.C))) * np.abs(right)
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(y, right if expected is None else expected, limit)


def backward_ratio(case, dx, dy, x, expected=None, precision="fp32") -> float:
    right, magnitude = reference.lrn_backward(dy, x, **case.constants)
    d = reference.lrn_denominator(x, case.size, case.alpha, case.k)
    terms = min(case.size, case.C)
    # every term of the sum has a power of its own; the largest neighbour's decides
    limit = reference.UNIT * (8 + terms + power_limit(d, case.beta + 1, terms).max()) * magnitude
    limit = reference.held_limit(limit, right, precision)
    return reference.ratio(dx, right if expected is None else expected, limit)


@pytest.mark.parametrize("case", cases.LRN, ids=lambda case: case.id)
def test_forward_and_backward(device, precision, case, within):
    x, dy = (reference.held(values, precision) for values in case.inputs())
    options = {**case.constants, "device": device, "precision": precision}
    y = functional.local_response_norm(x, **options)
    within("lrn forward", forward_ratio(case, y, x, precision=precision))
    dx = functional.local_response_norm_backward(dy, x, **options)
    within("lrn dx", backward_ratio(case, dx, dy, x, precision=precision))
    np.testing.assert_array_equal(functional.local_response_norm(x, **options), y)
    np.testing.assert_array_equal(functional.local_response_norm_backward(dy, x, **options), dx)


def test_bf16_is_rounded_once():
    """A d^-beta that is rounded as well, or terms of the sum that are, would show."""
    case = cases.LrnCase("rounded", 3, 24, 5, 4)
    x, dy = (reference.held(values, "bf16") for values in case.inputs())
    d = reference.lrn_denominator(x, case.size, case.alpha, case.k)
    y, dx = reference.lrn_forward(x, **case.constants), reference.lrn_backward(dy, x, **case.constants)[0]
    twice = reference.bf16(x * reference.bf16(d**-case.beta))
    assert forward_ratio(case, reference.bf16(y), x, precision="bf16") <= 1
    assert forward_ratio(case, twice, x, precision="bf16") > 1
    terms = reference.bf16(dy * x * d ** (-case.beta - 1))
    sums = np.zeros(terms.shape)
    for f in range(case.C):
        for i in reference.lrn_window(f, case.C, case.size):
            sums[:, i] += terms[:, f]
    twice = reference.bf16(dy * d**-case.beta - 2 * case.alpha * case.beta * x * sums)
    assert backward_ratio(case, reference.bf16(dx), dy, x, precision="bf16") <= 1
    assert backward_ratio(case, twice, dy, x, precision="bf16") > 1


def test_zero_images_stay_zero(device, precision):
    """Padding lanes hold zeros: 0 * k^-beta, not NaN; also where a whole neighbourhood is 0."""
    zeros, options = np.zeros((3, 7, 2, 2), np.float32), {"device": device, "precision": precision}
    np.testing.assert_array_equal(functional.local_response_norm(zeros, **options), zeros)
    np.testing.assert_array_equal(functional.local_response_norm_backward(zeros, zeros, **options), zeros)


def test_padded_lanes_do_not_leak(device):
    case = next(case for case in cases.LRN if case.id == "batch-65-N65")
    x, dy = case.inputs()
    y = functional.local_response_norm(x, device=device)
    dx = functional.local_response_norm_backward(dy, x, device=device)
    for part in (slice(0, 64), slice(64, 65)):
        np.testing.assert_array_equal(functional.local_response_norm(x[part], device=device), y[part])
        alone = functional.local_response_norm_backward(dy[part], x[part], device=device)
        np.testing.assert_array_equal(alone, dx[part])


def test_windows_stay_inside_a_tower(machine):
    """Two groups of channels give the bits of each group alone."""
    case = cases.LrnCase("groups", 3, 14, 3, 2)
    x, dy = case.inputs()
    shape = machine.padded(LrnShape(3, 14, 3, 2, 2, 1, **case.constants))
    y, dx = machine.empty(shape.x), machine.empty(shape.x)
    ops.lrn_forward(machine.stream, shape, "fp32", machine.put_images(x), y)
    ops.lrn_backward(machine.stream, shape, "fp32", machine.put_images(dy), machine.put_images(x), dx)
    whole_y, whole_dx = machine.images(y, 3), machine.images(dx, 3)
    for tower in (slice(0, 7), slice(7, 14)):
        part_x, part_dy = np.ascontiguousarray(x[:, tower]), np.ascontiguousarray(dy[:, tower])
        name = machine.device.name
        np.testing.assert_array_equal(functional.local_response_norm(part_x, device=name), whole_y[:, tower])
        part = functional.local_response_norm_backward(part_dy, part_x, device=name)
        np.testing.assert_array_equal(part, whole_dx[:, tower])
    mixed = replace(case, N=3)
    assert forward_ratio(mixed, whole_y, x) > 1, "the comparison does not notice a window across towers"


@pytest.mark.parametrize("case", cases.LRN, ids=lambda case: case.id)
def test_wrong_references_fail(case):
    x, dy = case.inputs()
    y = functional.local_response_norm(x, **case.constants)
    dx = functional.local_response_norm_backward(dy, x, **case.constants)
    right = case.constants
    wrong = {"beta": {"beta": case.beta * 1.01}, "k": {"k": case.k + 0.01}}
    if case.alpha > 0:
        wrong["alpha dropped"] = {"alpha": 0.0}
        if case.size > 1:
            wrong["alpha divided by size"] = {"alpha": case.alpha / case.size}
    if case.alpha > 0 and case.C > 1 and case.size < 2 * case.C - 1:
        wrong["window one more"] = {"size": case.size + 1}
        if case.size > 1:
            wrong["window one less"] = {"size": case.size - 1}
    for name, constants in wrong.items():
        expected = reference.lrn_forward(x, **{**right, **constants})
        assert forward_ratio(case, y, x, expected) > 1, f"forward does not notice: {name}"
        expected = reference.lrn_backward(dy, x, **{**right, **constants})[0]
        assert backward_ratio(case, dx, dy, x, expected) > 1, f"backward does not notice: {name}"
    if case.alpha > 0 and case.size % 2 == 0 and case.size // 2 < case.C:
        mirrored = reference.lrn_forward(x[:, ::-1], **right)[:, ::-1]
        assert forward_ratio(case, y, x, mirrored) > 1, "forward does not notice a mirrored window"
        mirrored = reference.lrn_backward(dy[:, ::-1], x[:, ::-1], **right)[0][:, ::-1]
        assert backward_ratio(case, dx, dy, x, mirrored) > 1, "backward does not notice a mirrored window"
    if case.alpha > 0:
        direct = dy * reference.lrn_denominator(x, case.size, case.alpha, case.k) ** -case.beta
        assert backward_ratio(case, dx, dy, x, direct) > 1, "backward does not notice that the sum is missing"
