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
