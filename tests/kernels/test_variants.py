"""Tiles of one family of products give the same bits, whichever a table or a user chooses."""

from __future__ import annotations

from contextlib import closing

import cases
import numpy as np
import pytest

from convnet import functional
from convnet.devices.opening import open_device
from convnet.devices.protocol import padded
from convnet.kernels.shapes import LinearShape

CASES = [
    case
    for case in [*cases.CONV_EDGES, *cases.CONV_TENSOR, *cases.LINEAR_EDGES]
    if case.id
    in {
        "groups2-stride2-N6", "channels-129-N2", "filters-129-N2", "maps-40-56-N8", "maps-136-N1",
        "channels-16-filters-16-N3", "maps-64-N64", "primes-N13", "outputs-129-N9", "uneven-parts-N9", "batch-65-N65",
    }
]  # fmt: skip


@pytest.fixture(params=["emu", "cuda"])
def device(request):
    """Devices with several kernels per op."""
    request.node.user_properties.append(("device", request.param))
    with closing(open_device(request.param)) as opened:
        yield opened
        for row in opened.kernels.variants():
            opened.kernels.force_variant(row["op"], "")


def forward_and_dx(case, options):
    x, weight, bias, dy = case.inputs()
    if isinstance(case, cases.ConvCase):
        options |= case.options
        y = functional.conv2d(x, weight, bias, relu=case.relu, **options)
        return {"conv_forward": y, "conv_backward_data": functional.conv2d_backward(dy, x, weight, **options)[0]}
    y = functional.linear(x, weight, bias, relu=case.relu, **options)
    return {"linear_forward": y, "linear_backward_data": functional.linear_backward(dy, x, weight, **options)[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_tiles_of_a_family_give_the_same_bits(device, case):
    """The order of the sums of y and dx depends on family and shape alone: which tile computes them is no matter."""
    kernels, lanes = device.kernels, device.lanes(case.N)
    is_conv, N = isinstance(case, cases.ConvCase), padded(case.N, lanes)
    shape = case.shape(lanes, N) if is_conv else LinearShape(N, case.C, case.K, lanes)
    ask = kernels.conv_variant if is_conv else kernels.linear_variant
    ops = ("conv_forward", "conv_backward_data") if is_conv else ("linear_forward", "linear_backward_data")
    seen: dict[tuple[str, str], np.ndarray] = {}
    compared = 0
    for name, precision in {(row["name"], row["precision"]): 0 for row in kernels.variants() if row["op"] in ops}:
        forced = set()
        for op in ops:
            try:
                kernels.force_variant(op, name)
                assert ask(op, shape, precision) == name
                forced.add(op)
            except ValueError:  # the op has no such tile, or the tile cannot take the shape
                kernels.force_variant(op, "")
        if forced:
            results = forward_and_dx(case, {"device": device.name, "precision": precision})
            for op in forced:
                first = seen.setdefault((name.partition("-")[0], op), results[op])
                np.testing.assert_array_equal(results[op], first, err_msg=name)
                compared += first is not results[op]
            for op in ops:
                kernels.force_variant(op, "")
    assert compared >= 2 * len(ops) * 3  # at least three tiles in each of three arithmetics


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("id", ["groups2-stride2-N6", "maps-65-63-N9", "batch-130-N130"])
def test_tiles_of_local_layers_give_the_same_bits(device, id, precision):
    """In all three passes: the sums of the gradient of the filters are not cut into parts."""
    case = next(case for case in cases.LOCAL if case.id == id)
    x, weight, bias, dy = case.inputs()
    options = {"device": device.name, "precision": precision, **case.options}
    rows = [row for row in device.kernels.variants() if row["op"].startswith("local") and row["precision"] == precision]
    found: dict[str, list[np.ndarray]] = {}
    for row in rows:
        op = row["op"]
        device.kernels.force_variant(op, row["name"])
        if op == "local_forward":
            result = functional.local2d(x, weight, bias, **options)
        else:
            result = functional.local2d_backward(dy, x, weight, **options)[op == "local_backward_filter"]
        found.setdefault(op, []).append(result)
        device.kernels.force_variant(op, "")
    assert len(found) == 3
    for first, *others in found.values():
        assert others
        for other in others:
            np.testing.assert_array_equal(other, first)
