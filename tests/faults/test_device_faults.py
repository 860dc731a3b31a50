"""Devices that are too small, too old, broken or lost under a command, played by a stand-in for the driver whose
kernels are the emulator's. Needs no GPU."""

from __future__ import annotations

import gc
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import Machine, install
from runs import TINY, call, here, shared_images, spawn, straight_run

import convnet
from convnet.cli.eval import main as evaluate
from convnet.cli.predict import main as predict
from convnet.cli.show import main as show
from convnet.devices import cuda as device
from convnet.devices import opening
from convnet.devices import protocol as backend
from convnet.kernels import _emu as emu
from convnet.kernels.control import WORDS
from convnet.network.footprint import Use
from convnet.network.graphs import Graphs
from convnet.network.networks import network
from convnet.training import checkpoint

SMALL = ["--device", "cuda:0", "-b", "8", "--epochs", "1", "--width", "0.1", "--crop", "32", "-j", "1"]
ILLEGAL = "cuEventSynchronize failed: an illegal memory access was encountered"
ECC = "cuEventSynchronize failed: uncorrectable ECC error encountered"


@pytest.fixture
def machine(monkeypatch):
    """Makes the process see a machine with GPUs."""
    yield lambda **options: install(monkeypatch, Machine(**options), emu)
    gc.collect()
    device._driver.cache_clear()


# ---- memory


@pytest.mark.parametrize(
    ("devices", "precision", "kept"),
    [("cpu", "fp32", 0), ("emu:0,emu:1", "bf16", 0), ("cuda:0,cuda:1", "fp32", 12), ("cuda:0", "bf16", 0)],
)
def test_the_plan_is_what_a_network_allocates(machine, devices, precision, kept):
    machine()
    spec = network("alexnet-tiny", num_classes=3, width=0.1, crop=32)
    use = Use(spec, devices, precision, size=40, training=True, kept=kept)
    planned = {name: sum(parts.values()) for name, parts in use.footprints(8).items()}
    images, labels = np.zeros((5, 40, 40, 3), np.uint8), np.zeros(5, np.int32)
    windows, noise = np.zeros((5, 3), np.int32), np.zeros((5, 3), np.float32)
    with convnet.Network(spec, devices, 8, precision) as net:
        if kept:
            net.keep_images(kept, 40)
        for _ in range(2):
            if kept:
                net.train_step_kept(np.arange(5), labels, windows, noise).get()
            else:
                net.train_step(images, labels, windows, noise).get()
        net.evaluate_batch(images, windows)
        scratch = opening.open_device("cpu").scratch if devices == "cpu" else 0  # of all networks before
        assert net.memory() == {name: nbytes + scratch for name, nbytes in planned.items()}
    if devices == "cuda:0":  # beside what has a name: control words, the mean image, losses and ranks
        assert use.footprints(8)["cuda:0"]["all else"] == 4 * WORDS + 4 * 3 * 32 * 32 + 2 * 4 * 8


@pytest.mark.parametrize("fused", [True, False])
def test_the_plan_of_an_evaluation_is_what_it_allocates(machine, fused):
    machine()
    spec = network("alexnet-tiny", num_classes=3, width=0.1, crop=32)
    parts = Use(spec, "cuda:0", "fp32", size=40, fused=fused).footprints(12)["cuda:0"]
    assert parts["images that stay"] == 0
    with convnet.Network(spec, "cuda:0", 12, fused=fused) as net:
        net.evaluate_batch(np.zeros((12, 40, 40, 3), np.uint8), np.zeros((12, 3), np.int32))
        assert net.memory() == {"cuda:0": sum(parts.values())}


def needed(batch_size: int, devices: str = "cuda:0", **options) -> int:
    """Bytes on every device for a run with the options of SMALL."""
    spec = network("alexnet-tiny", num_classes=3, width=0.1, crop=32)
    footprints = Use(spec, devices, "fp32", spec.image_size, training=True, **options).footprints(batch_size)
    return max(sum(parts.values()) for parts in footprints.values())


def test_where_memory_runs_out_a_run_says_what_takes_it_and_what_would_fit(machine, tmp_path, capsys):
    """At the last allocation of all, which comes with a step; and the advice is good."""
    fake = machine()
    fake.capacity = needed(16) - 1
    command = [shared_images(), *SMALL, "-o", str(tmp_path / "run")]
    assert here(*command, "-b", "16") == 6
    error = capsys.readouterr().err
    total = f"{fake.capacity / 1e6:.0f}"
    assert re.search(rf"cuda:0: no memory for \d+ MB: \d+ of {total} MB are free, this process holds \d+ MB; ", error)
    assert "16 images at a time need " in error
    for part in ("weights, their momentum and gradients", "activations and their grad", "workspace", "two batches of"):
        assert re.search(rf"{part}[a-z ]* [0-9.,]+ MB", error), part
    assert error.endswith("; -b 8 would fit\n")
    assert error.count("\n") == 1
    gc.collect()
    assert not fake.memory
    assert here(*command[:-1], str(tmp_path / "smaller"), "-b", "8") == 0


