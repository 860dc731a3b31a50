"""Checkpoints with a right hash that nobody's run wrote: every command refuses them by one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from runs import LAST_STEP, call, here, shared_images, straight_run
from test_run_faults import rewritten

from convnet.cli.eval import main as evaluate
from convnet.cli.predict import main as predict
from convnet.cli.show import main as show
from convnet.output import figures
from convnet.training import checkpoint, metrics
from convnet.training.config import Config

DEEP: list = []
for _ in range(300):
    DEEP = [DEEP]

# the part of the state, its new value, and what is said of it
STATES = {
    "step that wraps": ("step", 2**32 - 1, 'a whole number below 2^31 as "step"'),
    "step of a truth": ("step", True, 'a whole number below 2^31 as "step"'),
    "negative epoch": ("epoch", -1, 'as "epoch" in the metadata, found -1'),
    "place of no batch": ("position", 3, "expected a place between two batches of 8 of the 36 images, found 3"),
    "place behind the end": ("position", 2**30, "of the 36 images, found 1073741824"),
    "schedule of texts": ("schedule", {"lowest": "a", "waited": 0, "drops": 0}, "lowest, since, judged and drops of"),
    "half a schedule": ("schedule", {"lowest": 0.5, "since": 0, "drops": 0}, "lowest, since, judged and drops"),
    "infinite loss": ("last", {"error": 0.5, "loss": 10**400}, "error, 0 to 1, and loss at the last evaluation"),
    "schedule of nothing": ("schedule", {}, "lowest, since, judged and drops of a schedule"),
    "infinite error": ("schedule", {"lowest": 10**400, "waited": 0, "drops": 0}, "lowest, since, judged and drops"),
    "too many drops": ("schedule", {"lowest": None, "waited": 0, "drops": 2**20}, "lowest, since, judged and drops"),
    "more than is summed": ("running", {"images": 1, "loss": 0, "top1": 0, "top5": 0, "x": 1}, "images, loss, top1"),
    "gigantic sums": ("running", {"images": 10**400, "loss": 0.0, "top1": 0, "top5": 0}, "images, loss, top1"),
    "best of a list": ("best", {"error": [0.5], "step": 1}, "error, 0 to 1, and step of the best evaluation"),
    "error above 1": ("last", {"error": 6, "loss": 0.5}, "error, 0 to 1, and loss at the last evaluation"),
    "best below 0": ("best", {"error": -0.5, "step": 1}, "error, 0 to 1, and step of the best evaluation"),
    "best of nothing": ("best", {}, "error, 0 to 1, and step of the best evaluation"),
    "classes of lists": ("classes", [["a"], ["b"], ["c"]], "names of classes"),
    "no data": ("dataset", {}, "name, fingerprint and depth of the data"),
    "deep data": ("dataset", {"name": DEEP, "fingerprint": "f"}, "name, fingerprint and depth of the data"),
    "held out of nothing": (
        "dataset",
        {"name": "n", "fingerprint": "f", "held_out": {"of": [], "seed": 0, "share": 0.5}},
        "and what is held out of it",
    ),
    "layers of numbers": ("new_layers", [1], "names of layers"),
    "colours of one": ("colour", {"std": 1, "deviations": [1] * 3, "directions": [[1] * 3] * 3}, "3 numbers as std"),
    "colours of texts": ("colour", {"std": "abc"}, "expected the images' colours"),
}
OPTIONS = {
    "network": ("model", "alexnt", 'no network is called "alexnt"'),
    "huge crop": ("crop", 2**30, "weights/fc6.weight: the network has"),
    "huge width": ("width", 16.0, "weights/conv1.bias: the network has"),
    "device": ("device", "gpu", 'device must be "cpu"'),
    "precision of no such device": ("precision", "bf16", "cpu computes in fp32 only"),
    "no batch": ("keep", None, "--keep must be a whole number, got None"),
    "endless": ("epochs", 10**300, "--epochs must be less than 2147483648"),
    "layer": ("freeze", "conv9", 'no layer with weights is called "conv9"'),
    "layer of a stage": ("stages", [{"epoch": 0, "lr": 1, "layers": {"x": 1}}], "no layer is called 'x'"),
    "all frozen": ("freeze", ",".join(f"conv{k}" for k in range(1, 6)) + ",fc6,fc7,fc8", "all layers are frozen"),
    "option": ("x\x1b[2J", 1, "unexpected keyword argument 'x\\x1b[2J'"),
}


@pytest.fixture(scope="module")
def written() -> bytes:
    return (straight_run() / "checkpoints" / checkpoint.file_name(LAST_STEP)).read_bytes()


def refused(capsys, code: int) -> str:
    """The sentence with which a command ended."""
    error = capsys.readouterr().err
    assert code == 4, error
    assert error.count("\n") == 1
    assert error[:-1].isprintable()
    return error


@pytest.mark.parametrize("what", [*STATES, *OPTIONS])
def test_a_state_that_no_run_wrote_is_refused(written, tmp_path, capsys, what):
    part, value, message = {**STATES, **OPTIONS}[what]
    path = tmp_path / "given.safetensors"
    path.write_bytes(rewritten(written, lambda _, state: (state if what in STATES else state["config"])
                               .update({part: value})))  # fmt: skip
    error = refused(capsys, here("--resume", str(path), "-o", str(tmp_path / "run")))
    assert "given.safetensors: expected" in error or "the network has" in error
    assert message in error


def no_conv1(tensors, state):
    for name in [name for name in tensors if "conv1." in name]:
        del tensors[name]


def other_mean(tensors, state):
    tensors["mean"] = np.zeros((3, 5, 5), np.float32)


def other_classes(tensors, state):
    state["classes"] = ["a", "b"]


@pytest.mark.parametrize("change", [no_conv1, other_mean, other_classes])
def test_no_command_takes_up_tensors_that_do_not_fit_their_options(written, tmp_path, capsys, change):
    path = tmp_path / "given.safetensors"
    path.write_bytes(rewritten(written, change))
    run, picture = str(path), os.path.join(shared_images(), "val", "red", "0.png")
    for main, arguments in (
        (evaluate, [run]),
        (predict, [run, picture]),
        (show, [run, "filters", "-o", str(tmp_path / "f.png")]),
        (show, [run, "confusion", "-o", str(tmp_path / "f.png")]),
    ):
        assert "given.safetensors: " in refused(capsys, call(main, *arguments))
    assert "given.safetensors: " in refused(capsys, here("--resume", run, "-o", str(tmp_path / "run")))
    assert "given.safetensors: " in refused(capsys, here("--init-from", run, "-o", str(tmp_path / "run")))
    assert [path.name for path in tmp_path.iterdir()] == ["given.safetensors"]


def test_more_images_than_there_are_take_no_memory(written, tmp_path):
    """A batch size as large as can be: nobody's memory is asked for that many."""
    path = tmp_path / "given.safetensors"
    path.write_bytes(rewritten(written, lambda _, state: state["config"].update(batch_size=2**31 - 1, epochs=3)))
    assert here("--resume", str(path), "-o", str(tmp_path / "run")) == 0


def test_records_that_nobody_wrote_are_left_out(tmp_path):
    file = metrics.MetricsFile(Path(tmp_path / "metrics.jsonl"))
    file.path.write_text(
        '{"event": "train", "step": "x", "loss": 1}\n{"event": "train", "loss": 1}\n[]\n'
        f'{{"event": "train", "step": 1, "loss": {10**400}}}\n{{"event": "train", "step": 2, "loss": 0.5}}\n'
    )
    assert figures.series(file.records(), "train", "loss") == ([2], [0.5])
    file.rewind(1, evaluated=True)
    assert [record["step"] for record in file.records()] == [1]


def test_a_device_that_cannot_be_is_noticed_before_anything_is_read():
    with pytest.raises(ValueError, match='device must be "cpu", "emu'):
        Config(device="gpu")
