"""The benchmarks run, write what they found, and refuse to time what is wrong. No test here looks at a time."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import fake_cuda
import numpy as np
import pytest
import reference
from runs import ENVIRONMENT

from convnet import Network
from convnet.data import open_dataset
from convnet.devices import cuda as cuda_device
from convnet.devices import opening
from convnet.devices import protocol as backend
from convnet.kernels.shapes import ConvShape, LinearShape
from convnet.network import networks, spec
from convnet.training import trainer

sys.path.append(str(Path(__file__).resolve().parents[2]))
benchmarks = pytest.importorskip("benchmarks", reason="the benchmarks come with a checkout only")
cudnn, data, floors, loop, ops, our_network, pictures, prepare, problems, report, step, timeline, timing = (
    __import__(f"benchmarks.{name}", fromlist=["_"])
    for name in (
        *("cudnn", "data", "floors", "train", "ops", "our_network", "pictures", "prepare", "problems", "report"),
        *("step", "timeline", "timing"),
    )
)

TINY = ["--model", "alexnet-tiny", "-b", "3", "--seconds", "0"]
# a layer whose passes use the kernel
KERNELS = {
    "conv_forward": "conv2", "conv_backward_data": "conv2", "conv_backward_filter": "conv1", "linear_forward": "fc7",
    "linear_backward_data": "fc7", "linear_backward_filter": "fc7", "linear_backward_filter_update": "fc8",
    "max_pool_forward": "pool1", "max_pool_backward": "pool1", "lrn_forward": "norm1", "lrn_backward": "norm1",
    "avg_pool_forward": "avg-pool", "avg_pool_backward": "avg-pool", "rand_pool_forward": "rand-pool",
    "rand_pool_mean": "rand-pool", "rnorm_forward": "rnorm",
    "rnorm_backward": "rnorm", "cnorm_forward": "cnorm", "cnorm_backward": "cnorm", "blur": "blur",
    "nailbed_forward": "nailbed", "nailbed_backward": "nailbed", "relu_backward": "conv3", "dropout_forward": "drop6",
    "softmax_cross_entropy": "softmax", "sgd": "sgd",
    "local_forward": "local", "local_backward_data": "local", "local_backward_filter": "local",
}  # fmt: skip


@pytest.fixture
def known_peaks(monkeypatch):
    """Spares the large copy and the large product."""
    monkeypatch.setattr(ops, "peaks", lambda clock, seconds: (1e9, 1e9))


def test_every_pass_of_every_layer_has_a_row(tmp_path, capsys):
    assert ops.main([*TINY, "-o", str(tmp_path / "ops.json")]) == 0
    written = json.loads((tmp_path / "ops.json").read_text())
    rows = {(row["layer"], row["name"]) for row in written["rows"]}
    for layer in networks.network("alexnet-tiny").layers:
        assert (layer.name, "forward") in rows
        if isinstance(layer, (spec.Conv, spec.Linear)):
            assert (layer.name, "backward filter") in rows
            assert ((layer.name, "backward data") in rows) == (layer.name != "conv1")
    assert {(name, "forward") for name in problems.WINDOWS} <= rows
    assert {("softmax", "loss"), ("sgd", "update"), ("pool1", "backward"), ("norm2", "backward")} <= rows
    assert all(row["seconds"] > 0 and row["gbytes"] > 0 for row in written["rows"])
    assert {"device", "commit", "versions", "processor", "blas", "peak_flops", "seed"} <= set(written)
    assert "conv2 backward data" in capsys.readouterr().out


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wrong_kernel_is_not_timed(kernel, known_peaks, monkeypatch, tmp_path, capsys):
    """All others are."""
    from convnet.devices.host import HostArray, HostStream

    right = HostStream.launch

    def wrong(stream, function, *arguments):
        arrays = [a.values for a in arguments if isinstance(a, HostArray) and a.dtype == np.float32]
        before = [a.copy() for a in arrays]
        right(stream, function, *arguments)
        for array, old in zip(arrays, before, strict=True):  # whatever was written comes out slightly too large
            if function.__name__ == kernel and not np.array_equal(array, old, equal_nan=True):
                array *= np.float32(1.001)

    monkeypatch.setattr(HostStream, "launch", wrong)
    other = "softmax" if kernel == "sgd" else "sgd"
    assert ops.main([*TINY, "--layer", KERNELS[kernel], other, "-o", str(tmp_path / "ops.json")]) == 1
    *rows, right = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert right["layer"] == other
    assert right["seconds"] > 0
    assert not right["failed"]
    wrong = [row for row in rows if row["failed"]]
    assert wrong
    assert all("WrongResult" in row["failed"] and row["seconds"] is None for row in wrong)
    assert all(row["seconds"] > 0 for row in rows if not row["failed"])
    shown = capsys.readouterr()
    assert f"{wrong[0]['layer']} {wrong[0]['name']}: WrongResult" in shown.err
    assert "not timed: WrongResult" in shown.out


def test_a_layer_that_cannot_be_prepared_has_a_row(known_peaks, monkeypatch, tmp_path):
    def no_memory(bench, layer):
        raise backend.OutOfMemory("cpu: no memory")

    monkeypatch.setattr(problems, "_pool", no_memory)
    assert ops.main([*TINY, "--layer", "pool1", "drop6", "-o", str(tmp_path / "ops.json")]) == 1
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert [(row["layer"], row["seconds"] is None) for row in rows] == [("pool1", True), ("drop6", False)]
    assert "no memory" in rows[0]["failed"]


def test_rows_are_written_one_by_one(known_peaks, monkeypatch, tmp_path):
    def stopped(bench, layer):
        raise KeyboardInterrupt

    monkeypatch.setattr(problems, "_pool", stopped)
    with pytest.raises(KeyboardInterrupt):
        ops.main([*TINY, "--layer", "drop6", "pool1", "-o", str(tmp_path / "ops.json")])
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert [row["layer"] for row in rows] == ["drop6"]
    assert rows[0]["seconds"] > 0


def test_peaks_that_cannot_be_measured(monkeypatch, tmp_path):
    def broken(clock, seconds):
        raise RuntimeError("broken")

    monkeypatch.setattr(ops, "peaks", broken)
    assert ops.main([*TINY, "--layer", "drop6", "-o", str(tmp_path / "ops.json")]) == 1
    peaks, row = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert (peaks["layer"], peaks["failed"]) == ("the peaks", "RuntimeError: broken")
    assert row["seconds"] > 0
    assert row["memory_share"] is None


def test_a_time_that_does_not_grow_with_the_work_is_told():
    row = {"seconds": 1e-3, "noise": 0.0, "gflops": 1.0, "gbytes": 1.0}
    rows = [ops.Row("conv1", "forward", growth=growth, **row) for growth in (2.0, 1.5)]
    assert ["does not grow" in line for line in ops.report(rows).splitlines()] == [False, False, True, False]


def test_emulator_beside_numpy(tmp_path):
    if importlib.util.find_spec("convnet.kernels._emu") is None:
        pytest.skip("the emulator is not built")
    arguments = ["--device", "emu", *TINY, "--layer", "fc7", "drop7", "-o", str(tmp_path / "ops.json")]
    assert ops.main(arguments) == 0
    written = json.loads((tmp_path / "ops.json").read_text())
    assert all(row["over_cpu"] > 0 for row in written["rows"])


def test_an_unknown_layer_is_named(capsys):
    with pytest.raises(SystemExit) as exit:
        ops.main([*TINY, "--layer", "conv9"])
    assert exit.value.code == 2
    assert "conv9" in capsys.readouterr().err


def test_passes_come_with_their_work():
    device = opening.open_device("cpu")
    found = {p.name: p for p in problems.problems(device, networks.network("alexnet"), 1, "fp32", 0, ["fc8"])}
    assert found["forward"].flops == 2 * 4096 * 1000
    assert found["forward"].bytes == 4 * (4096 + 1000 + 4096 * 1000)


def emulator():
    try:
        return opening.open_device("emu")
    except backend.DeviceError as error:
        pytest.skip(str(error))


def test_bfloat16_reads_half_the_bytes():
    device = emulator()
    found = {p.name: p for p in problems.problems(device, networks.network("alexnet-tiny"), 8, "bf16", 0, ["fc8"])}
    assert found["forward"].bytes == 2 * (8 * (256 + 10) + 256 * 10)
    assert found["backward filter"].bytes == 2 * 8 * (256 + 10) + 4 * 256 * 10  # the gradient is float32


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_passes_are_checked_in_every_precision(precision, monkeypatch):
    device = emulator()
    layers = ["conv1", "conv4", "norm1", "pool1", "drop6", "fc8", *problems.WINDOWS, "local", "softmax", "sgd"]
    for problem in problems.problems(device, networks.network("alexnet-tiny"), 3, precision, 0, layers):
        problem.run()
        device.synchronize()
        problem.check()
    # operands rounded once more, to 6 bits of mantissa: a product made of others is found out
    operand = problems.Bench.operand
    coarse = np.uint32(0xFFFE0000)
    monkeypatch.setattr(
        problems.Bench,
        "operand",
        lambda *a: (operand(*a).astype(np.float32).view(np.uint32) & coarse).view(np.float32).astype(np.float64),
    )
    for problem in problems.problems(device, networks.network("alexnet-tiny"), 3, precision, 0, ["fc8", "local"]):
        problem.run()
        device.synchronize()
        if problem.shape is not None or problem.layer == "local":
            with pytest.raises(problems.WrongResult):
                problem.check()


def test_floors():
    assert floors.seconds(790e12, 0, "bf16") == floors.seconds(0, 4.3e12, "bf16") == 1.0
    assert floors.bound(2e12, 1e9, "bf16") == "math"
    assert floors.bound(1e9, 1e9, "bf16") == "memory"


# microseconds of a step of alexnet on an H200, worked out by hand from the sizes of its layers, fused as in floors.plan
@pytest.mark.parametrize(
    ("precision", "N", "expected"),
    [("bf16", 128, 1039), ("bf16", 256, 1779), ("bf16", 1024, 6342), ("tf32", 128, 1791), ("fp32", 128, 10029)],
)
def test_floor_of_a_step(precision, N, expected):
    works = floors.plan(networks.network("alexnet"), N, precision)
    assert 1e6 * floors.total(works, precision) == pytest.approx(expected, rel=0.005)


def test_floor_of_parts():
    found = {part: floors.plan(networks.network("alexnet"), 128, "bf16", part) for part in floors.PARTS}
    assert set(step.WORK) == set(floors.PARTS)
    forward, trained, whole = (floors.total(found[part], "bf16") for part in floors.PARTS)
    assert forward < trained < whole
    micro = {(w.layer, w.name): 1e6 * floors.seconds(w.flops, w.bytes, "bf16") for w in found["step"]}
    assert micro["norm1+pool1", "backward"] == pytest.approx(38.7, abs=0.05)
    assert micro["fc6", "backward filter and update"] == pytest.approx(158.8, abs=0.2)
    assert micro["fc6", "backward data"] == pytest.approx(18.9, abs=0.05)
    assert micro["conv2", "forward"] == pytest.approx(72.6, abs=0.05)
    apart = floors.plan(networks.network("alexnet", lrn=False), 128, "bf16")
    assert ("pool1", "backward") in {(w.layer, w.name) for w in apart}


@pytest.mark.parametrize("direction", ["forward", "backward data", "backward filter"])
def test_pytorch_computes_the_same_convolution(direction):
    """Also where the last window overhangs: every candidate on a CPU against float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    shape = ConvShape.of(4, 6, 14, 13, 8, 5, 3, stride=4, padding=1, groups=2, ceil_mode=True, lanes=4)
    generated = [cudnn._normal(s, "fp32", "cpu", seed) for seed, s in enumerate([(4, 6, 15, 13), (8, 3, 5, 3)])]
    x, weight = (t.numpy() for t in generated)
    x[:, :, 14:] = 0
    dy = cudnn._normal((4, 8, shape.P, shape.Q), "fp32", "cpu", 2).numpy()
    geometry = {"stride": 4, "top": 1, "left": 1, "P": shape.P, "Q": shape.Q, "groups": 2}
    dx, dweight, _ = reference.conv_backward(dy, x, weight, **geometry)
    y = reference.conv_forward(x, weight, None, **geometry)
    expected = {"forward": y, "backward data": dx, "backward filter": dweight}[direction]
    candidates = cudnn.convolution(shape, direction, "fp32", "cpu")
    assert len(candidates) == 2
    for work in candidates.values():
        np.testing.assert_allclose(work().numpy(), expected, rtol=1e-4, atol=1e-3)
    assert torch.backends.cudnn.benchmark is False
    with cudnn.settings("tf32"):
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark is False