def test_a_run_that_goes_on_cannot_take_a_smaller_batch(machine, tmp_path, capsys):
    fake = machine()
    assert here(shared_images(), *SMALL, "-b", "16", "--device", "cpu", "-o", str(tmp_path)) == 0
    fake.capacity = needed(16) - 1
    assert here("--resume", "auto", "-o", str(tmp_path), "--device", "cuda:0", "--epochs", "2") == 6
    assert capsys.readouterr().err.endswith("; a new run with -b 8 would fit\n")


def test_where_nothing_fits_another_way_is_told(machine, tmp_path, capsys):
    machine(capacity=400_000)
    assert here(shared_images(), *SMALL, "-o", str(tmp_path)) == 6
    assert "not even a single one fits: use a smaller network, or the CPU" in capsys.readouterr().err


@pytest.fixture
def half(machine):
    """A GPU on which 12 images of the shared run do not fit, and 6 do."""
    fake = machine()
    spec = network("alexnet-tiny", num_classes=3, width=0.25, crop=32)
    use = Use(spec, "cuda:0", "fp32", spec.image_size)
    more, fewer = (sum(use.footprints(n)["cuda:0"].values()) for n in (12, 6))
    fake.capacity = more - 1
    assert fewer < 0.97 * fake.capacity
    return fake


@pytest.mark.parametrize("command", ["eval", "predict", "show"])
def test_where_memory_runs_out_other_commands_say_so_too(half, tmp_path, capsys, command):
    run, output = str(straight_run()), tmp_path / "output.png"
    main, arguments = {
        "eval": (evaluate, [run, "--confusion", str(tmp_path / "table.csv")]),
        "predict": (predict, [run, os.path.join(shared_images(), "val")]),
        "show": (show, [run, "confusion", "-o", str(output)]),
    }[command]
    assert call(main, *arguments, "--device", "cuda:0", "-b", "12") == 6
    error = capsys.readouterr().err
    assert "12 images at a time need" in error
    assert error.endswith("; -b 6 would fit\n")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert call(main, *arguments, "--device", "cuda:0", "-b", "6") == 0


def test_networks_that_are_closed_do_not_keep_the_memory_of_the_next(half):
    """As in an evaluation of several runs."""
    gc.disable()
    try:
        for seed in range(3):
            with convnet.Network("alexnet-tiny", "cuda:0", 6, num_classes=3, width=0.25, crop=32, seed=seed):
                pass
    finally:
        gc.enable()


def test_an_evaluation_can_try_fewer_images(half, capsys):
    arguments = [str(straight_run()), "--json", "-q", "-b", "12"]
    assert call(evaluate, *arguments, "--device", "cuda:0", "--retry") == 0
    found = capsys.readouterr()
    assert found.err.count("\n") == 1
    assert found.err.startswith("warning: cuda:0: no memory for ")
    assert found.err.endswith("; trying 6 images at a time\n")
    half.capacity *= 2
    assert call(evaluate, *arguments, "--device", "cuda:0") == 0
    assert capsys.readouterr().out == found.out


# ---- kernels that break off, devices that are lost


@pytest.fixture
def breaks(monkeypatch):
    """During step ``step`` the kernel behind the next ``kernels`` on a GPU ends with the words ``text``."""

    def prepare(fake, step, text, gpu=0, kernels=20):
        train_step = convnet.Network.train_step

        def broken(network, *arguments):
            if network.steps_done == step - 1:
                fake.fail(gpu, kernels, text)
            return train_step(network, *arguments)

        monkeypatch.setattr(convnet.Network, "train_step", broken)

    return prepare


@pytest.mark.parametrize(
    ("text", "devices", "gpu", "code", "told"),
    [
        (ILLEGAL, "cuda:0", 0, 1, "a kernel broke off.*CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer"),
        (ILLEGAL, "cuda:0,cuda:1", 1, 1, "a kernel broke off.*CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer"),
        (ECC, "cuda:0,cuda:1", 1, 6, r"the device is lost; look at nvidia-smi.*use another one \(--device\)"),
    ],
    ids=["fault", "fault of the second", "second lost"],
)
def test_from_a_broken_device_nothing_is_written(machine, breaks, tmp_path, capsys, text, devices, gpu, code, told):
    """In the second epoch, in which steps are launched as graphs; a checkpoint was due after this very step."""
    fake = machine()
    command = [shared_images(), *SMALL, "--device", devices, "--epochs", "2", "--save-every", "7", "--keep", "9"]
    breaks(fake, 7, text, gpu)
    assert here(*command, "-o", str(tmp_path)) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.match(rf"convnet-train: error: cuda:{gpu}: .*{text.partition(': ')[2]}.*: {told}", error), error
    (kept,) = checkpoint.files(tmp_path / "checkpoints")
    assert checkpoint.load(kept).state["step"] == 5
    assert f"the last checkpoint is {kept}; go on with: convnet-train --resume auto -o {tmp_path}" in error
    assert f"error: cuda:{gpu}" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_last_kernels_are_named(machine, breaks, tmp_path, capsys):
    """In the first step, whose kernels are queued one by one."""
    fake = machine()
    breaks(fake, 1, ILLEGAL)
    assert here(shared_images(), *SMALL, "-o", str(tmp_path)) == 1
    error = capsys.readouterr().err
    named = re.search(r"the last ones queued: ([^;]+);", error)
    assert named
    assert 2 <= len(named[1].split(", ")) <= 8
    assert all(hasattr(emu, name) for name in named[1].split(", "))
    assert "there is no checkpoint yet" in error


