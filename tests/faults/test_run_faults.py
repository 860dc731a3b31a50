"""Whole training runs whose storage, images or numbers fail, and files that are not what their names say."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from data_files import write_folder
from runs import LAST_STEP, TINY, final, here, records, spawn, training
from test_prepare_faults import children
from test_train_faults import slow_run, wait_for

import convnet
from convnet.analysis.predict import image_files
from convnet.data import BadImage, load_square
from convnet.training import checkpoint
from convnet.training.checkpoint import CheckpointError


@pytest.fixture
def written(straight) -> bytes:
    """A checkpoint as a run writes it."""
    return (straight / "checkpoints" / checkpoint.file_name(LAST_STEP)).read_bytes()


# ---- checkpoints


def test_a_runs_checkpoint_cut_at_every_4_kib_is_refused(written, tmp_path):
    path = tmp_path / checkpoint.file_name(LAST_STEP)
    path.write_bytes(written)
    places = [*range(0, len(written), 4096), len(written) - 1]
    assert len(places) >= 40
    for length in reversed(places):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match="found damage"):
            checkpoint.load(path)


def regions(content: bytes) -> dict[str, tuple[int, int]]:
    """What lies where in a safetensors file: first and last byte of every part of it."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    found = {"length": (0, 7), "header": (8, 7 + length)}
    at = content.index(b"sha256") + len(b'sha256\\": \\"')
    found["hash"] = (at, at + 63)
    for name, tensor in header.items():
        if name != "__metadata__":
            first, end = tensor["data_offsets"]
            found[name] = (8 + length + first, 7 + length + end)
            place = content.index(json.dumps(name).encode())
            found[f"entry of {name}"] = (place, place + len(name))
    return found


def test_a_flipped_bit_in_every_region_of_a_runs_checkpoint_is_refused(written, tmp_path):
    path = tmp_path / checkpoint.file_name(LAST_STEP)
    parts = regions(written)
    assert {"length", "hash", "mean", "weights/conv1.weight", "velocity/fc8.bias"} <= parts.keys()
    for part, (first, last) in parts.items():
        for place in {first, (first + last) // 2, last}:
            damaged = bytearray(written)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                pytest.fail(f"{part}, byte {place}: not noticed: {checkpoint.load(path)}")


def rewritten(content: bytes, change) -> bytes:
    """A checkpoint that somebody changed, with a hash that fits: tensors and state go through ``change``."""
    tensors = safetensors.numpy.load(content)
    length = struct.unpack("<Q", content[:8])[0]
    state = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][checkpoint.KEY])
    del state["sha256"]
    change(tensors, state)
    state["sha256"] = checkpoint._digest(tensors, checkpoint._json(state))
    return safetensors.numpy.save(tensors, {checkpoint.KEY: checkpoint._json(state)})


def one_nan(tensors, state):
    tensors["weights/conv3.weight"][0, 0, 0, 0] = np.nan


def newer(tensors, state):
    state["version"] = checkpoint.VERSION + 1


def other_class_count(tensors, state):
    state["classes"] = ["blue", "green"]
    for name in tensors:
        if "/fc8." in name:
            tensors[name] = tensors[name][:2].copy()


def other_shape(tensors, state):
    tensors["velocity/fc8.weight"] = tensors["velocity/fc8.weight"][:2].copy()


def no_velocity(tensors, state):
    del tensors["velocity/conv2.bias"]


