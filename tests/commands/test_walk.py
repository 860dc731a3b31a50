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


def walk() -> list[str]:
    """The commands behind the mark, as they are written."""
    text = README.read_text()
    found = re.search(r"<!-- a walk, run by tests/commands/test_walk\.py -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return [line for line in found[1].splitlines() if line.startswith("convnet-")]


@pytest.mark.slow
def test_from_a_folder_without_a_split_to_predictions_in_a_table(tmp_path):
    lay(
        tmp_path, "photos/cats/{1..30}.jpg", "photos/dogs/{1..20}.jpg", "photos/dogs/2024/{1..10}.png", "new/{1..5}.jpg"
    )
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("train", "eval", "predict"):  # as installed, but of the package that is tested
        program = programs / f"convnet-{name}"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m convnet.cli.{name} "$@"\n')
        program.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
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