@pytest.fixture
def few_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "DISTINCT", 4)
    monkeypatch.setattr(pictures, "BATCHES", 2)


@pytest.fixture
def narrow(monkeypatch):
    """A network for whose steps one need not wait, under a name."""
    monkeypatch.setitem(networks.NETWORKS, "narrow", lambda: networks.network("alexnet-tiny", width=0.25, crop=32))
    return "narrow"


@pytest.fixture
def torch_network(monkeypatch):
    """The peer, on one thread: small problems, for which threads would wait for each other."""
    peer = pytest.importorskip("benchmarks.torch_network", reason="PyTorch is not installed")
    monkeypatch.setattr(step, "cpu_threads", lambda: 1)
    peer.torch.set_num_threads(1)
    return peer


STEP = ["--device", "cpu", "--model", "alexnet-tiny", "-b", "3", "--turns", "1", "--inference", ""]


def test_whole_steps_without_a_peer(few_pictures, tmp_path, capsys):
    assert step.main([*STEP, "--no-torch", "--inference", "2", "-o", str(tmp_path / "step.json")]) == 0
    written = json.loads((tmp_path / "step.json").read_text())
    found = [(row["batch_size"], row["part"]) for row in written["ours"]]
    assert found == [(3, "step"), (3, "forward+backward"), (3, "forward"), (2, "forward")]
    assert all(row["images_per_second"] > 0 and row["memory_bytes"] > 0 for row in written["ours"])
    assert written["left_out"] == "not wanted"
    assert not written["rows"]
    assert "images/s" in capsys.readouterr().out


