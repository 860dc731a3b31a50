"""Mutated files end in the documented errors: a short run of tools/fuzz.py, and what earlier ones found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the fuzzer forks, and limits its memory."""
    command = [sys.executable, ROOT / "tools" / "fuzz.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_inputs_that_were_findings():
    run = fuzz("--replay", ROOT / "tests" / "fuzz")
    assert run.returncode == 0, run.stdout + run.stderr
    assert " kept inputs, 0 of them" in run.stdout


@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_run_finds_nothing(seed, tmp_path):
    run = fuzz("--inputs", 2000, "--seed", seed, "--keep", tmp_path / "found")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("0 findings\n")


def test_a_defect_is_found_and_kept(tmp_path):
    """A reader that lets an error of its parser through, as if nothing had been documented."""
    code = "import sys, fuzz; fuzz.DataError = KeyError; sys.exit(fuzz.main())"
    command = [sys.executable, "-c", code, "--target", "pickle", "--inputs", "50", "--keep", str(tmp_path / "found")]
    run = subprocess.run(command, cwd=ROOT / "tools", capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "FINDING pickle, seed 0, input" in run.stdout
    assert list((tmp_path / "found" / "pickle").glob("*/*"))


@pytest.mark.slow
def test_a_reader_without_an_end_is_found(tmp_path):
    code = "import sys, fuzz\nfuzz.SECONDS = 0.3\ndef endless(*_):\n    while True: pass\nfuzz.read_plain = endless\n"
    command = [sys.executable, "-c", code + "sys.exit(fuzz.main())", "--target", "pickle", "--inputs", "2"]
    run = subprocess.run(
        [*command, "--keep", str(tmp_path)],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Hang at" in run.stdout
    assert "more than 0.3 s of computing" in run.stdout
