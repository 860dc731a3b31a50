"""Every kernel in the tables of convolutions, local layers and linear ones, each made to run: exact on integers,
whatever the table would have chosen. The tables are those of the emulator, which are a GPU's too."""

from __future__ import annotations

import cases
import fused
import numpy as np
import pytest
import reference
from conftest import Machine
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convnet import functional
from convnet.devices.opening import open_device
from convnet.devices.protocol import padded
from convnet.kernels.shapes import ConvShape, LinearShape

try:
    from convnet.kernels import _emu

    VARIANTS = _emu.variants()
except ImportError:
    VARIANTS = []

SHAPE = ConvShape.of(8, 3, 8, 8, 4, 3, 3, lanes=8)
CASES_EACH = 3
CANDIDATES = {
    "conv": [*cases.CONV_EDGES, *cases.CONV_TENSOR],
    "local": cases.LOCAL,
    "linear": [*cases.LINEAR_EDGES, *cases.LINEAR_TENSOR],
}


@pytest.fixture
def force():
    """Chooses a row for its op, in the emulator and, where that is named, on a GPU; then the tables decide again."""
    forced = []

    def chosen(row, device="emu"):
        _emu.set_architecture(max(80, row["architecture"]))
        for kernels in {_emu, open_device(device).kernels}:
            kernels.force_variant(row["op"], row["name"])
            forced.append((kernels, row["op"]))

    yield chosen
    for kernels, op in forced:
        kernels.force_variant(op, "")
    _emu.set_architecture(90)


def taken(row, where=lambda case: True) -> list:
    """The smallest cases that the forced row takes, those with whole blocks of 64 images first where it is for them."""
    family = row["op"].partition("_")[0]
    ask = getattr(_emu, f"{family}_variant")
    found = []
    for case in sorted(filter(where, CANDIDATES[family]), key=lambda case: case.work):
        lanes = open_device("emu").lanes(case.N)
        N = padded(case.N, lanes)
        shape = LinearShape(N, case.C, case.K, lanes) if family == "linear" else case.shape(lanes, N)
        try:
            assert ask(row["op"], shape, row["precision"]) == row["name"]
        except ValueError as error:
            if row["name"] not in str(error):
                raise
            continue
        found.append(case)
    # the largest has several tiles, and most of what can go wrong with them
    return [*found[: CASES_EACH - 1], *found[-1:]] if len(found) > CASES_EACH else found


def check(op: str, case, precision: str, device: str = "emu") -> None:
    """One pass against the exact sums, stored by precision."""
    x, weight, bias, dy = case.inputs(integers=True)
    options = {"device": device, "precision": precision}
    if isinstance(case, cases.LocalCase):
        options |= case.options
        forward, backward, place = functional.local2d, functional.local2d_backward, case.geometry
        right, right_backward = reference.local_forward, reference.local_backward
    elif isinstance(case, cases.ConvCase):
        options |= case.options
        forward, backward, place = functional.conv2d, functional.conv2d_backward, case.geometry
        right, right_backward = reference.conv_forward, reference.conv_backward
    else:
        forward, backward, place = functional.linear, functional.linear_backward, {}
        right, right_backward = reference.linear_forward, reference.linear_backward
    if op.endswith("forward"):
        y = forward(x, weight, bias, relu=case.relu, **options)
        expected = right(x, weight, bias, relu=case.relu, **place)
        np.testing.assert_array_equal(y, reference.held(expected, precision))
        return
    dx, dweight, dbias = backward(dy, x, weight, **options)
    expected = right_backward(dy, x, weight, **place)
    if op.endswith("data"):
        np.testing.assert_array_equal(dx, reference.held(expected[0], precision))
        check_mask(case, precision, device, dy, weight, x, expected[0])
    else:
        np.testing.assert_array_equal(dweight, expected[1])
        np.testing.assert_array_equal(dbias, expected[2])