def test_whole_steps_beside_pytorch(torch_network, few_pictures, tmp_path):
    assert step.main([*STEP, "--parts", "step,forward", "-o", str(tmp_path / "step.json")]) == 0
    written = json.loads((tmp_path / "step.json").read_text())
    assert len(written["rows"]) == 8  # two memory formats, two ways of normalising, two parts
    for row in written["rows"]:
        assert row["ratio"] > 0, row
        assert len(row["turns"]["convnet"]) == 1
    for best in written["best"]:
        rows = [row for row in written["rows"] if row["part"] == best["part"]]
        assert best["torch"] == min(rows, key=lambda row: row["seconds"])


def test_rows_that_fail_are_kept(torch_network, few_pictures, monkeypatch):
    """CUDA graphs cannot work on a CPU, a wrong network is not timed, and what comes too late is left out."""
    by_band = torch_network.TorchNetwork._lrn_by_band
    wrong = spec.Lrn("norm1", k=1.01)
    monkeypatch.setattr(
        torch_network.TorchNetwork,
        "_lrn_by_band",
        lambda net, x, layer: by_band(net, x, wrong if layer.name == "norm1" else layer),
    )
    race = step.Race("alexnet-tiny", "cpu", ["eager", "graph"], turns=1)
    saved = []
    race.save = lambda: saved.append(len(race.rows))
    race.run(3, "fp32", ["step"])
    assert saved == [*range(1, 9), 8]
    failed = {(row["mode"], row["variant"]): row.get("failed", "") for row in race.rows}
    assert "not timed" in failed["graph", "contiguous, LRN rewritten"]  # asked for again, it is still wrong
    assert not failed["eager", "contiguous"]
    assert failed["graph", "contiguous"]
    assert "not timed" in failed["eager", "contiguous, LRN rewritten"]
    assert race.best[0]["torch"]["mode"] == "eager"
    race.run(2, "fp32", ["step"], share=0.0)
    assert [row.get("failed") for row in race.rows[8:]][1:] == [step.LATE] * 7
    race.run(1, "fp32", ["step"], share=-1.0)
    assert step.LATE in race.ours[-1]["failed"]
    assert step.LATE in step.report(race.best)


