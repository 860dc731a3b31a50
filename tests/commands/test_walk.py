"""What the README tells a stranger to type, typed: from a folder without a split to predictions in a table, and from
a file of torchvision to both."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import lay
from PIL import Image
from runs import ENVIRONMENT

README = Path(__file__).parents[2] / "README.md"


def walk(name: str) -> list[str]:
    """The commands behind the mark of this name, as they are written."""
    text = README.read_text()
    mark = re.escape(f"<!-- {name}, run by tests/commands/test_walk.py -->")
    found = re.search(rf"{mark}\n```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return [line for line in found[1].splitlines() if line.startswith("convnet-")]


def done(command: str, folder: Path) -> str:
    """What a line in a shell says; commands are as installed, but of the package that is tested."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for program in ("train", "eval", "predict", "export"):
        path = programs / f"convnet-{program}"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m convnet.cli.{program} "$@"\n')
        path.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, (command, ended.stderr)
    return ended.stdout


def walked(name: str, folder: Path) -> list[str]:
    """What the commands of a walk say, one after the other."""
    return [done(command, folder) for command in walk(name)]


@pytest.mark.slow
def test_from_a_file_of_torchvision_to_predictions_and_to_a_network_of_ones_own(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from published import AlexNet

    torch.manual_seed(0)
    torch.save(AlexNet(5).state_dict(), tmp_path / "alexnet.pth")
    (tmp_path / "classes.txt").write_text("crane\nhen\nrobin\nkite\nowl\n")
    lay(tmp_path, "photos/cats/{1..30}.jpg", "photos/dogs/{1..30}.jpg", "new/{1..3}.jpg")
    said = walked("a walk from a torchvision file", tmp_path)
    assert len(said) == 3
    lines = said[0].splitlines()
    assert [os.path.basename(line) for line in lines[::2]] == ["1.jpg", "2.jpg", "3.jpg"]
    assert {line.split()[-1] for line in lines[1::2]} <= {"crane", "hen", "robin", "kite", "owl"}
    assert "from alexnet.pth: conv1" in said[1].replace(f"{tmp_path}/", "")
    assert "fc6, fc7; new: fc8; frozen: conv1,conv2,conv3,conv4,conv5" in said[1]
    with open(tmp_path / "tuned.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["file"]) for row in rows] == ["1.jpg", "2.jpg", "3.jpg"]
    assert {row["label"] for row in rows} <= {"cats", "dogs"}


@pytest.mark.slow
def test_from_a_folder_without_a_split_to_predictions_in_a_table(tmp_path):
    lay(
        tmp_path, "photos/cats/{1..30}.jpg", "photos/dogs/{1..20}.jpg", "photos/dogs/2024/{1..10}.png", "new/{1..5}.jpg"
    )
    said = walked("a walk", tmp_path)
    assert len(said) == 3
    assert "6 of 60 are held out (10 % of each class, chosen by the seed 0)" in said[0]
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["file"]) for row in rows] == [f"{k}.jpg" for k in range(1, 6)]
    assert {row["label"] for row in rows} <= {"cats", "dogs"}
    with open(tmp_path / "confusion.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["", "cats", "dogs"]


@pytest.mark.slow
def test_a_run_to_onnx_and_into_onnxruntime(tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    random = np.random.default_rng(0)
    for k in range(1, 42):  # cats are red, dogs are blue, and the new one is a cat
        pixels = random.integers(0, 120, (50, 60, 3), dtype=np.uint8)
        pixels[..., 2 * (k % 2 == 0)] += 100
        path = tmp_path / ("new/1.jpg" if k == 41 else f"photos/{'dogs' if k % 2 == 0 else 'cats'}/{k}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    done("convnet-train photos/ -o runs/photos --epochs 5 -q", tmp_path)
    (said,) = walked("a walk to onnxruntime", tmp_path)
    assert "checked with onnxruntime" in said
    (lines,) = re.findall(r"a walk to onnxruntime.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "walk.py").write_text(lines)
    label, probability = done(f"{sys.executable} walk.py", tmp_path).split()
    assert label == "cats"
    ours = next(csv.DictReader(done("convnet-predict runs/photos new/1.jpg --csv", tmp_path).splitlines()))
    assert abs(float(probability) - float(ours["probability"])) < 0.005  # Pillow scales in another order
    assert ours["label"] == "cats"
    assert "our own pictures" in (tmp_path / "README.md").read_text()
