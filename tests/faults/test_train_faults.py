"""Training runs that are killed, interrupted, out of disk or diverging."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from runs import LAST_STEP, TINY, final, here, records, run, spawn, training

import convnet
from convnet.training import checkpoint


def wait_for(condition, process, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def steps_written(folder: Path) -> int:
    """The newest step that a checkpoint was written of."""
    return max((int(path.stem[5:13]) for path in checkpoint.files(folder / "checkpoints")), default=0)


def kill_until_done(images, folder, kills, seed, last=LAST_STEP, *options):
    """Runs with ``--resume auto`` again and again, killed at a random moment each time; the last run is left alone."""
    chance = random.Random(seed)
    command = [images, *TINY, *options, "-o", str(folder), "--save-every", "1", "--resume", "auto"]
    for _ in range(kills):
        process, reached = spawn(*command), steps_written(folder)
        wait_for(lambda reached=reached: steps_written(folder) > reached or reached >= last - 1, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
    run(*command)


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_run_ends_the_same(straight, images, tmp_path, kills):
    kill_until_done(images, tmp_path / "run", kills, seed=kills)
    assert final(tmp_path / "run") == final(straight)
    assert training(tmp_path / "run") == training(straight)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_as_many_kills_as_asked_for_and_the_same_weights(images, tmp_path, pytestconfig):
    """A campaign: every kill hits a run that has made at least one step more, and the run is long enough for all."""
    kills = pytestconfig.getoption("kills")
    if kills is None:
        pytest.skip("--kills N says how many")
    epochs = kills // 2  # of five steps: several steps may pass before a kill
    longer = ["--epochs", str(epochs), "--lr-schedule", "constant"]
    run(images, *TINY, *longer, "-o", str(tmp_path / "straight"))
    kill_until_done(images, tmp_path / "run", kills, kills, 5 * epochs, *longer)
    assert final(tmp_path / "run", 5 * epochs) == final(tmp_path / "straight", 5 * epochs)
    assert training(tmp_path / "run") == training(tmp_path / "straight")
    assert not list((tmp_path / "run").rglob("*.tmp"))


# a run whose steps take long enough for signals to hit them, and which tells when it is in one
SLOW = """
import sys, time, pathlib
import convnet
from convnet.cli.train import main
train_step = convnet.Network.train_step
def slow(network, *arguments):
    if network.steps_done == 3:
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(float(sys.argv[2]))
    return train_step(network, *arguments)