def test_networks_that_differ_do_not_race():
    logits = np.arange(6.0).reshape(2, 3)
    assert step.check_agreement(logits, logits) == 0
    with pytest.raises(RuntimeError, match="not timed"):
        step.check_agreement(logits, logits * 1.001)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peer_is_the_same_function(torch_network, precision):
    """In every variant, within what is allowed for the precision, which weights that are cut a little shorter miss.

    Whether the two are equal to the bit depends on the processor.
    """
    device = "cpu" if precision == "fp32" else "emu"
    stored = np.stack([pictures.picture(64, seed) for seed in range(2)])
    mean = our_network.mean_image(64)
    with Network("alexnet-tiny", device, batch_size=2, precision=precision) as net:
        images = (stored.transpose(0, 3, 1, 2) - mean) * np.float32(net.spec.input_scale)
        ours = net.forward(np.ascontiguousarray(images))
        weights = net.weights()
    torch = torch_network.torch
    batch = torch_network.on_device(net.spec, stored, mean, "cpu"), torch.arange(2)
    for variant in torch_network.VARIANTS[:4]:
        peer = torch_network.TorchNetwork(net.spec, weights, [batch], variant, "cpu", precision)
        step.check_agreement(ours, peer.first_logits(), precision)
    peer._lrn = peer._lrn_by_slices  # what is given to the compiler
    step.check_agreement(ours, peer.first_logits(), precision)
    before = peer.first_logits()
    peer.step(0)
    assert (peer.first_logits() != before).any()
    kept = {"fp32": np.uint32(0xFFFFFC00), "bf16": np.uint32(0xFFFC0000)}[precision]  # 13 bits of mantissa, and 5
    short = {name: (value.view(np.uint32) & kept).view(np.float32) for name, value in weights.items()}
    variant = torch_network.VARIANTS[0]
    wrong = torch_network.TorchNetwork(net.spec, short, [batch], variant, "cpu", precision).first_logits()
    with pytest.raises(RuntimeError, match="not timed"):
        step.check_agreement(ours, wrong, precision)


def test_batches_of_the_step_are_those_of_the_peer(torch_network, few_pictures):
    with Network("alexnet-tiny", "cpu", batch_size=3) as net:
        album, batches = pictures.Album(73), pictures.batches(3, 10, 73, 64, seed=1)
        our_network.OurNetwork(net, album, batches).forward(1)
        seen = net._intake.slots[0].inputs[0].download()[0].transpose(3, 0, 1, 2)
        expected = torch_network.on_device(net.spec, batches[1].images(album, 64), our_network.mean_image(64), "cpu")
        net.keep_images(len(album.images), 73)  # as on a GPU
        net.store_images(0, *album.planes)
        net._intake.kept(batches[1].indices, batches[1].windows, batches[1].noise)
        np.testing.assert_array_equal(net._intake.slots[0].inputs[0].download()[0].transpose(3, 0, 1, 2), seen)
    np.testing.assert_allclose(seen, expected[:, :, :64, :64].numpy(), rtol=1e-6, atol=1e-6)
    assert not expected[:, :, 64:].any()
    assert (batches[0].indices != batches[1].indices).any() or (batches[0].windows != batches[1].windows).any()


# what one step of alexnet-tiny launches on a CPU, up to where the towers join
FIRST_LAUNCHES = [
    ("conv1", "conv_forward"), ("norm1", "lrn_pool_forward"),
    ("conv2", "conv_forward"), ("norm2", "lrn_pool_forward"), ("conv3", "conv_forward"),
]  # fmt: skip


def test_a_timeline_knows_whose_kernels_run(few_pictures, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "peaks", lambda clock, seconds: (1e9, 1e11))
    files = ["-o", str(tmp_path / "t.json"), "--figure", str(tmp_path / "t.svg")]
    assert timeline.main(["--model", "alexnet-tiny", "-b", "2", *files]) == 0
    written = json.loads((tmp_path / "t.json").read_text())
    launches = [timeline.Launch(**launch) for launch in written["launches"]]
    found = [(x.layer, x.kernel) for x in launches]
    assert found[: 1 + len(FIRST_LAUNCHES)] == [("", "ingest"), *FIRST_LAUNCHES]
    fused = {("fc7", "linear_backward_filter_update"), ("norm2", "lrn_pool_backward"), ("", "sgd_many")}
    assert {("", "softmax_cross_entropy"), *fused} <= {*found}
    conv2 = launches[3]
    assert conv2.flops == 2 * 2 * 64 * 15 * 15 * 16 * 25
    assert conv2.bytes == 4 * (2 * 15 * 15 * (32 + 64) + 64 * 16 * 25 + 64)
    assert conv2.floor == max(conv2.flops / 1e11, conv2.bytes / 1e9)
    starts = [x.start for x in launches]
    assert starts == sorted(starts)
    assert starts[0] == 0 < min(x.seconds for x in launches)
    assert written["seconds"] >= written["kernel_seconds"] == pytest.approx(sum(x.seconds for x in launches))
    shown = capsys.readouterr().out
    assert "conv2 conv_backward_data" in shown
    assert "largest gaps" in shown
    assert "conv2  conv_backward_data" in (tmp_path / "t.svg").read_text()


def test_operands_of_kernels():
    """Weights that are updated count twice, scratch memory and pictures that are not read do not."""
    device = opening.open_device("cpu")
    some, kept, images = device.empty((100,)), device.empty((10, 8), np.uint8), device.empty((2,), np.int32)
    assert timeline.work("sgd", (100, some, some, some, None, 1, 0.1, 0.9, 0.0)) == (0.0, 4 * 100 * 5)
    tensor = (100, some, some, some, None, 1, 1.0, True)
    assert timeline.work("sgd_many", ((tensor, tensor), some)) == (0.0, 2 * 4 * 100 * 5)
    shape = LinearShape(4, 5, 6, 4)
    assert timeline.work("linear_backward_filter", (shape, "fp32", some, some, some, None, some)) == (240.0, 1200)
    planes = (None, "fp32", kept, kept, kept, images, images, images, images, images)
    assert timeline.work("ingest_planar", planes) == (0.0, 3 * 2 * 8 + 5 * 8)


