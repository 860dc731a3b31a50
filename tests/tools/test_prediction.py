"""The prediction of a training step, and of inference: launches noted by the emulator, instructions executed."""

from __future__ import annotations

import json
import random

import count_instructions
import cubins
import execute
import numpy as np
import pytest
import sass_report
from count_instructions import COMMITTED
from machine_code import code_of, sections

from benchmarks import launches, predict
from convnet.kernels import _emu
from convnet.kernels.precision import PRECISIONS
from convnet.network.networks import network
from convnet.network.spec import Conv, placed_layers

SAMPLED = 0.04  # counts of a launch stand on some of its blocks
GOLDEN = json.loads(predict.GOLDEN.read_text())


@pytest.fixture(scope="module", params=PRECISIONS)
def step(request):
    """Precision, launches of a step of alexnet with 128 images, and what was counted of them."""
    spec = network("alexnet")
    return (
        request.param,
        launches.of("step", spec, 128, request.param),
        predict.counts("step", "alexnet", 128, request.param),
    )


def test_every_launch_is_one_kernel_of_the_machine_code(step):
    precision, started, counted = step
    files = json.loads((cubins.ROOT / "tests" / "golden" / "resources.json").read_text())["kernels"]["sm_90a"]
    names = {name for kernels in files.values() for name in kernels}  # some are in several files, the same
    for launch, count in zip(started, counted, strict=True):
        assert [name for name in names if launches.is_kernel(launch.kernel, name)] == [count["kernel"]]
    assert len(started) == {"bf16": 40, "tf32": 46, "fp32": 51}[precision]


def flops(instructions):
    """Of all products."""
    shapes = [
        (n, *map(int, kind.removesuffix(".R").split("x")[1:])) for kind, n in instructions.items() if "HGMMA.64" in kind
    ]
    wgmma = sum(n / 4 * 2 * 64 * columns * terms for n, columns, terms in shapes)
    return wgmma + 2048 * instructions.get("HMMA.1688", 0) + 4096 * instructions.get("HMMA.16816", 0)


def inside(out, taps, size, padding):
    """The share of taps that lie inside of a row or column, at stride 1."""
    return sum(0 <= o - padding + tap < size for o in range(out) for tap in range(taps)) / (out * taps)


def test_products_are_those_of_the_shapes(step):
    """Tiles multiply padding beyond the last filter, and not the taps that lie outside of the image."""
    precision, started, counted = step
    layers = {p.layer.name: p for p in placed_layers(network("alexnet"))}
    checked = 0
    for launch, count in zip(started, counted, strict=True):
        there = 64 * count["instructions"].get("FFMA", 0) if precision == "fp32" else flops(count["instructions"])
        if not launch.flops or "fold" in launch.op:
            continue
        share, p = there / launch.flops, layers[launch.layer]
        least = 1.0
        if isinstance(p.layer, Conv) and p.layer.padding:
            least = inside(p.P, p.layer.size, p.H, p.layer.padding) ** 2
        assert least * (1 - SAMPLED) < share < 1.45, (launch, share)
        if precision == "bf16" and launch.layer in ("conv3", "conv4", "conv5") and launch.op != "conv_backward_filter":
            assert share == pytest.approx(least, rel=SAMPLED)  # tiles fit: exactly the taps inside
        if launch.layer in ("fc6", "fc7"):
            assert share == pytest.approx(1, rel=SAMPLED)
        checked += 1
    assert checked == 5 + 4 + 5 + 3 * 3


def test_stores_are_the_results(step):
    """Weights and velocities that are updated, with their copy in bfloat16, and activations."""
    precision, started, counted = step
    size = 2 if precision == "bf16" else 4
    weights = {"fc6": 9216 * 4096, "fc7": 4096 * 4096}
    layers = {p.layer.name: p for p in placed_layers(network("alexnet"))}
    for launch, count in zip(started, counted, strict=True):
        if launch.flops and launch.op == "linear_backward_filter_update" and launch.layer in weights:
            assert count["stored"] == pytest.approx((8 + (2 if size == 2 else 0)) * weights[launch.layer], rel=SAMPLED)
        if launch.op == "conv_forward":
            p = layers[launch.layer]
            assert count["stored"] == pytest.approx(size * 128 * p.K * p.P * p.Q, rel=SAMPLED)
        if launch.flops and "fold" not in launch.op and "update" not in launch.op:
            assert count["loaded"] > (1 - SAMPLED) * (launch.bytes - count["stored"])  # every operand at least once


