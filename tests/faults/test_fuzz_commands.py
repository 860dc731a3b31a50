"""Whatever is typed behind a command, it ends with a sentence and the exit code for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENVIRONMENT

PROGRAM = Path(__file__).parents[1] / "fuzz_commands.py"


@pytest.mark.slow
def test_no_command_line_ends_in_a_traceback(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path / "folder"), "120"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="backslashreplace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    codes = dict(re.findall(r"(\d): (\d+)", done.stdout.partition("exit codes")[2]))
    assert int(codes["0"]) >= 10  # some do what they were asked for
    assert int(codes["2"]) >= 10
