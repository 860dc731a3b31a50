"""Training runs: what they leave behind, and that they go on bit for bit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image
from runs import (
    COLOURS,
    ENVIRONMENT,
    TINY,
    TRAIN,
    final,
    here,
    make_images,
    records,
    run,
    training,
)

import convnet
from convnet.training import checkpoint, config, schedule, verdict
from convnet.training.metrics import losses_and_ranks
from convnet.training.run import RunFolder

# ---- what a run leaves behind


def test_the_run_folder(straight):
    names = {
        "config.toml",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoints",
        "last",
        "best",
        "curves.png",
        "filters.png",
        "log.txt",
        ".lock",
    }
    assert {path.name for path in straight.iterdir()} == names
    files = [path.name for path in sorted((straight / "checkpoints").iterdir())]
    assert files == ["step-00000005.safetensors", "step-00000010.safetensors"]
    assert checkpoint.load(straight / "last").state["step"] == 10
    best = min((r for r in records(straight) if r["event"] == "valid"), key=lambda r: r["top1_error"])
    assert checkpoint.load(straight / "best").state["step"] == best["step"]
    log = (straight / "log.txt").read_text()
    assert re.search(r"validation: top-1 error \d+\.\d\d % \(\+- \d+\.\d\d %\)  loss ", log)
    assert "top-5" not in log  # of three classes


def test_from_six_classes_on_there_is_a_top_5_error(tmp_path):
    for count in (5, 6):
        images = make_images(tmp_path / f"images{count}", classes=tuple("abcdef"[:count]))
        assert here(str(images), *TINY, "--epochs", "1", "-o", str(tmp_path / str(count))) == 0
        assert ("  top-5 error " in (tmp_path / str(count) / "log.txt").read_text()) == (count == 6)
        assert all("top5_error" in record for record in records(tmp_path / str(count)) if record["event"] == "valid")


def test_the_records(straight):
    found = records(straight)
    assert [record["event"] for record in found] == ["start", "train", "valid", "train", "valid", "end"]
    for record in found:
        keys = {
            "start": {"step", "epoch"},
            "train": {"step", "epoch", "loss", "top1_error", "top5_error", "lr", "images_per_second", "data_share"},
            "valid": {"step", "epoch", "loss", "top1_error", "top5_error", "views"},
            "end": {"step", "epoch", "status", "best_top1_error", "best_step", "seconds"},
        }[record["event"]]
        assert keys <= set(record)
    assert [(r["step"], r["epoch"]) for r in found if r["event"] == "train"] == [(5, 1), (10, 2)]
    assert all(0 <= r["top1_error"] <= 1 and r["top5_error"] == 0 for r in found if r["event"] == "valid")  # 3 classes


def test_the_resolved_configuration(straight, images):
    found = config.read_toml(str(straight / "config.toml"))
    assert (found["data"], found["batch_size"], found["crop"], found["lr"]) == (images, 8, 32, 0.01)
    assert "steps" not in found
    unset = dict.fromkeys(("steps", "dropout", "towers", "stages", "init_from", "freeze", "log", "size", "crop_border"))
    unset |= dict.fromkeys(("train_range", "test_range", "activation", "definition", "layer_def", "layer_params"))
    assert checkpoint.load(straight / "last").state["config"] == {**found, **unset}


def test_the_figures_show_something(straight):
    for name, colours in (("curves.png", 50), ("filters.png", 100)):
        pixels = np.asarray(Image.open(straight / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > colours, name


def test_the_checkpoint_has_what_the_interface_promises(straight):
    found = checkpoint.load(straight / "last")
    assert {f"{part}/{name}" for part in ("weights", "velocity") for name in ("conv1.weight", "fc8.bias")} <= set(
        found.tensors
    )
    assert found.tensors["mean"].shape == (3, 32, 32)
    assert found.tensors["weights/conv1.weight"].shape == (16, 3, 7, 7)
    assert found.state["classes"] == list(COLOURS)


def test_old_checkpoints_go_and_the_best_one_stays(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--save-every", "1", "--keep", "2") == 0
    steps = {int(path.stem[5:]) for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {9, 10, checkpoint.load(tmp_path / "best").state["step"]}


def test_evaluations_can_be_rarer_and_the_last_one_is_always_made(images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--epochs", "3", "--eval-every", "2") == 0
    assert [record["step"] for record in records(tmp_path) if record["event"] == "valid"] == [10, 15]


def test_without_augmentation_the_order_is_still_shuffled(images, tmp_path, monkeypatch):
    seen = []
    train_step = convnet.Network.train_step

    def note(network, pixels, labels, windows, noise, *options):
        seen.append((labels, windows, noise))
        return train_step(network, pixels, labels, windows, noise, *options)

    monkeypatch.setattr(convnet.Network, "train_step", note)
    assert here(images, *TINY, "--no-augment", "--epochs", "1", "-o", str(tmp_path)) == 0
    labels = np.concatenate([labels for labels, _, _ in seen])
    assert sorted(labels.tolist()) == [0] * 12 + [1] * 12 + [2] * 12
    assert len(set(labels[:8].tolist())) > 1  # as stored, the first batch would be of one class
    assert all((windows == (2, 2, 0)).all() and not noise.any() for _, windows, noise in seen)  # 37 -> 32 pixels


def test_equal_runs_are_equal_and_other_seeds_are_not(straight, images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path / "same")) == 0
    assert here(images, *TINY, "-o", str(tmp_path / "other"), "--seed", "1") == 0
    assert final(tmp_path / "same")[0] == final(straight)[0]
    assert final(tmp_path / "other")[0]["weights/fc8.weight"] != final(straight)[0]["weights/fc8.weight"]


def test_ranks_count_the_classes_before_the_label():
    logits = np.array([[1, 3, 2, 3], [5, 5, 5, 5], [0, 0, 9, 0]], np.float32)
    losses, ranks = losses_and_ranks(logits, np.array([3, 2, 2], np.int32))
    assert ranks.tolist() == [1, 2, 0]
    expected = [np.log(np.exp(row.astype(np.float64)).sum()) - row[k] for row, k in zip(logits, (3, 2, 2), strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-14)
    assert losses_and_ranks(np.array([[-1e30, 1e30]], np.float32), np.array([0], np.int32))[0][0] == pytest.approx(2e30)


def test_a_terminal_gets_one_moving_line_and_a_pipe_plain_ones(images, tmp_path):
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    command = [sys.executable, "-c", TRAIN, images, *TINY, "-o"]
    subprocess.run(
        [*command, tmp_path / "a"], stdout=terminal, stderr=terminal, env=ENVIRONMENT, check=True, timeout=300
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert b"\repoch 1/2  1/5  loss " in shown
    assert b"\nepoch 1/2  1/5" not in shown
    output = run(images, *TINY, "-o", str(tmp_path / "b"))
    assert "\nepoch 1/2  1/5  loss " in output
    assert "\r" not in output
    quiet = run(images, *TINY, "-o", str(tmp_path / "c"), "-q").splitlines(keepends=True)
    assert "".join(line for line in quiet if not line.startswith("warning: nothing was learnt")) == ""


# ---- going on


@pytest.mark.parametrize("cut", [3, 5, 8])  # in mid-epoch, at an epoch's edge, in the second epoch
@pytest.mark.parametrize("workers", ["0", "3"])
def test_a_resumed_run_equals_a_straight_one(straight, images, tmp_path, cut, workers):
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", str(cut), "-j", "1") == 0
    assert f"resumed at step {cut}" in run("--resume", "auto", "-o", str(tmp_path), "-j", workers)
    assert final(tmp_path) == final(straight)
    extra = {"event": "train", "step": cut, "epoch": 1 + cut // 5}  # the record that ends a run of --steps
    kept = [r for r in training(tmp_path) if cut == 5 or not extra.items() <= r.items()]
    assert kept == training(straight)


def test_a_resumed_run_in_bf16_equals_a_straight_one(images, tmp_path):
    """The copies in bfloat16 are no part of a checkpoint: they follow from the weights. The precision is inherited."""
    options = [images, *TINY, "--device", "emu", "--precision", "bf16", "--epochs", "1"]
    assert here(*options, "-o", str(tmp_path / "straight")) == 0
    assert here(*options, "-o", str(tmp_path / "cut"), "--steps", "2") == 0
    assert here("--resume", "auto", "-o", str(tmp_path / "cut")) == 0
    assert final(tmp_path / "cut", 5) == final(tmp_path / "straight", 5)
    assert final(tmp_path / "cut", 5)[1]["config"]["precision"] == "bf16"


def test_the_plateau_schedule_is_resumed(images, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "LEAST_STEPS", 1)
    monkeypatch.setattr(verdict.Chance, "begun", lambda *_: True)
    options = [images, *TINY, "--lr-schedule", "plateau", "--epochs", "6", "--patience", "1"]
    options += ["--lr", "1e-12"]  # too small to change an error
    assert here(*options, "-o", str(tmp_path / "straight")) == 0
    assert here(*options, "-o", str(tmp_path / "cut"), "--steps", "17") == 0
    assert here("--resume", "auto", "-o", str(tmp_path / "cut")) == 0
    rates = {r["epoch"]: r["lr"] for r in training(tmp_path / "straight") if r["event"] == "train"}
    assert list(rates.values()) == pytest.approx([1e-12, 1e-12, 1e-13, 1e-14, 1e-15], rel=1e-9)  # and the end
    assert final(tmp_path / "cut", 25) == final(tmp_path / "straight", 25)


def test_auto_starts_where_there_is_nothing_and_repeats_nothing_when_done(images, tmp_path, straight):
    command = [images, *TINY, "--resume", "auto", "-o", str(tmp_path)]
    assert here(*command) == 0
    before = training(tmp_path)
    assert here(*command) == 0
    assert training(tmp_path) == before == training(straight)
    assert here("--resume", "auto", "-o", str(tmp_path), "--epochs", "3") == 0
    assert [r["step"] for r in training(tmp_path) if r["event"] == "valid"] == [5, 10, 15]


def test_auto_without_a_checkpoint_starts_anew_with_the_options_of_the_run(straight, images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "3") == 0
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    assert "no checkpoint in" in run("--resume", "auto", "-o", str(tmp_path))
    assert final(tmp_path) == final(straight)
    assert training(tmp_path) == training(straight)


def test_auto_steps_back_over_a_damaged_checkpoint(straight, images, tmp_path, capsys):
    assert here(images, *TINY, "-o", str(tmp_path), "--steps", "7", "--save-every", "1") == 0
    os.truncate(tmp_path / "checkpoints" / checkpoint.file_name(7), 1000)
    assert here("--resume", "auto", "-o", str(tmp_path)) == 0
    assert "step-00000007.safetensors: expected a complete safetensors file" in capsys.readouterr().err
    assert final(tmp_path) == final(straight)
    assert [r for r in training(tmp_path) if r["step"] != 7] == training(straight)
    for path in (tmp_path / "checkpoints").iterdir():
        os.truncate(path, 10)
    assert here("--resume", "auto", "-o", str(tmp_path)) == 4


def test_from_a_file_in_its_run_sets_later_checkpoints_aside(straight, images, tmp_path):
    assert here(images, *TINY, "-o", str(tmp_path), "--save-every", "2", "--keep", "9") == 0
    file = tmp_path / "checkpoints" / checkpoint.file_name(4)
    assert here("--resume", str(file), "--steps", "5") == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names[:3] == ["step-00000002.safetensors", "step-00000004.safetensors", "step-00000005.safetensors"]
    assert all(name.endswith(".unused") for name in names[3:])
    assert here("--resume", str(tmp_path)) == 0
    assert final(tmp_path) == final(straight)
    assert training(tmp_path) == training(straight)


def test_from_a_file_into_a_new_folder(straight, tmp_path):
    assert here("--resume", str(straight / "checkpoints" / checkpoint.file_name(5)), "-o", str(tmp_path / "new")) == 0
    assert final(tmp_path / "new") == final(straight)


# ---- what cannot go on


def refused(capsys, code, text, *arguments):
    assert here(*arguments) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_run_is_not_overwritten(straight, images, tmp_path, capsys):
    refused(capsys, 2, "there is a run in this folder; go on with --resume auto", images, *TINY, "-o", str(straight))
    (tmp_path / "config.toml").write_text("")
    refused(capsys, 2, "another run in this folder", "--resume", str(straight / "last"), "-o", str(tmp_path))


def test_what_a_resumed_run_cannot_change(straight, tmp_path, capsys, images):
    resume = ["--resume", "auto", "-o", str(straight)]
    refused(capsys, 4, "cannot take --seed 1 (it is 0)", *resume, "--seed", "1")
    refused(capsys, 4, "cannot take --batch-size 9 (it is 8)", *resume, "-b", "9")
    refused(capsys, 4, "cannot take --model alexnet (it is alexnet-tiny)", *resume, "--model", "alexnet")
    refused(capsys, 4, "cannot take --precision tf32 (it is fp32)", *resume, "--precision", "tf32", "--device", "emu")
    refused(capsys, 4, "cannot take --no-augment (it was not given)", *resume, "--no-augment")
    refused(capsys, 4, "expected the 3 classes it was trained on, found 10", *resume, "shapes")
    other = make_images(tmp_path / "other", seed=1)
    refused(capsys, 4, "found other images", *resume, str(other))
    other = make_images(tmp_path / "names", classes=("blue", "green", "yellow"))
    refused(capsys, 4, "different: ['red', 'yellow']", *resume, str(other))
    assert final(straight)  # nothing was touched


def test_two_processes_cannot_share_a_folder(images, tmp_path, capsys):
    with RunFolder(tmp_path):
        refused(capsys, 2, "another process is training there", images, *TINY, "-o", str(tmp_path), "--resume", "auto")