def no_options(tensors, state):
    state["config"] = {"model": ["alexnet"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_nan, "weights/conv3.weight: expected finite float32 numbers"),
        (newer, "expected format version 1, found 2; update convnet"),
        (other_class_count, "expected the 2 classes it was trained on, found 3 in the data (different: ['red'])"),
        (other_shape, "velocity/fc8.weight: the network has"),
        (no_velocity, "velocity/conv2.bias: the network has"),
        (no_options, "expected the options of a run, found others"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_and_code_4(written, tmp_path, capsys, change, message):
    path = tmp_path / "given.safetensors"
    path.write_bytes(rewritten(written, change))
    assert here("--resume", str(path), "-o", str(tmp_path / "run")) == 4
    error = capsys.readouterr().err
    assert message in error
    assert "given.safetensors" in error
    assert error.count("\n") == 1


def test_auto_steps_back_over_what_cannot_be_a_checkpoint(straight, images, tmp_path, capsys):
    """A bit flipped, a number that is not finite, a pipe that nobody writes to: the newest whole one is taken."""
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "8", "--save-every", "2", "--keep", "9") == 0
    names = {step: tmp_path / "checkpoints" / checkpoint.file_name(step) for step in (6, 8, 9)}
    content = bytearray(names[8].read_bytes())
    content[-5] ^= 16
    names[8].write_bytes(content)
    names[6].write_bytes(rewritten(names[6].read_bytes(), one_nan))
    os.mkfifo(names[9])
    capsys.readouterr()
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0
    warnings = [w for w in capsys.readouterr().err.splitlines() if "nothing was learnt" not in w]
    assert [w.startswith("warning: ") and w.endswith("trying the checkpoint before it") for w in warnings] == [True] * 3
    assert final(tmp_path) == final(straight)


# ---- storage


def limited():
    """No file may become longer than this: logs fit, checkpoints do not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_limit_on_file_sizes_ends_a_run_and_the_same_command_goes_on(straight, images, tmp_path):
    command = [images, *TINY, "-o", str(tmp_path / "run"), "--save-every", "3", "--resume", "auto"]
    process = spawn(*command, preexec_fn=limited)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    lines = errors.splitlines()
    assert [line.startswith("warning: ") for line in lines] == [True, True, False], errors
    assert all("File too large" in line for line in lines)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert here(*command) == 0
    assert final(tmp_path / "run") == final(straight)


def as_anybody():
    """Takes from root what lets it write in spite of permissions (capabilities DAC_OVERRIDE and DAC_READ_SEARCH)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_folder_that_cannot_be_written_is_a_mistake_at_the_start(images, tmp_path):
    tmp_path.chmod(0o555)
    process = spawn(images, *TINY, "-o", str(tmp_path / "run"), preexec_fn=as_anybody)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.count("\n")) == (2, 1), errors
    assert "cannot be used as run folder: Permission denied" in errors


def test_a_folder_that_becomes_read_only_keeps_its_checkpoint(straight, images, tmp_path):
    folder = tmp_path / "run"
    assert here(images, *TINY, "-o", str(folder), "--steps", "2") == 0
    command = ["-o", str(folder), "--resume", "auto", "--save-every", "2"]
    process = slow_run(images, folder, tmp_path / "flag", options=command[2:], preexec_fn=as_anybody)
    wait_for((tmp_path / "flag").exists, process)
    (folder / "checkpoints").chmod(0o555)
    _, errors = process.communicate(timeout=120)
    (folder / "checkpoints").chmod(0o755)
    assert process.returncode == 1, errors
    assert errors.count("Permission denied; will try again with the next checkpoint") == 2
    assert "Traceback" not in errors
    assert checkpoint.load(folder / "last").state["step"] == 2
    assert here(*command) == 0
    assert final(folder) == final(straight)


# ---- processes


def test_a_run_has_no_child_processes_that_could_outlive_it(images, tmp_path):
    process = slow_run(images, tmp_path / "run", tmp_path / "flag", seconds=100, options=["-j", "2"])
    wait_for((tmp_path / "flag").exists, process)
    assert children(process.pid) == set()
    process.kill()
    process.communicate()


