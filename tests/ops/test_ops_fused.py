"""What products do on the way to memory, in every arithmetic: the bits of kernels of its own, zeros, infinities and NaN
included, and exact against float64 where sums are. (Every kernel of the tables: ``test_ops_variants.py``.)
"""

from __future__ import annotations

import cases
import fused
import numpy as np
import pytest
import reference
from conftest import Machine

from convnet.kernels.shapes import DropoutShape

# Every stride phase, pixels that no window reads, tiles at the rim of the image and of the groups, more than one block
# of images, and at 64 images each tile of the Hopper family.
CONV = [
    case
    for case in [*cases.CONV_EDGES, *cases.CONV_TENSOR]
    if case.id
    in {
        "primes-N5", "stride-larger-than-filter-N3", "asymmetric-padding-N3", "padding-beyond-filter-N2", "groups3-N3",
        "eights-ceil-overhang-N65", "channels-129-N2", "maps-64-N64", "channels-192-N64", "groups2-maps-32-N128",
    }
]  # fmt: skip
CONV.append(cases.ConvCase("channels-136-N64", 64, 136, 3, 4, 40, 3, 3, padding=1))
# Sums in one part and in several.
LINEAR = [
    case
    for case in [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR]
    if case.id in {"primes-N13", "uneven-parts-back-N9", "many-inputs-N66", "maps-65-63-N64", "batch-320-N320"}
]
LINEAR.append(cases.LinearCase("parts-back-N64", 64, 70, 520))
DROPOUT = [
    *(
        case
        for case in [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR]
        if case.id in {"primes-N13", "uneven-parts-N9", "batch-65-N65", "maps-15-17-N64"}
    ),
    cases.LinearCase("parts-N64", 64, 520, 40, relu=True),
]


@pytest.fixture
def machine(arithmetic):
    opened = Machine(arithmetic.device)
    yield opened
    opened.device.close()


def spoiled(values):
    """With zeros of both signs, infinities and NaN among them."""
    random = np.random.default_rng(values.size)
    strange = random.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32), values.shape)
    return np.where(random.random(values.shape) < 0.2, strange, values)


@pytest.mark.parametrize("case", CONV, ids=lambda case: case.id)
def test_masked_convolution(arithmetic, machine, case):
    x, weight, _, dy = case.inputs()
    dy[-1, -1, dy.shape[2] // 2, dy.shape[3] // 2] = np.nan
    dx, parts = fused.conv_backward_data(machine, arithmetic.precision, case, dy, weight, spoiled(x))
    fused.assert_same_bits(dx, parts)
    assert np.isnan(machine.images(dx, case.N)).any()  # a diverged network shows

    x, weight, _, dy = case.inputs(integers=True)
    dx, _ = fused.conv_backward_data(machine, arithmetic.precision, case, dy, weight, x)
    expected = np.where(x > 0, reference.conv_backward(dy, x, weight, **case.geometry)[0], 0)
    np.testing.assert_array_equal(machine.images(dx, case.N), reference.held(expected, arithmetic.precision))


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.id)
def test_masked_linear(arithmetic, machine, case):
    x, weight, _, dy = case.inputs()
    dy[-1, -1] = np.nan
    dx, parts = fused.linear_backward_data(machine, arithmetic.precision, case, dy, weight, spoiled(x))
    fused.assert_same_bits(dx, parts)
    assert np.isnan(machine.images(dx, case.N)).any()

    x, weight, _, dy = case.inputs(integers=True)
    dx, _ = fused.linear_backward_data(machine, arithmetic.precision, case, dy, weight, x)
    expected = np.where(x > 0, reference.linear_backward(dy, x, weight)[0], 0)
    np.testing.assert_array_equal(machine.images(dx, case.N), reference.held(expected, arithmetic.precision))


@pytest.mark.parametrize("case", DROPOUT, ids=lambda case: case.id)
def test_linear_with_dropout(arithmetic, machine, case):
    """As half of a layer whose other half another device has."""
    seed, step, layer, first, total = 0x0123456789ABCDEF, 70_000, 7, case.K + 3, 2 * case.K + 5
    x, weight, bias, _ = case.inputs()
    x[-1, -1] = np.nan
    for p in (0.3, 1.0):
        dropout = DropoutShape(case.N, case.K, 1, first, total, p, seed, layer)
        for at in (step, None):
            y, parts = fused.linear_forward(machine, arithmetic.precision, case, x, weight, bias, dropout, at)
            fused.assert_same_bits(y, parts)
            np.testing.assert_array_equal(np.isnan(machine.images(y, case.N)).any(1), np.arange(case.N) == case.N - 1)

    x, weight, bias, _ = case.inputs(integers=True)
    sums = reference.held(reference.linear_forward(x, weight, bias, case.relu), arithmetic.precision)
    dropout = DropoutShape(case.N, case.K, 1, first, total, 0.5, seed, layer)
    kept = reference.dropout_mask(case.N, total, 0.5, seed, step, layer)[:, first : first + case.K]
    for at, expected in ((step, sums * kept), (None, sums / 2)):
        y, _ = fused.linear_forward(machine, arithmetic.precision, case, x, weight, bias, dropout, at)
        np.testing.assert_array_equal(machine.images(y, case.N), expected)