def kernel_seconds(name):
    """On a GPU's clock: of 2 microseconds or up to 600, for every kernel another, and those of copies."""
    copies = {"copy": 130e-6, "upload": 0.0, "fetch": 0.0}
    kernels = sorted(timeline.SIGNATURES)
    return copies[name] if name in copies else 2e-6 * 300 ** (kernels.index(name) / len(kernels))


def gpu_with_clocks(monkeypatch, kernels):
    """A host that takes 40 microseconds to queue anything."""
    monkeypatch.setattr(timing, "COPIED", 1 << 10)
    machine = fake_cuda.install(monkeypatch, fake_cuda.Machine(gpus=1), kernels)
    machine.seconds, machine.queueing = kernel_seconds, 40e-6
    return machine


@pytest.fixture
def fake_gpu(monkeypatch):
    """One that computes as the emulator does: every line for CUDA runs."""
    from convnet.kernels import _emu as emu

    yield gpu_with_clocks(monkeypatch, emu)
    gc.collect()
    cuda_device._driver.cache_clear()


@pytest.fixture
def idle_gpu(monkeypatch, known_peaks):
    """One whose kernels take their time and compute nothing, which nobody checks."""
    from convnet.kernels import _emu as emu

    kernels = types.ModuleType("idle")
    for name in dir(emu):
        function = getattr(emu, name)
        if callable(function) and not name.endswith(("workspace", "variant", "variants")):
            function = functools.wraps(function)(lambda *arguments: None)
        setattr(kernels, name, function)
    found = problems.problems
    monkeypatch.setattr(ops, "problems", lambda *wanted: (replace(p, check=lambda: None) for p in found(*wanted)))
    yield gpu_with_clocks(monkeypatch, kernels)
    gc.collect()
    cuda_device._driver.cache_clear()


def rows_on_gpu(tmp_path, precision, *further):
    """Exit code and rows of ``benchmarks.ops``."""
    arguments = ["--device", "cuda:0", "--no-cpu", *TINY, "--precision", precision, "-o", str(tmp_path / "ops.json")]
    code = ops.main([*arguments, *further])
    return code, json.loads((tmp_path / "ops.json").read_text())["rows"]


def seconds_of_kernels(machine, precision):
    """Of every row, by layer and pass: what all kernels of one call take on the GPU's clock."""
    found = {}
    for problem in problems.problems(opening.open_device("cuda:0"), networks.network("alexnet-tiny"), 3, precision, 0):
        first = len(machine.launched)
        problem.run()
        found[problem.layer, problem.name] = sum(map(kernel_seconds, machine.launched[first:]))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_times_on_a_gpu_are_those_of_its_kernels(idle_gpu, tmp_path, precision):
    code, rows = rows_on_gpu(tmp_path, precision, "--no-cudnn")
    assert code == 0
    expected = seconds_of_kernels(idle_gpu, precision)
    assert min(expected.values()) < 10e-6
    assert max(expected.values()) > 200e-6
    assert {(row["layer"], row["name"]): row["seconds"] for row in rows} == pytest.approx(expected)
    assert [row["growth"] for row in rows] == pytest.approx([2.0] * len(rows))
    assert all(row["floor_share"] > 0 for row in rows)


def on_another_stream(clock, stream, work, calls=1):
    """As if that were where the work is, with nothing queued in front."""
    clock.device.synchronize()
    stream = clock.device.stream()
    before = stream.record()
    for _ in range(calls):
        work()
    after = stream.record()
    clock.device.synchronize()
    return after.elapsed_since(before) / 1e3


def behind_work_on_another_stream(clock, stream, work, calls=1, right=timing.Clock.seconds):
    return right(clock, clock.device.stream(), work, calls)


@pytest.mark.parametrize("wrong", [on_another_stream, behind_work_on_another_stream])
def test_marks_on_another_stream_are_found_out(idle_gpu, monkeypatch, tmp_path, wrong):
    """They tell the host's time or none at all: no row has its kernels' time."""
    monkeypatch.setattr(timing.Clock, "seconds", wrong)
    _, rows = rows_on_gpu(tmp_path, "fp32", "--no-cudnn")
    expected = seconds_of_kernels(idle_gpu, "fp32")
    assert len(rows) == len(expected)
    for row in rows:
        assert row["seconds"] != pytest.approx(expected[row["layer"], row["name"]], rel=0.01)


def test_a_gpu_that_cannot_be_kept_busy_is_not_timed(idle_gpu, monkeypatch, tmp_path):
    """The host would be; what it queues faster than the GPU works, it may time."""
    monkeypatch.setattr(timing.Clock, "keep_busy", lambda clock, stream: None)
    code, rows = rows_on_gpu(tmp_path, "fp32", "--no-cudnn")
    assert code == 1
    expected = seconds_of_kernels(idle_gpu, "fp32")
    for row in rows:
        known = expected[row["layer"], row["name"]]
        if row["failed"]:
            assert "would be the host's" in row["failed"]
            assert known < timing.BLOCK
        else:
            assert row["seconds"] == pytest.approx(known)
    assert sum(row["failed"] is not None for row in rows) > len(rows) / 2


