"""What the README tells a stranger to type, typed: from a folder without a split to predictions in a table."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data_files import lay
from runs import ENVIRONMENT

README = Path(__file__).parents[2] / "README.md"


def walk(name: str = "a walk") -> list[str]:
    """The commands behind the mark, as they are written."""
    found = re.search(
        rf"<!-- {name}, run by tests/commands/test_walk\.py -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert found is not None
    return [line for line in found[1].splitlines() if line.startswith("convnet-")]


def programs(folder: Path, *names: str) -> dict[str, str]:
    """An environment with commands as installed, but of the package that is tested."""
    folder.mkdir()
    for name in names:
        program = folder / f"convnet-{name}"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m convnet.cli.{name} "$@"\n')
        program.chmod(0o755)
    return {**ENVIRONMENT, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_from_a_folder_without_a_split_to_predictions_in_a_table(tmp_path):
    lay(
        tmp_path, "photos/cats/{1..30}.jpg", "photos/dogs/{1..20}.jpg", "photos/dogs/2024/{1..10}.png", "new/{1..5}.jpg"
    )
    environment = programs(tmp_path / "programs", "train", "eval", "predict")
    said = []
    for command in walk():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (command, done.stderr)
        said.append(done.stdout)
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
    lay(tmp_path, "photos/cats/{1..20}.jpg", "photos/dogs/{1..20}.jpg", "new/{1..2}.jpg")
    environment = programs(tmp_path / "programs", "train", "export", "predict")

    def do(*command: str) -> str:
        done = subprocess.run(
            *command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    do("convnet-train photos/ -o runs/photos --epochs 3 -q")
    (command,) = walk("a walk to onnxruntime")
    assert "checked with onnxruntime" in do(command)
    (lines,) = re.findall(r"a walk to onnxruntime.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "walk.py").write_text(lines)
    label, probability = do(f"{sys.executable} walk.py").split()
    assert label in ("cats", "dogs")
    ours = next(csv.DictReader(do("convnet-predict runs/photos new/1.jpg --csv").splitlines()))
    assert abs(float(probability) - float(ours["probability"])) < 0.01  # which Pillow has scaled in another order
    assert label == ours["label"] or float(probability) < 0.51
    assert "our own pictures" in (tmp_path / "README.md").read_text()
