"""Runs of ``convnet-train`` on a few small images, for the tests of training."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import convnet
from convnet.cli.train import main
from convnet.training import checkpoint

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(convnet.__file__).parents[1])}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # output is buffered, as it is for most
COLOURS = ("blue", "green", "red")
# 36 images in batches of 8: five steps per epoch, the last one short
TINY = ["--device", "cpu", "-b", "8", "--epochs", "2", "--width", "0.25", "--crop", "32", "--lr", "0.01"]
LAST_STEP = 10
# Python looks for modules where it is started; convnet is to be the one that the tests have imported.
ELSEWHERE = "import sys; sys.path[:] = filter(None, sys.path)\n"
TRAIN = ELSEWHERE + "from convnet.cli.train import main; sys.exit(main())"
UNIMPORTANT = ("steps", "workers", "cache", "save_every", "keep")  # options that may differ where nothing else may

CLOCK = ("images_per_second", "data_share")  # of a train record


def make_images(folder: Path, classes=COLOURS, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for part, count in (("train", 12), ("val", 4)):
        for channel, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (30 + i, 40 - i, 3), dtype=np.uint8)
                pixels[..., channel % 3] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


@functools.cache
def shared_folder() -> Path:
    """One for the whole test session."""
    folder = Path(tempfile.mkdtemp(prefix="convnet-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def shared_images() -> str:
    return str(make_images(shared_folder() / "images"))


@functools.cache
def straight_run() -> Path:
    """A run that nothing disturbed, in a process of its own."""
    folder = shared_folder() / "run"
    output = run(shared_images(), *TINY, "-o", str(folder))
    assert f"run folder: {folder}" in output
    return folder


def spawn(*arguments: str, code: str = TRAIN, **options):
    """``convnet-train``, or other code, in a new process."""
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": ENVIRONMENT, **options},
    )


def run(*arguments: str, code: int = 0) -> str:
    """Output and errors of ``convnet-train`` in a new process that ends with this code."""
    process = spawn(*arguments)
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == code, output + errors
    assert "Traceback" not in errors
    return output + errors


def here(*arguments: str) -> int:
    """``convnet-train`` in this process."""
    return main([*arguments, "-q"])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training(folder: Path) -> list[dict]:
    """The records, without what depends on the clock or on interruptions."""
    kept = [record for record in records(folder) if record["event"] in ("train", "valid")]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in kept]


def final(folder: Path, step: int = LAST_STEP) -> tuple[dict[str, bytes], dict]:
    """All tensors as bytes, and the state, of the checkpoint at ``step``."""
    found = checkpoint.load(folder / "checkpoints" / checkpoint.file_name(step))
    options = {key: value for key, value in found.state["config"].items() if key not in UNIMPORTANT}
    return {name: values.tobytes() for name, values in found.tensors.items()}, {**found.state, "config": options}


# ---- any command ----


def command(name, *arguments, **options):
    """The command in a process of its own."""
    code = f"{ELSEWHERE}from convnet.cli.{name} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=300,
        **{"text": True, **options},
    )


def call(function, *arguments):
    """The exit code of the command in this process."""
    try:
        return function(list(arguments))
    except SystemExit as ended:
        return ended.code


# ---- a checkpoint ----

STATE = {
    "step": 120,
    "epoch": 1,
    "position": 64,
    "seed": 2**63 + 1,
    "schedule": {"lowest": 0.1, "since": 40, "judged": 80, "drops": 1},
    "running": {"images": 3, "loss": 0.1 + 0.2, "top1": 1, "top5": 0},
    "best": {"error": None, "step": None},
    "last": {"error": 0.25, "loss": 1.5},
    "config": {"model": "alexnet-tiny", "data": "Äpfel/日本"},
    "classes": ["a", "b\n", "\N{GRINNING FACE}"],
    "dataset": {"name": "n", "fingerprint": "f"},
    "colour": {"deviations": [1.0, 2.0, 3.0]},
    "versions": {"convnet": "0"},
}