class TorchOnGpu:
    """What of PyTorch comes before its kernels: a current stream."""

    def __init__(self, machine):
        self.machine, self.handle = machine, None
        self.cuda = types.SimpleNamespace(
            ExternalStream=lambda handle, device: handle, stream=self.stream, empty_cache=lambda: None
        )

    @contextlib.contextmanager
    def stream(self, handle):
        self.handle = handle
        yield
        self.handle = None

    def launch(self, name):
        self.machine.streams[self.handle].submit(name, lambda: None)

    def candidates(self, shape, direction, precision):
        return {name: lambda name=name: self.launch(name) for name in ("slow", "fast")}


def test_pytorch_is_timed_as_we_are(idle_gpu, monkeypatch, tmp_path):
    torch = TorchOnGpu(idle_gpu)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(cudnn, "settings", lambda precision: contextlib.nullcontext())
    monkeypatch.setattr(cudnn, "convolution", torch.candidates)
    monkeypatch.setattr(cudnn, "linear", lambda *wanted: 1 / 0)
    idle_gpu.seconds = lambda name: {"slow": 300e-6, "fast": 3e-6}.get(name) or kernel_seconds(name)
    code, rows = rows_on_gpu(tmp_path, "fp32", "--layer", "conv2", "fc8")
    assert code == 0
    products = [row for row in rows if row["layer"] == "conv2" and "relu" not in row["name"]]
    assert len(products) == 3
    for row in products:
        assert row["cudnn_candidate"] == "fast"
        assert row["over_cudnn"] == pytest.approx(3e-6 / row["seconds"])
    assert sum("ZeroDivisionError" in (row["cudnn_failed"] or "") for row in rows) == 3
    assert all(row["seconds"] > 0 for row in rows)


def test_what_was_timed_before_a_gpu_is_lost_is_written(idle_gpu, tmp_path, capsys):
    idle_gpu.fail(0, 2000, "an illegal memory access was encountered")
    code, rows = rows_on_gpu(tmp_path, "fp32", "--no-cudnn")
    assert code == 1
    *timed, last = rows
    assert timed
    assert all(row["seconds"] > 0 and row["failed"] is None for row in timed)
    assert "illegal memory access" in last["failed"]
    assert last["seconds"] is None
    assert f"fails behind {last['layer']} {last['name']}" in capsys.readouterr().err


def test_steps_and_timeline_on_a_gpu(fake_gpu, few_pictures, narrow, monkeypatch, tmp_path):
    monkeypatch.setattr(timeline, "REPEATS", 1)
    arguments = ["--model", narrow, "-b", "2", "--turns", "1", "--precision", "fp32", "--inference", "1"]
    assert step.main([*arguments, "-o", str(tmp_path / "step.json")]) == 0
    written = json.loads((tmp_path / "step.json").read_text())
    assert written["device"] == "cuda:0"
    assert written["left_out"] == ("PyTorch sees no GPU" if importlib.util.find_spec("torch") else "not installed")
    assert [(row["batch_size"], row["part"]) for row in written["ours"]][2:] == [(2, "forward"), (1, "forward")]
    assert all(row["floor_share"] > 0 for row in written["ours"])
    files = ["-o", str(tmp_path / "t.json"), "--figure", str(tmp_path / "t.png")]
    assert timeline.main(["--device", "cuda:0", "--model", narrow, "-b", "2", *files]) == 0
    written = json.loads((tmp_path / "t.json").read_text())
    launches = [timeline.Launch(**x) for x in written["launches"]]
    found = [(x.layer, x.kernel) for x in launches]
    assert found[: 1 + len(FIRST_LAUNCHES)] == [("", "ingest_planar"), *FIRST_LAUNCHES]
    assert written["plan_floor_seconds"] > 0
    assert [x.seconds for x in launches] == pytest.approx([kernel_seconds(x.kernel) for x in launches])


def test_a_timeline_does_not_time_the_host(idle_gpu, few_pictures, narrow, monkeypatch):
    """However slow that is: the GPU, kept busy on all of its streams, runs one kernel behind the other without gaps."""
    monkeypatch.setattr(timeline, "REPEATS", 1)
    idle_gpu.seconds = lambda name: kernel_seconds(name) / (1 if name == "copy" else 20)
    with Network(narrow, "cuda:0", batch_size=2) as net:
        for microseconds in range(5, 105, 10):  # some of these the GPU all but waits for
            idle_gpu.queueing = 1e-6 * microseconds
            found = timeline.measure(net)
            expected = [idle_gpu.seconds(launch["kernel"]) for launch in found["launches"]]
            assert [launch["seconds"] for launch in found["launches"]] == pytest.approx(expected)
            assert found["seconds"] == pytest.approx(sum(expected))
            assert found["waits_for_launches"] == 0
        monkeypatch.setattr(timing.Clock, "keep_busy", lambda clock, stream: None)
        found = timeline.measure(net)
        assert found["waits_for_launches"] > 0
        assert found["seconds"] > sum(expected)


