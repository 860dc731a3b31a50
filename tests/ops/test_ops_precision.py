"""Products on tensor cores against float64, on operands that the precision can hold and on operands that it cannot.

On the first kind only sums are rounded, and the bounds are those of the accumulation: a wrong term shows. On the second
kind the rounding of the operands shows: that there is one, and that it is to nearest.
"""

from __future__ import annotations

from contextlib import closing

import cases
import numpy as np
import pytest
import reference

from convnet import functional
from convnet.devices.opening import open_device
from convnet.devices.protocol import padded
from convnet.kernels.precision import BF16
from convnet.ops import ops

CONV = [*cases.CONV_EDGES, *cases.CONV_TENSOR, *cases.CONV_SHRUNK, *cases.CONV_TINY]
LINEAR = [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR, *cases.LINEAR_SHRUNK, *cases.LINEAR_TINY]


def by_id(case):
    return case.id


def rounded_inputs(case, precision):
    """x, weight, bias, dy; the bias is float32 in every precision."""
    x, weight, bias, dy = case.inputs()
    x, weight, dy = (reference.rounded(values, precision) for values in (x, weight, dy))
    return x, weight, bias, dy


def instructions(arithmetic, run: int) -> int:
    return -(-run // reference.DEPTH[arithmetic.precision])


def blocks_and_lanes(N: int) -> tuple[int, int]:
    lanes = 64 if N >= 64 else -(-N // 8) * 8
    return -(-N // lanes), lanes


class Conv:
    """A case's exact results and their limits. Instructions do not reach across a tap or a pixel at best."""

    @staticmethod
    def forward(case, arithmetic, x, weight, bias):
        expected = reference.conv_forward(x, weight, bias, **case.geometry)
        squares = reference.conv_forward(x**2, weight**2, bias**2, **case.geometry)
        count = case.R * case.S * instructions(arithmetic, case.C // case.groups)
        limit = reference.tensor_limit(expected, squares, count, arithmetic.device)
        limit = reference.held_limit(limit, expected, arithmetic.precision)
        return (np.maximum(expected, 0) if case.relu else expected), limit

    @staticmethod
    def backward(case, arithmetic, dy, x, weight):
        expected = reference.conv_backward(dy, x, weight, **case.geometry)
        squares = reference.conv_backward(dy**2, x**2, weight**2, **case.geometry)
        blocks, lanes = blocks_and_lanes(case.N)
        taps = -(-case.R // case.stride) * -(-case.S // case.stride)
        pixels = blocks * dy[0, 0].size * instructions(arithmetic, lanes)
        counts = (taps * instructions(arithmetic, case.K // case.groups), pixels)
        bias = reference.sum_limit(np.abs(dy.astype(np.float64)).sum(axis=(0, 2, 3)), dy[:, 0].size)
        return expected, [*limits(arithmetic, expected, squares, counts), bias]


class Local:
    """The same; instructions of forward do reach across taps."""

    @staticmethod
    def forward(case, arithmetic, x, weight, bias):
        expected = reference.local_forward(x, weight, bias, **case.geometry)
        squares = reference.local_forward(x**2, weight**2, bias**2, **case.geometry)
        limit = reference.tensor_limit(
            expected, squares, instructions(arithmetic, weight[0, 0, 0].size), arithmetic.device
        )
        limit = reference.held_limit(limit, expected, arithmetic.precision)
        return (np.maximum(expected, 0) if case.relu else expected), limit

    @staticmethod
    def backward(case, arithmetic, dy, x, weight):
        expected = reference.local_backward(dy, x, weight, **case.geometry)
        squares = reference.local_backward(dy**2, x**2, weight**2, **case.geometry)
        blocks, lanes = blocks_and_lanes(case.N)
        taps = -(-case.R // case.stride) * -(-case.S // case.stride)
        counts = (taps * instructions(arithmetic, case.K // case.groups), blocks * instructions(arithmetic, lanes))
        bias = reference.sum_limit(np.abs(dy.astype(np.float64)).sum(axis=0), case.N)
        return expected, [*limits(arithmetic, expected, squares, counts), bias]


class Linear:
    @staticmethod
    def forward(case, arithmetic, x, weight, bias):
        expected = reference.linear_forward(x, weight, bias)
        squares = reference.linear_forward(x**2, weight**2, bias**2)
        limit = reference.tensor_limit(expected, squares, instructions(arithmetic, case.C), arithmetic.device)
        limit = reference.held_limit(limit, expected, arithmetic.precision)
        return (np.maximum(expected, 0) if case.relu else expected), limit

    @staticmethod
    def backward(case, arithmetic, dy, x, weight):
        expected = reference.linear_backward(dy, x, weight)
        squares = reference.linear_backward(dy**2, x**2, weight**2)
        blocks, lanes = blocks_and_lanes(case.N)
        images = blocks * instructions(arithmetic, lanes)
        counts = (instructions(arithmetic, case.K), images)
        bias = reference.sum_limit(np.abs(dy.astype(np.float64)).sum(axis=0), case.N)
        return expected, [*limits(arithmetic, expected, squares, counts), bias]


def limits(arithmetic, expected, squares, counts):
    """For dx, which is stored by precision, and for dweight, which is float32."""
    dx, dweight = (
        reference.tensor_limit(values, square, count, arithmetic.device)
        for values, square, count in zip(expected[:2], squares[:2], counts, strict=True)
    )
    return [reference.held_limit(dx, expected[0], arithmetic.precision), dweight]


def conv(arithmetic, case, x, weight, bias, dy):
    options = {"device": arithmetic.device, "precision": arithmetic.precision, **case.options}
    y = functional.conv2d(x, weight, bias, relu=case.relu, **options)
    return y, functional.conv2d_backward(dy, x, weight, **options)


def local(arithmetic, case, x, weight, bias, dy):
    options = {"device": arithmetic.device, "precision": arithmetic.precision, **case.options}
    y = functional.local2d(x, weight, bias, relu=case.relu, **options)
    return y, functional.local2d_backward(dy, x, weight, **options)


def linear(arithmetic, case, x, weight, bias, dy):
    options = {"device": arithmetic.device, "precision": arithmetic.precision}
    y = functional.linear(x, weight, bias, relu=case.relu, **options)
    return y, functional.linear_backward(dy, x, weight, **options)


def check(arithmetic, case, kind, compute, exact, within):
    if not case.runs_on(arithmetic.device):
        pytest.skip(f"{case.work / 1e6:.0f} million multiply-adds are too many for the emulator")
    x, weight, bias, dy = rounded_inputs(case, arithmetic.precision)
    y, gradients = compute(arithmetic, case, x, weight, bias, dy)
    within(
        f"{kind} forward {arithmetic.precision}", reference.ratio(y, *exact.forward(case, arithmetic, x, weight, bias))
    )
    expected, limit = exact.backward(case, arithmetic, dy, x, weight)
    for name, *found in zip(("dx", "dweight", "dbias"), gradients, expected, limit, strict=True):
        within(f"{kind} {name} {arithmetic.precision}", reference.ratio(*found))


@pytest.mark.parametrize("case", CONV, ids=by_id)
def test_convolution(tensor_cores, case, within):
    check(tensor_cores, case, "conv", conv, Conv, within)


@pytest.mark.parametrize("case", cases.LOCAL, ids=by_id)
def test_local(tensor_cores, case, within):
    check(tensor_cores, case, "local", local, Local, within)


@pytest.mark.parametrize("case", LINEAR, ids=by_id)
def test_linear(tensor_cores, case, within):
    check(tensor_cores, case, "linear", linear, Linear, within)


def test_wrong_dtypes_are_named(machine):
    """A mixed-up precision is refused before anything is launched, in words."""
    case = cases.CONV_TENSOR[3]
    shape = machine.padded(case.shape(N=case.N))
    empty, device = machine.device.empty, machine.device.name
    x, y, weight, bias = empty(shape.x), empty(shape.y), empty(shape.weight), empty((shape.K,))
    with pytest.raises(ValueError, match=r"conv2d: x must have shape .* of bfloat16 \(uint16\), got .* of float32"):
        ops.conv_forward(machine.stream, shape, "bf16", x, weight, bias, y)
    x16, y16 = empty(shape.x, BF16), empty(shape.y, BF16)
    with pytest.raises(ValueError, match=r"y must have shape .* of float32, got .* of bfloat16 \(uint16\)"):
        ops.conv_forward(machine.stream, shape, "tf32", x, weight, bias, y16)
    padded = r"weight must have shape \(1, 15, 3, 3, 24\) of bfloat16 \(uint16\), got shape \(1, 15, 3, 3, 17\)"
    with pytest.raises(ValueError, match=padded):
        ops.conv_forward(machine.stream, shape, "bf16", x16, empty(shape.weight, BF16), bias, y16)
    copy = empty(shape.weight_copy, BF16)
    with pytest.raises(ValueError, match=r"bias must have .* of float32, got .* bfloat16"):
        ops.conv_forward(machine.stream, shape, "bf16", x16, copy, empty((shape.K,), BF16), y16)
    with pytest.raises(ValueError, match='precision must be "fp32", "tf32" or "bf16"'):
        ops.relu_forward(machine.stream, "fp16", x, x)
    if device == "cpu":
        with pytest.raises(ValueError, match='computes in "fp32" only'):
            ops.relu_forward(machine.stream, "tf32", x, x)


# Operands between the numbers that a precision has.

ROUNDED = [
    *((conv, Conv, case) for case in cases.CONV if case.id in ("primes-N5", "maps-64-N64", "conv2-tiny-N8")),
    *((local, Local, case) for case in cases.LOCAL if case.id in ("primes-N5", "maps-33-64-N16", "batch-64-N64")),
    *(
        (linear, Linear, case)
        for case in cases.LINEAR
        if case.id in ("primes-N13", "maps-256-136-N128", "uneven-parts-N9")
    ),
]
rounded_cases = pytest.mark.parametrize(("compute", "exact", "case"), ROUNDED, ids=[case.id for *_, case in ROUNDED])


def cut(values, precision):
    """Toward zero instead of to nearest."""
    bits = values.view(np.uint32) & np.uint32(0xFFFF0000 if precision == "bf16" else 0xFFFFE000)
    return bits.view(np.float32)


def with_ties(values, precision):
    """Every third value half-way between two neighbours."""
    ties = cut(values, precision).view(np.uint32) | np.uint32(0x8000 if precision == "bf16" else 0x1000)
    return np.where(np.arange(values.size).reshape(values.shape) % 3 == 0, ties.view(np.float32), values)


@rounded_cases
def test_operands_are_rounded_to_nearest(tensor_cores, compute, exact, case):
    """The same bits as from operands that were rounded before; other bits than from operands that were cut."""
    precision = tensor_cores.precision
    x, weight, bias, dy = case.inputs()
    x, weight, dy = (with_ties(values, precision) for values in (x, weight, dy))
    y, (dx, dweight, _) = compute(tensor_cores, case, x, weight, bias, dy)
    for change, equal in ((reference.rounded, True), (cut, False)):
        changed = [change(values, precision) for values in (x, weight, dy)]
        other, (other_dx, other_dweight, _) = compute(tensor_cores, case, *changed[:2], bias, changed[2])
        for a, b in ((y, other), (dx, other_dx), (dweight, other_dweight)):
            assert np.array_equal(a, b) == equal


@rounded_cases
def test_float32_products_would_show(tensor_cores, compute, exact, case):
    """On operands that need rounding, results are farther from those of the operands than float32 products get."""
    x, weight, bias, dy = case.inputs()
    y, gradients = compute(tensor_cores, case, x, weight, bias, dy)
    expected, limit = exact.forward(case, tensor_cores, x, weight, bias)
    assert reference.ratio(y, expected, limit) > 1
    expected, limit = exact.backward(case, tensor_cores, dy, x, weight)
    assert reference.ratio(gradients[0], expected[0], limit[0]) > 1
    assert reference.ratio(gradients[1], expected[1], limit[1]) > 1


@rounded_cases
def test_wrong_products_are_noticed(tensor_cores, compute, exact, case):
    """The bounds are so tight that operands cut instead of rounded are outside, and a missing term is."""
    precision = tensor_cores.precision
    x, weight, bias, dy = rounded_inputs(case, precision)
    raw_x, raw_weight, _, raw_dy = case.inputs()
    y, gradients = compute(tensor_cores, case, x, weight, bias, dy)
    last_channel = (np.arange(case.C) < case.C - 1).reshape(-1, *[1] * (x.ndim - 2))
    last_image = (np.arange(case.N) < case.N - 1).reshape(-1, *[1] * (x.ndim - 1))
    for wrong in ((cut(raw_x, precision), cut(raw_weight, precision)), (x * last_channel, weight)):
        assert reference.ratio(y, *exact.forward(case, tensor_cores, *wrong, bias)) > 1
    for wrong in ((cut(raw_dy, precision), cut(raw_x, precision)), (dy * last_image, x)):
        expected, limit = exact.backward(case, tensor_cores, *wrong, weight)
        assert reference.ratio(gradients[1], expected[1], limit[1]) > 1


# What holds whatever the arithmetic.


@rounded_cases
def test_same_call_gives_the_same_bits(tensor_cores, compute, exact, case):
    first, again = (compute(tensor_cores, case, *case.inputs()) for _ in range(2))
    for a, b in zip((first[0], *first[1]), (again[0], *again[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("id", ["groups2-stride2-N6", "filter-5-groups2-N8"])
def test_one_tower_gives_the_bits_of_both(tensor_cores, id):
    """A tower alone on a device (groups 1) must give the bits it gives beside another one (groups 2)."""
    case = next(case for case in cases.CONV if case.id == id)
    x, weight, bias, dy = case.inputs()
    whole, (dx, dweight, dbias) = conv(tensor_cores, case, x, weight, bias, dy)
    alone = cases.replace(case, groups=1)
    for tower in range(2):
        C, K = (slice(tower * size // 2, (tower + 1) * size // 2) for size in (case.C, case.K))
        y, gradients = conv(tensor_cores, alone, x[:, C], weight[K], bias[K], dy[:, K])
        np.testing.assert_array_equal(y, whole[:, K])
        for actual, expected in zip(gradients, (dx[:, C], dweight[K], dbias[K]), strict=True):
            np.testing.assert_array_equal(actual, expected)


def by_wgmma(device: str, case) -> bool:
    """Whether the forward pass takes a kernel of Hopper."""
    with closing(open_device(device)) as opened:
        shape = case.shape(opened.lanes(case.N), padded(case.N, opened.lanes(case.N)))
        return opened.kernels.conv_variant("conv_forward", shape, "tf32").startswith("wgmma")


@pytest.mark.parametrize(("id", "N"), [("maps-16-24-N65", 5), ("filters-192-N64", 7), ("maps-64-N64", 64)])
def test_forward_depends_on_nothing_but_the_image(tensor_cores, id, N):
    """Not on the batch around it, its size, or the number of filters."""
    case = next(case for case in cases.CONV if case.id == id)
    x, weight, bias, _ = case.inputs()
    options = {"device": tensor_cores.device, "precision": tensor_cores.precision, **case.options}
    whole = functional.conv2d(x, weight, bias, **options)
    some = case.K // 2 - 1
    if tensor_cores.precision == "tf32" and by_wgmma(tensor_cores.device, case):
        # of kernels for whole blocks of 64 images and multiples of 32 filters: the same images elsewhere in the batch
        moved = functional.conv2d(np.roll(x, N, axis=0), weight, bias, **options)
        np.testing.assert_array_equal(moved, np.roll(whole, N, axis=0))
        some = case.K // 64 * 32
    else:
        np.testing.assert_array_equal(functional.conv2d(x[:N], weight, bias, **options), whole[:N])
    np.testing.assert_array_equal(functional.conv2d(x, weight[:some], bias[:some], **options), whole[:, :some])


def test_padded_lanes_do_not_leak(tensor_cores):
    """65 images (two blocks, the second with 63 empty lanes) equal 64 images and one more."""
    case = next(case for case in cases.CONV if case.id == "maps-16-24-N65")
    x, weight, bias, dy = case.inputs(integers=True)
    y, (dx, dweight, dbias) = conv(tensor_cores, case, x, weight, bias, dy)
    parts = [slice(0, 64), slice(64, 65)]
    split = [conv(tensor_cores, case, x[part], weight, bias, dy[part]) for part in parts]
    np.testing.assert_array_equal(y, np.concatenate([y for y, _ in split]))
    np.testing.assert_array_equal(dx, np.concatenate([gradients[0] for _, gradients in split]))
    np.testing.assert_array_equal(dweight, split[0][1][1] + split[1][1][1])
    np.testing.assert_array_equal(dbias, split[0][1][2] + split[1][1][2])