def test_an_evaluation_on_a_broken_device_writes_nothing(machine, tmp_path, capsys):
    machine().fail(0, 5, ILLEGAL)
    written = ["--save-predictions", str(tmp_path / "p.npy"), "--confusion", str(tmp_path / "c.csv")]
    assert call(evaluate, str(straight_run()), "--device", "cuda:0", *written) == 1
    captured = capsys.readouterr()
    assert "a kernel broke off" in captured.err
    assert captured.err.count("\n") == 1
    assert "top-1" not in captured.out
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_driver_leave_a_device_alive(machine):
    fake = machine()
    first, second = opening.open_devices("cuda:0,cuda:1")
    array, stream = first.empty((4,)), first.stream()
    with pytest.raises(convnet.DeviceError, match=r"cuda:0: invalid address"), first.current():
        fake.owner(5)
    assert not first.dead
    fake.dead[1] = ECC
    with pytest.raises(backend.DeviceLost), second.current():
        fake.current()
    assert second.dead
    second.close()
    assert array.download().size == 4
    fake.dead[0] = ILLEGAL
    with pytest.raises(backend.KernelFault, match=r"cuda:0: add: .*illegal.*a kernel broke off"):  # from the runtime
        stream.launch(first.kernels.add, 4, "fp32", array, array, array)


def test_a_fault_while_work_is_captured_is_one(machine):
    """And is not taken for something that cannot be captured."""
    fake = machine()
    (opened,) = opening.open_devices("cuda:0")
    graphs = Graphs([opened.stream()])
    graphs.run("step", None, lambda: None)
    fake.dead[0] = ILLEGAL
    with pytest.raises(backend.KernelFault):
        graphs.run("step", None, lambda: None)
    assert graphs.capturing


# ---- drivers and GPUs that cannot be used

# convnet-train on a machine like that of the first argument
PRETEND = """
import json, sys, pytest
sys.path.insert(0, sys.argv[1])
import fake_cuda
from convnet.kernels import _emu
from convnet.cli.train import main
fake_cuda.install(pytest.MonkeyPatch(), fake_cuda.Machine(**json.loads(sys.argv[2])), _emu)
sys.exit(main(sys.argv[3:]))
"""
UNUSABLE = {
    "too old": (
        {"version": 12040},
        "cuda: the NVIDIA driver is too old: it knows CUDA up to 12.4, and the kernels are built with 13.0; update the "
        "driver, or install again with a CUDA toolkit of version 12.4 or older",
    ),
    "busy": (
        {"busy": [0, 1]},
        "cuda:0: cannot be opened: cuDevicePrimaryCtxRetain failed: CUDA-capable device(s) is/are busy or unavailable; "
        "see nvidia-smi",
    ),
    "no gpu": ({"gpus": 0}, "cuda: the driver sees no GPU"),
}


@pytest.mark.parametrize("which", UNUSABLE)
def test_a_gpu_that_cannot_be_used_is_a_sentence_and_with_auto_a_warning(machine, tmp_path, capsys, caplog, which):
    options, reason = UNUSABLE[which]
    machine(**options)
    command = [shared_images(), *TINY, "--steps", "1"]
    assert here(*command, "-o", str(tmp_path / "gpu"), "--device", "cuda:0") == 6
    assert capsys.readouterr().err == f"convnet-train: error: {reason}\n"
    assert not caplog.records
    assert here(*command, "-o", str(tmp_path / "any"), "--device", "auto") == 0
    assert [record.getMessage() for record in caplog.records] == [f"{reason}; computing on the CPU"]


def test_the_warning_is_one_line(tmp_path):
    options, reason = UNUSABLE["too old"]
    command = [str(Path(__file__).parents[1]), json.dumps(options), shared_images(), *TINY, "--steps", "1", "-q"]
    process = spawn(*command, "-o", str(tmp_path), "--device", "auto", code=PRETEND)
    assert process.communicate(timeout=120)[1] == f"warning: {reason}; computing on the CPU\n"
    assert process.returncode == 0


def test_with_auto_a_gpu_that_the_kernels_were_not_built_for_is_a_warning(machine, caplog):
    machine(capability=(7, 5))
    (opened,) = opening.open_devices("auto")
    assert opened.name == "cpu"
    assert "built for none of the GPUs (see convnet-info); computing on the CPU" in caplog.text


def test_without_a_driver_nobody_is_warned(machine, monkeypatch, caplog):
    machine()

    def missing() -> int:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(device, "_load_driver_library", missing)
    (opened,) = opening.open_devices("auto")
    assert opened.name == "cpu"
    assert not caplog.records
