"""Stores, checkpoints and run folders that were written before the package was cut into rooms are read as before.

``golden/before-rooms`` was written by version 0.1.0 at that time: a store of 16 images of two classes, and a run of two
epochs on it by a very narrow network.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import here, records

from convnet.cli.eval import main as evaluate
from convnet.cli.predict import main as predict
from convnet.data import open_dataset
from convnet.training import checkpoint

WRITTEN = Path(__file__).resolve().parents[1] / "golden" / "before-rooms"


@pytest.fixture
def written(tmp_path) -> Path:
    shutil.copytree(WRITTEN, tmp_path / "written", symlinks=True)
    return tmp_path / "written"


def test_the_store(written):
    data = open_dataset(written / "store", size=36, seed=0)
    assert data.classes == ["dark", "light"]
    assert (len(data.train), len(data.valid)) == (12, 4)
    for split in (data.train, data.valid):
        for k, label in enumerate(split.labels):
            assert (np.mean(split.image(k)) > 120) == (data.classes[label] == "light")


def test_the_checkpoint(written):
    found = checkpoint.load(written / "run" / "last")
    assert found.part("weights")["conv1.weight"].shape == (16, 3, 7, 7)
    assert found.state["step"] == 6


def test_what_a_run_is_used_for(written, capsys):
    assert evaluate([str(written / "run"), "--data", str(written / "store"), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    image = written / "image.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(image)
    assert predict([str(written / "run"), str(image), "--json", "--device", "cpu"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["images"]
    assert {label["label"] for label in found["labels"]} == {"dark", "light"}


def test_the_run_goes_on(written):
    arguments = [str(written / "store"), "--resume", "auto", "-o", str(written / "run"), "--epochs", "3", "-q"]
    assert here(*arguments) == 0
    assert records(written / "run")[-1]["step"] == 9
    assert [r["epoch"] for r in records(written / "run") if r["event"] == "valid"] == [1, 2, 3]