def test_captured_work_reads_the_batch_of_its_turn(torch_network, monkeypatch):
    """With stand-ins for CUDA's graphs, which run nothing: what is captured once is played, on other images."""
    torch, played = torch_network.torch, []

    class Graph:
        def replay(self):
            played.append(net._images.sum().item())

    class Stream:
        wait_stream = staticmethod(lambda other: None)

    for name, stand_in in {
        "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "synchronize": lambda: None,
        "stream": contextlib.nullcontext, "graph": contextlib.nullcontext,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with Network("alexnet-tiny", "cpu", batch_size=1) as ours:
        weights = ours.weights()
    batches = [(torch.full((1, 3, 65, 65), float(k)), torch.zeros(1, dtype=torch.int64)) for k in range(2)]
    net = torch_network.TorchNetwork(networks.network("alexnet-tiny"), weights, batches, torch_network.Variant(), "cpu")
    net.captured = True
    for number in range(3):
        net.step(number)
    assert played == [0, 3 * 65 * 65, 0]
    assert len(net._graphs) == 1
    assert torch_network.Variant(compiled=True).mode(True) == "compile+graph"


def test_the_environment_chooses_no_kernels_of_either_side():
    """PyTorch says which of its own it takes."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    program = "from benchmarks import timing; import torch; print(torch.backends.cpu.get_cpu_capability())"
    chosen = {"ATEN_CPU_CAPABILITY": "default"}

    def says(code, environment):
        command, root = [sys.executable, "-c", code], report.ROOT
        given = {name: value for name, value in ENVIRONMENT.items() if name not in benchmarks.CHOOSING}
        done = subprocess.run(
            command, cwd=root, env={**given, **environment}, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert says(program, chosen) == says(program, {})
    found = says("import benchmarks; print(sorted(benchmarks.IGNORED))", dict.fromkeys(benchmarks.CHOOSING, "1"))
    assert found.strip() == str(sorted(benchmarks.CHOOSING))


def test_noise_is_half_the_middle_half():
    assert timing.noise([4.0]) == 0
    assert timing.noise([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1 / 3)


SMALL = ["--images", "20", "--size", "64", "--turns", "1"]


def test_the_way_of_images_into_the_network(tmp_path, capsys):
    assert data.main([*SMALL, "-j", "1,3", "-o", str(tmp_path / "data.json")]) == 0
    written = json.loads((tmp_path / "data.json").read_text())
    assert (written["images"], written["size"], written["batch_size"]) == (20, 64, 20)
    assert written["decoder"] in ("simplejpeg", "Pillow")
    sides = ["decoder", "loader", "ingest", "pipeline"]
    assert [(row["side"], row["workers"]) for row in written["rows"]] == [(side, j) for j in (1, 3) for side in sides]
    for row in written["rows"]:
        assert row["images_per_second"] > 0
        assert row["per_core"] > 0
        if row["side"] == "decoder":
            assert row["images_per_second_ratio"] == row["per_core_ratio"] == 1
    assert "the Loader on 3 threads" in capsys.readouterr().out


def test_the_way_of_images_by_pillow(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.jpeg, "simplejpeg", None)
    assert data.main([*SMALL, "-j", "1", "-o", str(tmp_path / "data.json")]) == 0
    assert "by Pillow" in capsys.readouterr().out


def test_a_loader_that_mixes_images_up_is_not_timed(tmp_path, monkeypatch):
    image = data.Jpegs.image
    monkeypatch.setattr(data.Jpegs, "image", lambda split, index, out=None: image(split, index // 2, out))
    with pytest.raises(RuntimeError, match="not timed"):
        data.main([*SMALL, "-o", str(tmp_path / "data.json")])
    assert not (tmp_path / "data.json").exists()


@pytest.mark.parametrize("wrong", [["-j", "two"], ["-j", "0"], ["-j", ""], ["--turns", "0"], ["--size", "8"]])
def test_impossible_settings_of_the_data_benchmark(wrong):
    with pytest.raises(ValueError, match="-j must be numbers of at least 1"):
        data.main([*SMALL, *wrong])


def test_preparing_beside_pillow(tmp_path, monkeypatch, capsys):
    """All sides do the whole work: the loops write what the store holds."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    source = prepare.draw(tmp_path / "source", 100)
    results = prepare.compare(source, tmp_path, workers=2, turns=1)
    assert (results["images"], results["workers"]) == (100, 2)
    assert set(results["images_per_second"]) == {"pillow", "pillow_all", "prepare"}
    assert all(value > 0 for value in results["processor_milliseconds_per_image"].values())
    folders = [folder for folder in tmp_path.iterdir() if folder.name != "source"]
    loops = [folder for folder in folders if not (folder / "store.json").exists()]
    assert sorted(len(list(folder.iterdir())) for folder in loops) == [50] * 4 + [100] * 2
    assert "x one Pillow process" in prepare.report(results)
    store = next(folder for folder in folders if folder not in loops)
    whole = next(folder for folder in loops if len(list(folder.iterdir())) == 100)
    images = {path.read_bytes() for path in whole.iterdir()}
    split = open_dataset(store, size=256, seed=0).train
    assert {split.read(k) for k in range(len(split))} <= images


@pytest.mark.parametrize("wrong", [["-j", "0"], ["--images", "99"], ["--turns", "0"]])
def test_impossible_settings_of_the_prepare_benchmark(wrong, capsys):
    assert prepare.main(wrong) == 2
    assert "are needed" in capsys.readouterr().err


def test_the_loop_from_every_place(narrow, tmp_path, monkeypatch, capsys):
    """Two epochs of few tiny steps; records are told from those of the first epoch by their step."""
    monkeypatch.setattr(loop, "RECORD_STEPS", 1)
    monkeypatch.setattr(trainer, "RECORD_STEPS", 1)
    monkeypatch.setattr(prepare, "SIZES", [(48, 40)])
    arguments = ["--model", narrow, "-b", "2", "-j", "1", "--steps", "3", "--turns", "1"]
    assert loop.main([*arguments, "-o", str(tmp_path / "train.json")]) == 0
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["place"] for row in rows] == ["device", "memory", "files"]
    assert all(row["images_per_second"] > 0 and 0 <= row["waiting"] <= 1 for row in rows)
    assert "images from files" in capsys.readouterr().out
    with pytest.raises(ValueError, match="steps"):
        loop.main([*arguments, "--steps", "2"])


# ---- learning ----