def check_mask(case, precision: str, device: str, dy, weight, x, expected) -> None:
    machine, is_conv = Machine(device), isinstance(case, cases.ConvCase)
    backward_data = fused.conv_backward_data if is_conv else fused.linear_backward_data
    dx, _ = backward_data(machine, precision, case, dy, weight, x)
    np.testing.assert_array_equal(machine.images(dx, case.N), reference.held(np.where(x > 0, expected, 0), precision))
    machine.device.close()


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: f"{row['op']}-{row['name']}")
@pytest.mark.parametrize("device", ["emu", "cuda"])
def test_every_kernel(device, row, force, request):
    request.node.user_properties.append(("device", device))
    if device == "cuda" and row["architecture"] == 90 and not on_hopper():
        pytest.skip("for GPUs of compute capability 9.0 alone")
    force(row, device)
    chosen = taken(row)
    assert chosen, "no case is for this kernel"
    for case in chosen:
        check(row["op"], case, row["precision"], device)


# Twelve tiles of dweight and more, whose sums are cut in one line for all of them; the last two have rows of taps that
# never meet the image.
CUT = [
    ("wgmma-128x3x64", cases.ConvCase("cut", 64, 256, 7, 7, 16, 3, 3, padding=1)),
    ("wgmma-192x3x64", cases.ConvCase("cut", 64, 256, 7, 6, 24, 3, 3, padding=1, groups=2)),
    ("wgmma-128x5x48", cases.ConvCase("cut", 64, 144, 7, 7, 16, 5, 5, padding=2)),
    ("wgmma-128x1x128", cases.ConvCase("cut", 64, 1500, 4, 3, 8, 1, 1)),
    ("wgmma-128x3x48", cases.ConvCase("cut", 64, 16, 5, 4, 520, 3, 3, padding=1)),
    ("wgmma-3x3x48x96", cases.ConvCase("cut", 64, 16, 4, 4, 1060, 3, 3, padding=1)),
    ("wgmma-3x3x48x96", cases.ConvCase("cut", 64, 100, 6, 5, 24, 5, 4, stride=2, padding=2)),
    ("wgmma-128x3x64", cases.ConvCase("cut", 64, 256, 1, 9, 16, 3, 3, padding=1)),
    ("wgmma-128x3x64", cases.ConvCase("cut", 64, 64, 1, 9, 16, 3, 3, padding=1)),
    ("wgmma_tf32-128x3x64", cases.ConvCase("cut", 64, 256, 5, 4, 144, 3, 3, padding=1)),
    ("wgmma_tf32-192x3x64", cases.ConvCase("cut", 64, 128, 4, 5, 392, 3, 3, padding=1, groups=2)),
    ("wgmma_tf32-128x5x48", cases.ConvCase("cut", 64, 144, 6, 6, 136, 5, 5, padding=2)),
    ("wgmma_tf32-128x3x48", cases.ConvCase("cut", 64, 100, 5, 4, 260, 3, 3, padding=1)),
]


@pytest.mark.parametrize(("name", "case"), CUT, ids=str)
def test_filter_gradients_whose_tiles_are_cut(name, case, force, request):
    request.node.user_properties.append(("device", "emu"))
    row = next(row for row in VARIANTS if row["name"] == name)
    force(row)
    check("conv_backward_filter", case, row["precision"])


def on_hopper() -> bool:
    from convnet.devices import cuda as device

    return device.describe()["gpus"][0]["compute_capability"] == "9.0"


