"""Every row of the tables of products, on shapes it is not meant for too: exact sums, and the bits of its relatives."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing, contextmanager

import cases
import numpy as np
import pytest
import reference

from convnet import backend, functional
from convnet.shapes import LinearShape

CONV = [
    case
    for case in [*cases.CONV_EDGES, *cases.CONV_TENSOR]
    if case.id
    in {
        "one-everything-N1", "primes-N5", "groups2-stride2-N6", "channels-129-N2", "filters-129-N2", "maps-40-56-N8",
        "eights-ceil-overhang-N65", "maps-136-N1", "channels-16-filters-16-N3", "maps-64-N64",
    }
]  # fmt: skip
LINEAR = [
    case
    for case in cases.LINEAR_EDGES
    if case.id in {"one-everything-N1", "primes-N13", "outputs-129-N9", "uneven-parts-N9", "batch-65-N65"}
]


@pytest.fixture(params=["emu", "cuda"])
def device(request) -> str:
    """Devices with tables: NumPy has one kernel per op."""
    request.node.user_properties.append(("device", request.param))
    return request.param


@contextmanager
def kernels_of(name):
    with closing(backend.open_device(name)) as device:
        yield device.kernels
        for op in {row["op"] for row in device.kernels.variants()}:
            device.kernels.force_variant(op, "")


def each_row(device, kind, shape):
    """Forces one name after the other on every op that has a row of it which can take the shape."""
    with kernels_of(device) as kernels:
        chosen = kernels.conv_variant if kind == "conv" else kernels.linear_variant
        names = defaultdict(list)
        for row in kernels.variants():
            if row["op"].startswith(kind):
                names[row["name"], row["precision"]].append(row["op"])
        for (name, precision), ops in names.items():
            taken = set()
            for op in ops:
                kernels.force_variant(op, name)
                try:
                    assert chosen(op, shape, precision) == name
                    taken.add(op)
                except ValueError:
                    kernels.force_variant(op, "")
            if taken:
                yield name, precision, taken
            for op in ops:
                kernels.force_variant(op, "")


def padded(device, shape):
    with closing(backend.open_device(device)) as opened:
        lanes = opened.lanes(shape.N)
        return cases.replace(shape, N=backend.padded(shape.N, lanes), lanes=lanes)


def run_conv(case, device, precision, inputs):
    x, weight, bias, dy = inputs
    options = {"device": device, "precision": precision, **case.options}
    y = functional.conv2d(x, weight, bias, relu=case.relu, **options)
    return y, *functional.conv2d_backward(dy, x, weight, **options)


def run_linear(case, device, precision, inputs):
    x, weight, bias, dy = inputs
    y = functional.linear(x, weight, bias, relu=case.relu, device=device, precision=precision)
    return y, *functional.linear_backward(dy, x, weight, device=device, precision=precision)


def expected(case, inputs):
    x, weight, bias, dy = inputs
    if isinstance(case, cases.ConvCase):
        y = reference.conv_forward(x, weight, bias, relu=case.relu, **case.geometry)
        return y, *reference.conv_backward(dy, x, weight, **case.geometry)
    return reference.linear_forward(x, weight, bias, case.relu), *reference.linear_backward(dy, x, weight)


def of_case(case, device):
    if isinstance(case, cases.ConvCase):
        return "conv", padded(device, case.shape()), run_conv
    return "linear", padded(device, LinearShape(case.N, case.C, case.K, 1)), run_linear


@pytest.mark.parametrize("case", [*CONV, *LINEAR], ids=lambda case: case.id)
def test_every_row_is_exact(device, case):
    kind, shape, run = of_case(case, device)
    inputs = case.inputs(integers=True)
    y, dx, dweight, dbias = expected(case, inputs)
    rows = 0
    for name, precision, _ in each_row(device, kind, shape):
        right = reference.held(y, precision), reference.held(dx, precision), dweight, dbias
        for actual, correct in zip(run(case, device, precision, inputs), right, strict=True):
            np.testing.assert_array_equal(actual, correct, err_msg=name)
        rows += 1
    assert rows >= 9


@pytest.mark.parametrize("case", [*CONV, *LINEAR], ids=lambda case: case.id)
def test_tiles_of_a_family_give_the_same_bits(device, case):
    """The order of the sums of y and dx depends on family and shape alone: which tile computes them is no matter."""
    kind, shape, run = of_case(case, device)
    inputs = case.inputs()
    seen = {}
    compared = 0
    for name, precision, ops in each_row(device, kind, shape):
        y, dx, *_ = run(case, device, precision, inputs)
        for op, values in ((f"{kind}_forward", y), (f"{kind}_backward_data", dx)):
            if op in ops:
                family = name.partition("-")[0]
                np.testing.assert_array_equal(values, seen.setdefault((family, op), values), err_msg=name)
                compared += 1
    assert compared >= 18


def test_last_row_of_a_precision_takes_anything(device):
    shape = padded(device, CONV[0].shape())
    with kernels_of(device) as kernels:
        last = {(row["op"], row["precision"]): row for row in kernels.variants()}
        assert len(last) == 6 * 3
        assert {row["when"] for row in last.values()} == {"any"}
        for op, precision in last:
            if op.startswith("conv"):
                assert kernels.conv_variant(op, shape, precision)


def test_what_cannot_be_forced(device):
    shape = padded(device, CONV[0].shape())
    with kernels_of(device) as kernels:
        with pytest.raises(ValueError, match="no variant fp32-7x7 of conv_forward"):
            kernels.force_variant("conv_forward", "fp32-7x7")
        with pytest.raises(ValueError, match="no variant fp32-16x256 of linear_forward"):
            kernels.force_variant("linear_forward", "fp32-16x256")
        kernels.force_variant("conv_forward", "tf32-128x128")
        assert kernels.conv_variant("conv_forward", shape, "tf32") == "tf32-128x128"
        with pytest.raises(ValueError, match="forced variant tf32-128x128 does not take this shape, precision"):
            kernels.conv_variant("conv_forward", shape, "fp32")