@pytest.fixture
def quality(torch_network):
    return pytest.importorskip("benchmarks.quality")


def test_losses_stay_with_those_of_pytorch(quality, narrow, tmp_path, capsys):
    files = ["-o", str(tmp_path / "q.json"), "--figure", str(tmp_path / "q.svg")]
    assert quality.main(["--model", narrow, "-b", "4", "--steps", "10", "--warm-up", "2", *files]) == 0
    written = json.loads((tmp_path / "q.json").read_text())
    assert len(written["convnet"]) == len(written["pytorch"]) == len(written["controls"][2]) == 10
    assert written["overlap"] is True
    assert "the curves overlap" in capsys.readouterr().out
    assert "distance from PyTorch" in (tmp_path / "q.svg").read_text()


def test_losses_of_another_network_do_not(quality):
    """With another weight decay, or with an LRN that divides its alpha by the size of the window."""
    tiny = networks.network("alexnet-tiny", dropout=0.0, width=0.25, crop=32)
    batches = quality.draw_batches(tiny, 4, 10)
    results: dict = {}
    assert len(list(quality.compare(tiny, "cpu", "fp32", batches, 0.02, results))) == 6
    assert results["overlap"]
    layers = (replace(x, alpha=x.alpha / x.size) if isinstance(x, spec.Lrn) else x for x in tiny.layers)
    for network, decay in (
        (tiny, 100 * quality.WEIGHT_DECAY),
        (replace(tiny, layers=tuple(layers)), quality.WEIGHT_DECAY),
    ):
        with Network(network, "cpu", batch_size=4) as net:
            wrong = quality.ours(net, batches, 0.02, decay)
        assert not quality.verdict(results["pytorch"], wrong, results["controls"])["overlap"]
    assert not quality.verdict(results["pytorch"], [float("nan")] * 10, results["controls"])["overlap"]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_losses_on_tensor_cores_stay_with_those_of_pytorch(quality, narrow, precision):
    emulator()
    tiny = networks.network(narrow, dropout=0.0)
    results: dict = {}
    list(quality.compare(tiny, "emu", precision, quality.draw_batches(tiny, 8, 5), 0.02, results))
    assert results["overlap"], results
    assert max(results["distances"]) > 2.0**-20  # these are not products of float32


# ---- what README.md says ----


def test_readme_holds_what_the_results_say():
    text = report.README.read_text()
    assert text == report.replaced(text, report.section(report.load(timing.RESULTS)))
    assert report.FIGURE.exists()
    with pytest.raises(ValueError, match="once each"):
        report.replaced(text.replace(report.END, ""), "")


def test_results_say_what_was_off_and_do_not_reach_the_readme(monkeypatch, tmp_path):
    timing.description.cache_clear()
    monkeypatch.setenv("CONVNET_OFF", "graph,intake")
    timing.write("step", "cpu", {}, str(tmp_path / "off.json"))
    timing.description.cache_clear()
    monkeypatch.delenv("CONVNET_OFF")
    timing.write("step", "cpu", {}, str(tmp_path / "on.json"))
    timing.description.cache_clear()
    assert json.loads((tmp_path / "off.json").read_text())["off"] == ["graph", "intake"]
    (left,) = report.load(tmp_path)
    assert left["off"] == []


def test_tables_of_what_was_measured():
    torch = {"images_per_second": 40e3, "mode": "graph", "variant": "channels_last", "ratio": 2.25, "ratio_noise": 0.01}
    row = {"precision": "bf16", "batch_size": 128, "seconds": 1.4e-3, "images_per_second": 90e3, "memory_bytes": 10**9}
    rows = [
        {**row, "part": "step", "torch": {**torch, "memory_bytes": 2 * 10**9}, "floor_share": 0.73},
        {**row, "part": "forward", "torch": torch},
        {**row, "batch_size": 256, "part": "step", "failed": "no memory"},
    ]
    del rows[2]["seconds"]
    gpu = {"gpus": [{"name": "NVIDIA H200"}]}
    shared = {"benchmark": "step", "device": "cuda:0", "model": "alexnet", "cuda": gpu, "versions": {}}
    older = {**shared, "date": "2026-01-01", "best": [{**rows[0], "images_per_second": 1.0}]}
    places = [{"place": place, "images_per_second": 50e3, "waiting": 0.25} for place in report.PLACES]
    loops = {"benchmark": "train", "device": "cuda:0", "model": "alexnet", "precision": "bf16", "batch_size": 128}
    foreseen = {"benchmark": "predict", "model": "alexnet", "precision": "bf16", "date": "2025-12-01"}
    found = [
        {**foreseen, "part": "step", "batch_size": 128, "seconds": 1.28e-3},
        {**foreseen, "part": "forward", "batch_size": 8, "seconds": 1e-4},
        *(older, {**shared, "date": "2026-01-02", "best": rows}, {**loops, "date": "2026-01-03", "rows": places}),
    ]
    shown = report.section(found)
    beside = "40,000 (graph, channels_last) | 2.25 (+- 1 %) | 1.00 GB / 2.00 GB |"
    assert f"| bf16 | 128 | 90,000 (73 %) | 100,000 | 123,271 | {beside}" in shown
    assert "| bf16 | not measured | not measured (80,000 predicted) | not measured |" in shown
    assert "| bf16 | 256 | not measured |" in shown
    assert "90,000 (2.25)" in shown
    assert "50,000 (25 %)" in shown
    assert "on one GPU (NVIDIA H200, 2026-01-02)" in shown
    assert "| fp32 | not measured |" in shown
    figure = report.draw(found)
    assert sum(bar.get_height() > 0 for bar in figure.axes[0].patches) == 2