@pytest.mark.parametrize(
    "row", [row for row in VARIANTS if row["op"].startswith("conv")], ids=lambda row: f"{row['op']}-{row['name']}"
)
def test_groups_do_not_see_each_other(row, force, request):
    """What is not a number in one tower never reaches the other, by no factor of zero either."""
    request.node.user_properties.append(("device", "emu"))
    force(row)
    grouped = taken(row, lambda case: case.groups == 2)
    if not grouped:
        pytest.skip("no case with groups is for this kernel")
    case = grouped[0]
    x, weight, bias, dy = case.inputs(integers=True)
    options = {"device": "emu", "precision": row["precision"], **case.options}

    def results(x, dy):
        """Of the pass in question, halved into the towers."""
        if row["op"] == "conv_forward":
            return [np.split(functional.conv2d(x, weight, bias, **options), 2, axis=1)]
        dx, dweight, dbias = functional.conv2d_backward(dy, x, weight, **options)
        if row["op"] == "conv_backward_data":
            return [np.split(dx, 2, axis=1)]
        return [np.split(dweight, 2), np.split(dbias, 2)]

    sound = results(x, dy)
    for spoiled in (0, 1):
        broken = [values.copy() for values in (x, dy)]
        for values in broken:
            np.split(values, 2, axis=1)[spoiled][...] = np.nan
        for was, now in zip(sound, results(*broken), strict=True):
            assert np.isnan(now[spoiled]).any()
            np.testing.assert_array_equal(now[1 - spoiled], was[1 - spoiled])


def test_every_problem_has_a_kernel():
    """In every precision and on every architecture the tables end with a kernel that takes anything."""
    from convnet.kernels import _emu as emu

    for op in dict.fromkeys(row["op"] for row in VARIANTS):
        for precision in ("fp32", "tf32", "bf16"):
            rows = [row for row in VARIANTS if (row["op"], row["precision"]) == (op, precision)]
            assert (rows[-1]["when"], rows[-1]["architecture"]) == ("any", 80)
    assert {row["name"].partition("-")[0] for row in VARIANTS} >= {"fp32", "tf32", "bf16"}
    assert emu.conv_variant("conv_forward", SHAPE, "tf32").startswith("tf32-")


def test_misuse_is_refused(force):
    from convnet.kernels import _emu as emu

    with pytest.raises(ValueError, match="there is no variant fastest of conv_forward"):
        emu.force_variant("conv_forward", "fastest")
    with pytest.raises(ValueError, match="there is no variant"):
        emu.force_variant("relu_forward", "any")
    with pytest.raises(ValueError, match="op must be conv_forward"):
        emu.conv_variant("linear_forward", SHAPE, "fp32")
    with pytest.raises(ValueError, match="op must be local_forward, local_backward_data or local_backward_filter, got"):
        emu.local_variant("conv_forward", SHAPE, "fp32")
    with pytest.raises(ValueError, match='precision must be "fp32", "tf32" or "bf16"'):
        emu.conv_variant("conv_forward", SHAPE, "fp16")
    row = next(row for row in VARIANTS if row["op"] == "conv_forward" and row["architecture"] == 90)
    force(row)
    with pytest.raises(ValueError, match=f"the forced variant {row['name']} does not take this shape"):
        emu.conv_variant("conv_forward", SHAPE, "bf16")
    emu.force_variant("conv_forward", "")
    assert emu.conv_variant("conv_forward", SHAPE, "bf16") != row["name"]


@st.composite
def geometries(draw) -> cases.ConvCase:
    """Small convolutions of whole blocks of 64 images, of any geometry; the output is drawn, the image follows."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    maps = st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 48, 64]))
    C, K = groups * draw(maps), groups * draw(maps)
    R, S, stride = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 1, 2, 3]))
    top, bottom, left, right = (draw(st.integers(0, 3)) for _ in range(4))
    P, Q = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    H, W = (P - 1) * stride + R - top - bottom, (Q - 1) * stride + S - left - right
    assume(H >= 1 and W >= 1 and C // groups * K * R * S * P * Q <= 60_000)
    padding = (top, bottom, left, right)
    return cases.ConvCase("drawn", 64, C, H, W, K, R, S, stride, padding, groups, relu=draw(st.booleans()))


@pytest.mark.skipif(not VARIANTS, reason="the emulator is not built")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(geometries())
def test_any_geometry_in_blocks_of_64_images(case):
    for op in ("conv_forward", "conv_backward_data", "conv_backward_filter"):
        check(op, case, "bf16")