def test_a_prediction_is_the_sum_of_its_kernels(step, tmp_path, capsys):
    precision, started, _ = step
    file = tmp_path / "predicted.json"
    assert predict.main(["--precision", precision, "-b", "128", "-o", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["launches"] == len(found["kernels"]) == len(started)
    assert found["seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in found["kernels"]))
    assert found["seconds"] > found["floor_seconds"] > 0
    assert found["seconds"] <= {"bf16": 1.25e-3, "tf32": 2.6e-3, "fp32": 12e-3}[precision]  # counted, not measured
    for kernel in found["kernels"]:
        longest = max(kernel["resources"], key=kernel["resources"].get)
        assert kernel["seconds"] == pytest.approx(predict.START + kernel["resources"][longest])
        assert kernel["bound"] == (longest if kernel["resources"][longest] > predict.START else "launch")
    assert f"{len(started)} launches" in capsys.readouterr().out


def counted(**changes):
    """An entry of a kernel that does little."""
    entry = {"kernel": "k", "registers": 32, "heaviest": 1.0, "loaded": 0, "stored": 0, "instructions": {}}
    return {**entry, **changes}


@pytest.mark.parametrize(
    ("changes", "bound", "seconds"),
    [
        ({"instructions": {"MOV": 132e6}}, "issue", 1e6 / 4 / predict.ISSUE / predict.CLOCK),
        ({"instructions": {"IADD3": 132e6}}, "integer", 1e6 / 2 / predict.ISSUE / predict.CLOCK),
        ({"instructions": {"MUFU.RCP": 132e6}}, "special", 2e6 / predict.ISSUE / predict.CLOCK),
        ({"instructions": {"LDS.128": 132e6}}, "shared", 4e6 / predict.CLOCK),
        ({"instructions": {"HGMMA.64x128x16": 4 * 132e4}}, "tensor", 64e4 / predict.TENSOR / predict.CLOCK),
        ({"instructions": {"HGMMA.64x48x16": 4 * 132e4}}, "tensor", 28e4 / predict.TENSOR / predict.CLOCK),
        ({"instructions": {"HGMMA.64x48x16.R": 4 * 132e4}}, "tensor", 24e4 / predict.TENSOR / predict.CLOCK),
        ({"instructions": {"HGMMA.64x48x8.R": 4 * 132e4}}, "tensor", 24e4 / predict.TENSOR / predict.CLOCK),
        ({"instructions": {"HMMA.1688": 132e6}}, "tensor", 1e6 / predict.MMA_SYNC / predict.TENSOR / predict.CLOCK),
        ({"loaded": 10e9, "stored": 2e9}, "memory", 12e9 / predict.floors.BYTES),
        ({"heaviest": 2.0, "instructions": {"MOV": 132e6}}, "issue", 2e6 / 4 / predict.ISSUE / predict.CLOCK),
        ({}, "launch", predict.LATENCY),
    ],
)
def test_what_binds_a_kernel(changes, bound, seconds):
    launch = launches.Launch(0, "", "op", "k", (132, 1, 1), (128, 1, 1), 0, [], 0.0, 0.0)
    found = predict.predict(launch, counted(**changes))
    assert found.bound == bound
    assert found.seconds == pytest.approx(predict.START + seconds)


def test_blocks_are_handed_out_whole():
    launch = launches.Launch(0, "", "op", "k", (133, 1, 1), (128, 1, 1), 0, [], 0.0, 0.0)
    found = predict.predict(launch, counted(instructions={"MOV": 133e6}))
    assert found.resources["issue"] == pytest.approx(2e6 / 4 / predict.ISSUE / predict.CLOCK)


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [(128, 128, 0, 4), (256, 128, 0, 2), (32, 16, 0, 32), (1024, 32, 0, 2), (384, 168, 214016, 1), (128, 32, 48000, 4)],
)
def test_blocks_at_once(threads, registers, shared, blocks):
    launch = launches.Launch(0, "", "op", "k", (1, 1, 1), (threads, 1, 1), shared, [], 0.0, 0.0)
    assert predict.blocks_at_once(launch, registers) == blocks


def test_what_float32_products_issue_is_multiplications():
    """Of all that their warps execute, from the first address to the last store."""
    products = [
        count["instructions"]
        for launch, count in zip(
            launches.of("step", network("alexnet"), 128, "fp32"),
            predict.counts("step", "alexnet", 128, "fp32"),
            strict=True,
        )
        if launch.op.startswith(("conv_", "linear_")) and "sum_" not in launch.kernel
    ]
    assert len(products) == 5 + 4 + 5 + 3 * 3
    assert sum(p["FFMA"] for p in products) > 0.85 * sum(sum(p.values()) for p in products)


@pytest.fixture(scope="module", params=[(precision, images) for precision in PRECISIONS for images in (1, 5, 8)])
def inference(request):
    """Precision, images, launches of a forward pass of alexnet, and what was counted of them."""
    precision, images = request.param
    started = launches.of("forward", network("alexnet"), images, precision)
    return precision, images, started, predict.counts("forward", "alexnet", images, precision)


def test_inference_is_bound_by_the_weights_of_linear_layers(inference, tmp_path, capsys):
    """Each product of fc6 and fc7 takes the time of reading its weights; where tensor cores multiply nothing else takes
    as long as that of fc6; and a forward pass is the sum of its kernels."""
    precision, images, started, counted = inference
    file = tmp_path / "predicted.json"
    options = ["--part", "forward", "--precision", precision, "-b", str(images), "-o", str(file)]
    assert predict.main(options) == 0
    found = json.loads(file.read_text())
    assert (found["part"], found["launches"], len(started)) == ("forward", len(counted), len(counted))
    assert found["seconds"] == pytest.approx(sum(kernel["seconds"] for kernel in found["kernels"]))
    assert found["seconds"] > found["floor_seconds"] > 0
    products = {k["layer"]: k for k in found["kernels"] if "product_kernel" in k["kernel"]}
    size = 2 if precision == "bf16" else 4
    for layer, weights in (("fc6", 9216 * 4096), ("fc7", 4096 * 4096)):
        assert products[layer]["bound"] == "memory"
        reading = size * weights / predict.floors.BYTES
        assert reading < products[layer]["seconds"] - predict.START < 1.05 * reading
    if precision != "fp32":
        assert max(found["kernels"], key=lambda k: k["seconds"]) == products["fc6"]
    assert f"{len(counted)} launches" in capsys.readouterr().out


def test_one_image_takes_the_launches_of_eight():
    """The kernels compute images in blocks of eight."""
    few, some, many = (launches.of("forward", network("alexnet"), images, "bf16") for images in (1, 5, 8))
    assert few == some == many
    assert [launches.computed("forward", images) for images in (1, 5, 8, 9, 65)] == [8, 8, 8, 16, 128]
    assert launches.computed("step", 5) == 5
    assert [launch.op for launch in few] == [
        *("conv_forward", "lrn_pool_forward") * 2, *["conv_forward"] * 3, "max_pool_forward", *["linear_forward"] * 6
    ]  # fmt: skip


@pytest.mark.slow
def test_another_step_is_counted_when_it_is_asked_for(tmp_path):
    """As if it was the committed one, whose kernels and instructions it has; and another network."""
    if cubins.nvcc() is None or sass_report.nvdisasm() is None:
        pytest.skip("nvcc or nvdisasm is not installed")
    file = tmp_path / "predicted.json"
    assert predict.main(["--model", "alexnet-tiny", "-b", "8", "--precision", "tf32", "-o", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["launches"] == len(found["kernels"]) > 30
    assert found["seconds"] > found["floor_seconds"] > 0
    started = launches.of("step", network("alexnet-tiny"), 8, "tf32")
    for kernel, launch in zip(found["kernels"], started, strict=True):
        assert (kernel["op"], kernel["blocks"]) == (launch.op, launch.blocks)
        assert kernel["instructions"] >= launch.blocks * launch.threads / 32  # every warp has some
    products = {k["layer"] for k in found["kernels"] if k["tensor_clocks"]}
    assert products == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}


def test_what_cannot_be_counted_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(predict, "COUNTING", tmp_path / "count.py")
    predict.COUNTING.write_text("raise SystemExit('needs a compiler')")
    with pytest.raises(ValueError, match=r"alexnet, 64 images, bf16 cannot be counted here \(needs a compiler\)"):
        predict.work("step", network("alexnet"), 64, "bf16")


def test_counts_of_other_launches_are_an_error(monkeypatch, tmp_path):
    changed = json.loads(predict.GOLDEN.read_text())
    name = predict.key("step", "alexnet", 128, "bf16")
    changed["launches"][name][1]["grid"][0] += 1
    monkeypatch.setattr(predict, "GOLDEN", tmp_path / "instructions.json")
    predict.GOLDEN.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"conv1 conv_forward starts wgmma_maps_kernel.*counted was.*\(133, 1, 1\)"):
        predict.work("step", network("alexnet"), 128, "bf16")
    launches = len(changed["launches"][name])
    del changed["launches"][name][0]
    predict.GOLDEN.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=f"{launches} launches, {launches - 1} were counted"):
        predict.work("step", network("alexnet"), 128, "bf16")


def test_measured_stands_beside_predicted(tmp_path, capsys):
    predicted = predict.work("step", network("alexnet"), 128, "bf16")
    calls = {}
    for kernel in predicted["kernels"]:
        call = calls.setdefault(kernel["call"], {"layer": kernel["layer"], "kernel": kernel["op"], "seconds": 0.0})
        call["seconds"] += kernel["seconds"]
    calls[5]["seconds"] += 0.5
    measured = {
        "benchmark": "timeline",
        "model": "alexnet",
        "batch_size": 128,
        "precision": "bf16",
        "launches": list(calls.values()),
    }
    file = tmp_path / "timeline.json"
    file.write_text(json.dumps(measured))
    assert predict.main(["--beside", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"largest disagreement: {calls[5]['layer']} {calls[5]['kernel']}, predicted" in said
    assert said.count(" 1.00\n") == len(calls) - 1
    measured["launches"].pop()
    with pytest.raises(ValueError, match="does not consist of the ops of this program"):
        predict.beside(predicted, measured)


@pytest.mark.parametrize(("text", "complaint"), [(None, "cannot be read: No such file"), ("[]", "is not a timeline")])
def test_what_is_no_timeline_is_an_error(tmp_path, text, complaint):
    file = tmp_path / "timeline.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=f"timeline.json {complaint}"):
        predict.main(["--beside", str(file)])


# ---- the emulator's notes


def test_launches_run_again_once_they_are_given_back():
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    _emu.note_launches(132)
    try:
        _emu.relu_forward(64, "fp32", 16, 32, 0)
    finally:
        [(signature, grid, _, shared_bytes, parameters, cluster)] = _emu.noted_launches()
    assert launches.kernel_name(signature) == "relu_forward_kernel<float>"
    assert (grid[1:], shared_bytes, len(parameters), cluster) == ((1, 1), 0, 3, 1)
    assert [int.from_bytes(value, "little") for _, value in parameters] == [64, 16, 32]
    _emu.relu_forward(64, "fp32", x.ctypes.data, y.ctypes.data, 0)
    assert (y == 1).all()
    assert _emu.noted_launches() == []


def test_there_is_at_least_one_multiprocessor():
    with pytest.raises(ValueError, match="at least 1 multiprocessor, got 0"):
        _emu.note_launches(0)


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void convnet::{anonymous}::f(int)", "f"),
        (
            "void convnet::f(A) [with T = convnet::Tile<1, true>; U = float; int64_t = long int]",
            "f<Tile<1, true>, float>",
        ),
        ("void f(A) [with T = Tile<2>; W = convnet::{anonymous}::Rows; typename T::E = float]", "f<Tile<2>, Rows>"),
    ],
)
def test_names_of_kernels(signature, name):
    assert launches.kernel_name(signature) == name


def test_defaults_are_left_out_of_names():
    assert launches.is_kernel("f<Tile<128, 64>, Rows>", "f<Tile<128, 64, 8>, Rows>")
    assert not launches.is_kernel("f<Tile<128, 64>, Rows>", "f<Tile<128, 32, 8>, Rows>")
    assert not launches.is_kernel("f<Tile<128, 64>, Rows>", "g<Tile<128, 64>, Rows>")


# ---- machine code

LISTING = """
	.section	.nv.constant2._Z4loopPfi,"a",@progbits
        /*0000*/ 	.byte	0xe0, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00
	.section	.text._Z4loopPfi,"ax",@progbits
_Z4loopPfi:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LDC R2, c[0x0][0x218] ;
        /*0020*/                   ISETP.GE.AND P0, PT, R0, 0x28, PT ;
        /*0030*/               @P0 EXIT ;
        /*0040*/                   IMAD.MOV.U32 R3, RZ, RZ, RZ ;
.L_x_0:
        /*0050*/                   VIADD R3, R3, 0x1 ;
        /*0060*/                   FFMA R9, R9, R9, R9 ;
        /*0070*/                   ISETP.NE.AND P1, PT, R3, R2.reuse, PT ;
        /*0080*/               @P1 BRA `(.L_x_0) ;
        /*0090*/                   S2UR UR4, SR_CTAID.X ;
        /*00a0*/                   LOP3.LUT R4, R0, 0x20, RZ, 0xc0, !PT ;
        /*00b0*/                   LEA.HI R4, R4, RZ, RZ, 0x1d ;
        /*00c0*/                   LDC R4, c[0x2][R4] ;
.L_x_1:
        /*00d0*/                   BRX R4 -0xe0                          (*"BRANCH_TARGETS .L_x_2,.L_x_3"*);
.L_x_2:
        /*00e0*/                   NOP ;
        /*00f0*/                   EXIT ;
.L_x_3:
        /*0100*/                   MOV R6, 0x120 ;
        /*0110*/                   CALL.REL.NOINC `($__helper) ;
        /*0120*/                   LDG.E.128 R12, desc[UR4][R2.64] ;
        /*0130*/              @!P0 STG.E.U16 desc[UR4][R2.64], R12 ;
        /*0140*/                   EXIT ;
$__helper:
        /*0150*/                   FADD R9, R9, R9 ;
        /*0160*/                   RET.REL.NODEC R6 `(_Z4loopPfi) ;
"""


def test_instructions_are_counted_as_often_as_they_run():
    """Of three blocks of 64 threads, of which 40 go through a loop of 7 trips; a jump table then ends the first warp
    and leads the 8 lanes of the second through a subroutine."""
    table = count_instructions.words(sections(LISTING, ".nv.constant2.")["_Z4loopPfi"])
    code = code_of(sections(LISTING, ".text.")["_Z4loopPfi"], table)
    parameters = [(8, bytes(8)), (4, (7).to_bytes(4, "little"))]
    found = execute.execute(code, launches.Launch(0, "", "", "loop", (3, 1, 1), (64, 1, 1), 0, parameters, 0.0, 0.0))
    assert (table, found.blocks) == ([0xE0, 0x100], 3)
    assert {name: found.total(name) for name in ("FFMA", "NOP", "FADD", "LDG.128", "STG.16")} == {
        "FFMA": 3 * 2 * 7, "NOP": 3, "FADD": 3, "LDG.128": 3, "STG.16": 3,
    }  # fmt: skip
    assert found.total() == 3 * (2 * (5 + 7 * 4 + 5) + 2 + 2 + 2 + 3)
    assert (found.loaded.tolist(), found.stored.tolist()) == ([8 * 16] * 3, [8 * 2] * 3)


@pytest.mark.parametrize(("cluster", "stored"), [(1, [128] * 4), (2, [128, 0] * 2), (4, [128, 0, 0, 0])])
def test_blocks_know_their_places_in_a_cluster(cluster, stored):
    lines = (
        "S2UR UR4, SR_CgaCtaId", "ISETP.NE.U32.AND P0, PT, RZ, UR4, PT",
        "LDC R3, c[0x0][0x140]",  # whether there are clusters
        "ISETP.EQ.U32.AND P1, PT, R3, 0x1, PT", "@!P1 BRA 0x60", "UCGABAR_ARV", "@!P0 STG.E desc[UR6][R4.64], R8",
        "EXIT",
    )  # fmt: skip
    code = code_of("\n".join(f"        /*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)), [])
    launch = launches.Launch(0, "", "", "f", (4, 1, 1), (32, 1, 1), 0, [], 0.0, 0.0, cluster)
    found = execute.execute(code, launch)
    assert found.stored.tolist() == stored
    assert found.total("UCGABAR_ARV") == (4 if cluster > 1 else 0)


def test_a_loop_that_does_not_end_is_an_error(monkeypatch):
    code = code_of("_Z1fv:\n.L_x_0:\n        /*0000*/                   BRA `(.L_x_0) ;\n", [])
    monkeypatch.setattr(execute.Machine, "most_steps", 10)
    with pytest.raises(RuntimeError, match="a loop at 0x0 does not end"):
        execute.execute(code, launches.Launch(0, "", "", "f", (1, 1, 1), (32, 1, 1), 0, [], 0.0, 0.0))


WIDE = (1 << 64) - 1


def machine(*lines):
    """After these instructions, without a branch, in one warp whose parameters are two numbers of 64 bits."""

    def run(a, b):
        code = code_of("\n".join(f"        /*{16 * i:04x}*/ {line} ;" for i, line in enumerate([*lines, "EXIT"])), [])
        parameters = [(8, (a & WIDE).to_bytes(8, "little")), (8, (b & WIDE).to_bytes(8, "little"))]
        launch = launches.Launch(0, "", "", "f", (1, 1, 1), (32, 1, 1), 0, parameters, 0.0, 0.0)
        found = execute.Machine(code, launch, 32)
        found.run()
        return [int(found.value(f"R{i}")[0]) for i in (20, 21)]

    return run


LOAD = ("LDC.64 R2, c[0x0][0x210]", "LDC.64 R4, c[0x0][0x218]")
LOW = (1 << 32) - 1


def signed(x, bits=32):
    return (x & (1 << bits) - 1) - (1 << bits if x >> bits - 1 & 1 else 0)


OPERATIONS = {
    "64-bit sum": (("IADD3 R20, P0, R2, R4, RZ", "IADD3.X R21, R3, R5, RZ, P0, !PT"), lambda a, b: a + b),
    "64-bit difference": (("IADD3 R20, P0, R2, -R4, RZ", "IADD3.X R21, R3, ~R5, RZ, P0, !PT"), lambda a, b: a - b),
    "64-bit difference by IMAD": (("IADD3 R20, P0, R2, -R4, RZ", "IMAD.X R21, R3, 0x1, ~R5, P0"), lambda a, b: a - b),
    "product of low words": (("IMAD.WIDE.U32 R20, R2, R4, RZ",), lambda a, b: (a & LOW) * (b & LOW)),
    "signed product": (("IMAD.WIDE R20, R2, R4, R2",), lambda a, b: signed(a) * signed(b) + a),
    "address": (("LEA R20, P0, R2, R4, 0x2", "LEA.HI.X R21, R2, R5, R3, 0x2, P0"), lambda a, b: (a << 2) + b),
    "shift right": (("SHF.R.U64 R20, R2, 0x7, R3", "SHF.R.S32.HI R21, RZ, 0x7, R3"), lambda a, b: signed(a, 64) >> 7),
    "shift left": (("SHF.L.U32 R20, R2, 0x3, RZ", "SHF.L.U64.HI R21, R2, 0x3, R3"), lambda a, b: a << 3),
    "logic": (("LOP3.LUT R20, R2, R4, R3, 0x96, !PT",), lambda a, b: (a ^ b ^ a >> 32) & LOW),
    "least": (("VIADDMNMX R20, R2, 0x5, R4, PT",), lambda a, b: min(signed(a + 5), signed(b)) & LOW),
    "greatest, unsigned": (("VIMNMX.U32 R20, R2, R4, !PT",), lambda a, b: max(a & LOW, b & LOW)),
    "signed comparison": (
        ("ISETP.LT.U32.AND P0, PT, R2, R4, PT", "ISETP.LT.AND.EX P0, PT, R3, R5, PT, P0", "SEL R20, R2, R4, P0"),
        lambda a, b: min(a, b, key=lambda x: signed(x, 64)) & LOW,
    ),
    "predicated": (("ISETP.GE.AND P1, PT, R2, RZ, PT", "MOV R20, R4", "@!P1 IADD3 R20, -R2, RZ, RZ"),
                   lambda a, b: (b if signed(a) >= 0 else -a) & LOW),
    "kept predicate": (
        ("ISETP.GT.U32.AND P2, PT, R2, R4, PT", "P2R R7, PR, RZ, 0x4", "PLOP3.LUT P2, PT, PT, PT, PT, 0x8, 0x0",
         "R2P PR, R7, 0x4", "SEL R20, R2, R4, P2"),
        lambda a, b: max(a & LOW, b & LOW),
    ),
    "division": (
        ("I2F.U32.RP R8, R4", "ISETP.NE.U32.AND P2, PT, R4, RZ, PT", "MUFU.RCP R8, R8", "VIADD R8, R8, 0xffffffe",
         "F2I.FTZ.U32.TRUNC.NTZ R9, R8", "IMAD.MOV.U32 R8, RZ, RZ, RZ", "IADD3 R10, RZ, -R9, RZ",
         "IMAD R10, R10, R4, RZ", "IMAD.HI.U32 R9, R9, R10, R8", "IMAD.HI.U32 R20, R9, R2, RZ",
         "IADD3 R10, -R20, RZ, RZ", "IMAD R10, R4, R10, R2", "ISETP.GE.U32.AND P0, PT, R10, R4, PT",
         "@P0 IADD3 R10, R10, -R4, RZ", "@P0 VIADD R20, R20, 0x1", "ISETP.GE.U32.AND P1, PT, R10, R4, PT",
         "@P1 VIADD R20, R20, 0x1", "@!P2 LOP3.LUT R20, RZ, R4, RZ, 0x33, !PT"),
        lambda a, b: (a & LOW) // (b & LOW) if b & LOW else LOW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OPERATIONS)
def test_arithmetic(what):
    lines, expected = OPERATIONS[what]
    run, draw = machine(*LOAD, *lines), random.Random(what)
    numbers = [0, 1, 2, LOW, 1 << 31, 1 << 32, WIDE, 1 << 63, 7]
    pairs = [(a, b) for a in numbers for b in numbers]
    pairs += [(draw.getrandbits(draw.randint(1, 64)), draw.getrandbits(draw.randint(1, 64))) for _ in range(50)]
    for a, b in pairs:
        low, high = run(a, b)
        assert high << 32 | low == expected(a, b) & WIDE, (a, b)


# ---- what is committed


def test_what_is_committed_is_what_was_counted():
    assert list(GOLDEN["launches"]) == [predict.key(*work) for work in COMMITTED]


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(count_instructions, "GOLDEN", tmp_path / "instructions.json")
    count_instructions.write("13.0", GOLDEN["launches"])
    assert json.loads(count_instructions.GOLDEN.read_text()) == {"nvcc": "13.0", "launches": GOLDEN["launches"]}


def test_differences_are_named():
    changed = json.loads(json.dumps(GOLDEN["launches"]))
    assert count_instructions.differences(changed, GOLDEN["launches"]) == []
    name = predict.key(*COMMITTED[0])
    changed[name][3]["loaded"] += 1
    [found] = count_instructions.differences(changed, GOLDEN["launches"])
    assert found.startswith(f"{name}, launch 3, {changed[name][3]['kernel']}: loaded ")
    del changed[name]
    assert count_instructions.differences(changed, GOLDEN["launches"]) == [f"{name}: is counted here or there only"]


@pytest.mark.slow
def test_what_is_committed_is_what_the_compiler_makes():
    """Of every kernel the launch with the fewest instructions; ``tools/count_instructions.py`` compares all of them."""
    compiler, program = cubins.nvcc(), sass_report.nvdisasm()
    if compiler is None or program is None:
        pytest.skip("nvcc or nvdisasm is not installed")
    if cubins.release(compiler) != GOLDEN["nvcc"]:
        pytest.skip(f"counts are of nvcc {GOLDEN['nvcc']}, this is {cubins.release(compiler)}")
    kernels, least = count_instructions.kernels(compiler, program), {}
    for part, model, images, precision in COMMITTED:
        started = launches.of(part, network(model), images, precision)
        for launch, count in zip(started, predict.counts(part, model, images, precision), strict=True):
            there = least.setdefault(count["kernel"], (launch, count))
            if sum(count["instructions"].values()) < sum(there[1]["instructions"].values()):
                least[count["kernel"]] = launch, count
    assert len(least) > 60
    for name, (launch, count) in least.items():
        assert count_instructions.count(name, kernels[name], launch) == count