def test_sighup_during_an_evaluation_writes_its_checkpoint_and_goes_on(straight, images, tmp_path, monkeypatch):
    evaluate_batch = convnet.Network.evaluate_batch

    def hang_up(network, *arguments):
        os.kill(os.getpid(), signal.SIGHUP)
        return evaluate_batch(network, *arguments)

    monkeypatch.setattr(convnet.Network, "evaluate_batch", hang_up)
    assert here(images, *TINY, "-o", str(tmp_path), "--keep", "9") == 0
    assert [int(path.stem[5:]) for path in checkpoint.files(tmp_path / "checkpoints")] == [5, 6, 10]
    assert final(tmp_path)[0] == final(straight)[0]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_without_standard_streams_a_run_ends_as_any_other(straight, images, tmp_path, closed):
    """As under a daemon that closed them all."""
    process = spawn(
        images, *TINY, "-o", str(tmp_path / "run"), preexec_fn=lambda: [os.close(number) for number in closed]
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert "Traceback" not in errors
    assert training(tmp_path / "run") == training(straight)


# For every line that it reads, a program whose child writes one checkpoint of 2 MB again and again, for ever.
WRITERS = """
import os, pathlib, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from convnet.training import checkpoint
from runs import STATE
step = 0
for line in sys.stdin:
    step += 1000
    child = os.fork()
    while child == 0:
        step += 1
        values = np.full(500_000, step, np.float32)
        checkpoint.save(pathlib.Path(sys.argv[1]), {"weights/a": values}, {**STATE, "step": step})
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_no_kill_during_a_write_leaves_half_a_checkpoint(tmp_path, pytestconfig):
    """Of so many kills, where a disk is slow all of them, land inside a write: between the first byte of a file and the
    moment it gets its name."""
    kills = max(50, pytestconfig.getoption("kills") or 0)
    chance = np.random.default_rng(kills)
    path = tmp_path / checkpoint.file_name(1)
    half = path.with_name(path.name + ".tmp")
    process = spawn(str(path), str(Path(__file__).parents[1]), code=WRITERS, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    inside = tried = last = 0
    while inside < kills and tried < 2 * kills:
        tried += 1
        process.stdin.write("\n")
        process.stdin.flush()
        writer = int(process.stdout.readline())
        wait_for(lambda last=last: path.exists() and path.stat().st_mtime_ns != last, process)  # it has written one
        until, size = time.monotonic() + 0.1, chance.choice([1, chance.uniform(0, 2e6), 2e6])
        while time.monotonic() < until and size_of(half) < size:
            pass
        time.sleep(chance.choice([0, chance.uniform(0, 0.01)]))
        os.kill(writer, signal.SIGKILL)
        assert process.stdout.readline() == "gone\n"
        inside += half.exists()
        half.unlink(missing_ok=True)
        found = checkpoint.load(path)
        assert (found.tensors["weights/a"] == found.state["step"]).all()
        assert found.state["step"] > 1000 * tried
        last = path.stat().st_mtime_ns
    process.communicate(timeout=60)
    assert inside >= kills // 5


def size_of(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


# ---- images


def test_too_many_bad_images_end_a_run_with_one_sentence_and_code_3(tmp_path):
    folder = write_folder(tmp_path / "photos", train=8)
    for path in sorted((folder / "train").rglob("*.jpg"))[::2]:
        os.truncate(path, 300)
    process = spawn(str(folder), *TINY, "-o", str(tmp_path / "run"), "-j", "2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    assert "of 24 images" in errors.splitlines()[-1]
    assert "cannot be read, the last one" in errors.splitlines()[-1]


@pytest.mark.parametrize("make", ["pipe", "endless", "nothing"])
def test_pipes_and_devices_are_no_images(tmp_path, make):
    """A pipe would be waited for without end, and /dev/zero fill the memory."""
    path = tmp_path / "photo.jpg"
    if make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"endless": "/dev/zero", "nothing": "/dev/null"}[make])
    told = []
    assert list(image_files([str(tmp_path)], (), lambda *bad: told.append(bad))) == []
    assert told == [(str(path), "not a file"), (str(tmp_path), "a folder without pictures")]
    (named,) = image_files([str(path)], (), pytest.fail)
    with pytest.raises(BadImage, match="not a regular file"):
        load_square(named, 32)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "given.safetensors")
    with pytest.raises(CheckpointError, match=r"given\.safetensors: .*not a regular file"):
        checkpoint.load(tmp_path / "given.safetensors")


# ---- numbers


def test_weights_that_are_not_finite_behind_a_finite_loss_reach_no_checkpoint(images, tmp_path, capsys, monkeypatch):
    """An update may overflow though the loss that it came from was finite; here in the last step of a run."""
    train_step = convnet.Network.train_step

    def overflow(network, *arguments):
        result = train_step(network, *arguments)
        if network.steps_done == 7:
            result.get()
            weights = network.weights()
            weights["conv3.weight"][1, 2, 0, 0] = np.inf
            network.load_weights(weights)
        return result

    monkeypatch.setattr(convnet.Network, "train_step", overflow)
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "7") == 5
    error = capsys.readouterr().err
    assert "weights/conv3.weight is not finite: training has diverged; the last good checkpoint is" in error
    assert error.count("\n") == 1
    assert [int(path.stem[5:]) for path in checkpoint.files(tmp_path / "checkpoints")] == [5]
    assert records(tmp_path)[-1]["status"] == "diverged"


@pytest.mark.parametrize("cache", ["none", "device"])
def test_a_gradient_that_is_not_finite_ends_the_run_before_it_spoils_a_weight(
    images, tmp_path, capsys, monkeypatch, cache
):
    """Behind a finite loss. The last good checkpoint is named, and so is the layer; the run can go on from there."""
    method = "train_step_kept" if cache == "device" else "train_step"
    train_step = getattr(convnet.Network, method)

    def trapped(network, *arguments):
        if network.steps_done == 6:
            weights = network.weights()  # fc7 reads 3e38, and slopes of some ten come from above
            weights["fc6.bias"][:] = 3e38
            weights["fc7.weight"][:], weights["fc7.bias"][:] = 0, 1
            weights["fc8.weight"][:] = 100 * np.sign(weights["fc8.weight"])
            network.load_weights(weights)
        return train_step(network, *arguments)

    monkeypatch.setattr(convnet.Network, method, trapped)
    arguments = [*TINY, "-o", str(tmp_path), "--cache", cache]
    assert here(images, *arguments) == 5
    error = capsys.readouterr().err
    # with the steps that the other weights have taken since, what it reads is no longer finite either
    assert re.search(
        r"step 7: a gradient is not finite \(images 8 to 15 of epoch 2; computed once more, the first that is not "
        r"finite: the (output|gradient) of fc7.*\): training has diverged; the last good checkpoint is .*step-00000005",
        error,
    )
    assert error.count("\n") == 1
    assert checkpoint.load(tmp_path / "last").state["step"] == 5
    assert records(tmp_path)[-1]["status"] == "diverged"
    monkeypatch.undo()
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0


def test_a_parameter_that_is_not_finite_is_named(images, tmp_path, capsys, monkeypatch):
    """The loss is the first to show it, a step later; the sentence says where it came from."""
    train_step = convnet.Network.train_step

    def overflow(network, *arguments):
        if network.steps_done == 6:
            weights = network.weights()
            weights["conv3.weight"][:] = np.nan
            weights["fc7.bias"][:] = np.inf
            network.load_weights(weights)
        return train_step(network, *arguments)

    monkeypatch.setattr(convnet.Network, "train_step", overflow)
    assert here(images, *TINY, "-o", str(tmp_path)) == 5
    error = capsys.readouterr().err
    assert "step 7: the loss is nan" in error
    assert "computed once more, the first that is not finite: conv3.weight)" in error
    assert checkpoint.load(tmp_path / "last").state["step"] == 5
