"""Convolutions and linear layers that add to what their output holds: sums of several inputs."""

from __future__ import annotations

import cases
import fused
import numpy as np
import pytest
import reference
from conftest import Machine

from convnet.kernels.control import control_words
from convnet.kernels.shapes import DropoutShape, LinearShape
from convnet.ops import ops
from convnet.ops.layout import pack_weight, to_float32

CONV = [*cases.CONV_EDGES, *cases.CONV_TENSOR]
LINEAR = [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR]


def old_values(case, shape, integers: bool):
    random = np.random.default_rng(case.N)
    if integers:
        return random.integers(-8, 9, shape).astype(np.float32)
    return random.standard_normal(shape, dtype=np.float32)


def conv(arithmetic, case, integers: bool, accumulate: bool, relu: bool):
    """y of a convolution whose output holds values, these, and what the sums are in float64."""
    machine, precision = Machine(arithmetic.device), arithmetic.precision
    x, weight, bias, dy = case.inputs(integers=integers)
    old, shape = old_values(case, dy.shape, integers), machine.padded(case.shape(N=case.N))
    y = machine.put_images(old, precision)
    w = fused.put_weight(machine, pack_weight(weight, case.groups), precision)
    operands = machine.put_images(x, precision), w, machine.put(bias), y
    ops.conv_forward(machine.stream, shape, precision, *operands, relu, accumulate)
    found = machine.images(y, case.N)
    machine.device.close()
    return found, old, reference.conv_forward(x, weight, bias, **case.geometry)


def linear(arithmetic, case, integers: bool, accumulate: bool, relu: bool):
    machine, precision = Machine(arithmetic.device), arithmetic.precision
    x, weight, bias, dy = case.inputs(integers=integers)
    old, shape = old_values(case, dy.shape, integers), machine.padded(LinearShape(case.N, case.C, case.K, 1))
    y = machine.put_images(old, precision)
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
    w = fused.put_weight(machine, weight.T.copy(), precision)
    operands = machine.put_images(x, precision), w, machine.put(bias), y
    ops.linear_forward(machine.stream, shape, precision, *operands, relu, None, None, workspace, accumulate)
    found = machine.images(y, case.N)
    machine.device.close()
    return found, old, reference.linear_forward(x, weight, bias)


PROBLEMS = [(conv, case) for case in CONV] + [(linear, case) for case in LINEAR]


@pytest.mark.parametrize(("layer", "case"), PROBLEMS, ids=lambda value: getattr(value, "id", None))
def test_exact_sums(arithmetic, layer, case):
    """Of integers; in bfloat16 they are rounded once, as they are stored."""
    found, old, sums = layer(arithmetic, case, integers=True, accumulate=True, relu=case.relu)
    expected = np.maximum(sums + old, 0) if case.relu else sums + old
    np.testing.assert_array_equal(found, reference.held(expected, arithmetic.precision))


@pytest.mark.parametrize(("layer", "case"), PROBLEMS[::3], ids=lambda value: getattr(value, "id", None))
def test_the_old_output_comes_behind_the_bias(arithmetic, layer, case):
    """To the bit: what is stored without it, plus what was there."""
    if arithmetic.precision == "bf16":
        pytest.skip("sums are not stored before they are rounded")
    if (arithmetic.precision, arithmetic.architecture, layer) == ("tf32", 90, conv) and case.N >= 64:
        pytest.skip("where nothing is added the kernels of Hopper sum up, in another order")
    plain, old, _ = layer(arithmetic, case, integers=False, accumulate=False, relu=False)
    found, *_ = layer(arithmetic, case, integers=False, accumulate=True, relu=False)
    np.testing.assert_array_equal(found, plain + old)
    found, *_ = layer(arithmetic, case, integers=False, accumulate=True, relu=True)
    np.testing.assert_array_equal(found, np.maximum(plain + old, 0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", [case for case in LINEAR if case.N in (1, 65)], ids=lambda case: case.id)
def test_dropout_follows(machine, precision, case, training):
    x, weight, bias, dy = case.inputs(integers=True)
    old, shape = old_values(case, dy.shape, True), machine.padded(LinearShape(case.N, case.C, case.K, 1))
    dropout = machine.padded(DropoutShape(case.N, case.K, 1, 0, case.K, 0.5, 3, 4))
    control = machine.put(control_words(5)) if training else None
    workspace = machine.workspace(machine.device.kernels.linear_workspace(shape, precision))
    w = fused.put_weight(machine, weight.T.copy(), precision)
    operands = machine.put_images(x, precision), w, machine.put(bias)
    y, expected = machine.put_images(old, precision), machine.put_images(old, precision)
    given = machine.stream, shape, precision, *operands
    ops.linear_forward(*given, y, True, dropout, control, workspace, True)
    ops.linear_forward(*given, expected, True, None, None, workspace, True)
    if control:
        mask = machine.empty(shape.y, np.uint8)
        ops.dropout_forward(machine.stream, dropout, precision, expected, expected, mask, control)
    else:
        ops.scale(machine.stream, precision, expected, 0.5, expected)
    np.testing.assert_array_equal(to_float32(y.download()), to_float32(expected.download()))


@pytest.mark.parametrize("layer", [conv, linear])
def test_kernels_of_hopper_do_not_add(layer):
    """They are not taken, and refuse where they are forced."""
    emu = Machine("emu").device.kernels
    case = next(case for case in (CONV if layer is conv else LINEAR) if case.N >= 64)
    op = f"{layer.__name__}_forward"
    names = [row["name"] for row in emu.variants() if row["op"] == op and row["name"].startswith("wgmma")]
    arithmetic = type("Arithmetic", (), {"device": "emu", "precision": "bf16"})
    assert names
    try:
        emu.force_variant(op, names[-1])
        with pytest.raises(ValueError, match=f"{op}: the forced variant {names[-1]} does not take this"):
            layer(arithmetic, case, integers=True, accumulate=True, relu=False)
    finally:
        emu.force_variant(op, "")
