"""Whatever arguments the compiled modules and ``convnet.functional`` get, Python goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENVIRONMENT

PROGRAM = Path(__file__).parents[1] / "fuzz_bindings.py"


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "calls"), [("emu", 1000), ("cpu", 1000), ("functional", 800)])
def test_emu_any_arguments_end_in_an_exception_or_a_result(layer, calls, tmp_path):
    last = tmp_path / "last-call"
    environment = {**ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), layer, str(calls), str(last)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    assert done.returncode == 0, f"{ended} in {last.read_text() if last.exists() else 'no call'}{done.stderr[-3000:]}"
    counts = dict(re.findall(r"'(\w+)': (\d+)", done.stdout))
    assert int(counts["returned"]) > calls // 10
    assert int(counts["refused"]) > calls // 10