convnet.Network.train_step = slow
sys.exit(main(sys.argv[3:]))
"""


def slow_run(images, folder, flag, seconds=1, options=(), **how):
    return spawn(str(flag), str(seconds), images, *TINY, "-o", str(folder), *options, code=SLOW, **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_a_run_finishes_the_step_and_can_go_on(straight, images, tmp_path, number):
    process = slow_run(images, tmp_path / "run", tmp_path / "flag")
    wait_for((tmp_path / "flag").exists, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (75, ""), output
    assert "stopped on request at step 4; go on with: convnet-train --resume auto -o" in output
    assert records(tmp_path / "run")[-1]["status"] == "stopped"
    assert checkpoint.load(tmp_path / "run" / "last").state["step"] == 4
    assert here("--resume", "auto", "-o", str(tmp_path / "run")) == 0
    assert final(tmp_path / "run") == final(straight)
    assert training(tmp_path / "run") == training(straight)


def test_a_second_sigint_ends_at_once(images, tmp_path):
    process = slow_run(images, tmp_path / "run", tmp_path / "flag", seconds=100)
    wait_for((tmp_path / "flag").exists, process)
    while process.poll() is None:  # two that arrive together count as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped at once" in errors
    assert "Traceback" not in errors
    assert checkpoint.files(tmp_path / "run" / "checkpoints") == []


def test_sighup_writes_a_checkpoint_and_goes_on(images, tmp_path):
    process = slow_run(images, tmp_path / "run", tmp_path / "flag")
    wait_for((tmp_path / "flag").exists, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert [int(path.stem[5:]) for path in checkpoint.files(tmp_path / "run" / "checkpoints")] == [4, 5, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_during_an_evaluation_repeats_it(straight, images, tmp_path, monkeypatch, number):
    evaluate_batch = convnet.Network.evaluate_batch
    asked = []

    def ask_once(network, *arguments):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), number)
        return evaluate_batch(network, *arguments)

    monkeypatch.setattr(convnet.Network, "evaluate_batch", ask_once)
    assert here(images, *TINY, "-o", str(tmp_path)) == 75
    assert [record["event"] for record in records(tmp_path)] == ["start", "train", "end"]
    assert checkpoint.load(tmp_path / "last").state["position"] == 36
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0
    assert final(tmp_path) == final(straight)
    assert training(tmp_path) == training(straight)


def test_a_closed_pipe_stops_the_run_with_a_checkpoint(images, tmp_path):
    process = slow_run(images, tmp_path / "run", tmp_path / "flag")
    wait_for((tmp_path / "flag").exists, process)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(120), errors) == (75, "")
    assert checkpoint.files(tmp_path / "run" / "checkpoints")


def fail_to_save(monkeypatch, failures):
    """The first so many checkpoints meet a full disk."""
    save, left = checkpoint.save, list(range(failures))

    def full(path, tensors, state):
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, tensors, state)

    monkeypatch.setattr(checkpoint, "save", full)


def test_a_full_disk_is_a_warning_while_there_is_hope(straight, images, tmp_path, monkeypatch, capsys):
    fail_to_save(monkeypatch, 2)
    assert here(images, *TINY, "-o", str(tmp_path), "--save-every", "2") == 0
    error = capsys.readouterr().err
    assert error.count("not written: No space left on device; will try again") == 2
    assert final(tmp_path) == final(straight)


@pytest.mark.parametrize(
    "every", ["1", "500"]
)  # three times in a row; at both epochs' ends and once more at the very end
def test_a_full_disk_is_an_error_in_the_end(images, tmp_path, monkeypatch, capsys, every):
    fail_to_save(monkeypatch, 3)
    assert here(images, *TINY, "-o", str(tmp_path), "--save-every", every) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.files(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(images, tmp_path, monkeypatch, capsys, value):
    train_step = convnet.Network.train_step

    def spoiled(network, *arguments):
        result = train_step(network, *arguments)
        if network.steps_done == 7:
            losses, ranks = result.get()
            losses = losses.copy()
            losses[3] = value
            return SimpleNamespace(get=lambda: (losses, ranks))
        return result

    monkeypatch.setattr(convnet.Network, "train_step", spoiled)
    assert here(images, *TINY, "-o", str(tmp_path)) == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"step 7: the loss is {value} (images 8 to 15 of epoch 2)" in error
    assert "step-00000005.safetensors; try a smaller --lr than 0.01" in error
    assert checkpoint.load(tmp_path / "last").state["step"] == 5
    assert records(tmp_path)[-1]["status"] == "diverged"
    monkeypatch.undo()
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0


def test_a_validation_loss_that_is_not_finite_ends_the_run(images, tmp_path, monkeypatch, capsys):
    """Weights may be finite, and what they make of other images not."""
    evaluate = convnet.Network.evaluate_batch
    monkeypatch.setattr(convnet.Network, "evaluate_batch", lambda *arguments: np.inf * abs(evaluate(*arguments)))
    assert here(images, *TINY, "-o", str(tmp_path)) == 5
    error = capsys.readouterr().err
    assert "error: after step 5: the loss of the validation images is nan: training has diverged; " in error
    assert error.count("\n") == 1
    assert records(tmp_path)[-1]["status"] == "diverged"


def test_a_rate_far_too_large_diverges_and_leaves_no_bad_checkpoint(images, tmp_path):
    output = run(images, *TINY, "-o", str(tmp_path), "--lr", "1e30", "--save-every", "1", code=5)
    assert "training has diverged" in output
    for path in checkpoint.files(tmp_path / "checkpoints"):
        checkpoint.load(path)  # refuses what is not finite


def test_an_error_of_ours_is_not_called_a_mistake_of_the_user(images, tmp_path, monkeypatch, capsys):
    def wrong(*_):
        raise ValueError("shapes do not fit")

    monkeypatch.setattr(convnet.Network, "train_step", wrong)
    assert here(images, *TINY, "-o", str(tmp_path)) == 1
    assert "RuntimeError: step 1: shapes do not fit" in capsys.readouterr().err
    assert "error: step 1: shapes do not fit" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_shapes_run_learns(tmp_path):
    """What a newcomer sees first, but for the last three of its six epochs: from 90 % to a few per cent."""
    output = run("--device", "cpu", "--epochs", "3", "-o", str(tmp_path / "run"))
    best = [record for record in records(tmp_path / "run") if record["event"] == "end"][-1]["best_top1_error"]
    assert best <= 0.1, output
