"""``benchmarks.scale``: its formulas by hand, and itself on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from mpi import needs_mpi
from runs import ENVIRONMENT

from benchmarks import report, scale
from convnet.network.networks import network

ALEXNET = 60_965_224 * 4  # bytes of gradients


def test_data_parallel_by_hand():
    traffic = scale.data_parallel(network("alexnet"), 8)
    assert traffic.bytes == pytest.approx(2 * ALEXNET * 7 / 8)
    assert traffic.messages == 2 * 7 * 10  # 244 MB in buckets of 26
    assert traffic.seconds(50e9, 0) == pytest.approx(8.5e-3, rel=0.01)
    assert traffic.seconds(50e9, 1e-6) - traffic.seconds(50e9, 0) == pytest.approx(140e-6)
    assert scale.data_parallel(network("alexnet"), 1).seconds(1, 1) == 0


def test_hybrid_by_hand():
    """Convolutions, and what fc6, fc7 and fc8 read, 2 bytes a value, to 7 others; of all but fc8 the gradient, too."""
    convolutions = 4 * 2_334_080
    there, back = 128 * (9216 + 4096 + 4096), 128 * (9216 + 4096)
    traffic = scale.hybrid(network("alexnet"), 8, 128, 2)
    assert traffic.bytes == pytest.approx(2 * convolutions * 7 / 8 + (there + back) * 2 * 7)
    assert traffic.messages == 2 * 7 + 5 * 7
    assert traffic.seconds(50e9, 0) == pytest.approx(1.43e-3, rel=0.01)
    assert scale.hybrid(network("alexnet"), 1, 128, 2).bytes == 0


def test_a_model_says_what_lies_between_all_and_nothing_at_the_same_time():
    told = scale.model(network("alexnet"), 128, 50e9, 2e-6)
    computing = json.loads(scale.PREDICTED.read_text())["seconds"]
    assert [row["gpus"] for row in told["rows"]] == list(scale.MANY)
    for row in told["rows"]:
        for name in ("data", "hybrid"):
            least, most = row[name]["step_seconds"]
            assert least == max(row[name]["seconds"], computing)
            assert most == row[name]["seconds"] + computing


@needs_mpi
def test_two_processes_are_measured_and_send_what_the_formula_says(tmp_path):
    file = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.scale", "-n", "2", "-b", "10", "--turns", "1", "-o", str(file)]
    command += [] if find_spec("torch") else ["--no-torch"]
    environment = {**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=report.ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert (found["benchmark"], found["processes"]) == ("scale", 2)
    step = found["step"]
    assert step["sent_bytes"] == pytest.approx(step["by_formula"], abs=16)  # parts are whole quads
    assert [row["megabytes"] for row in found["sums"]] == list(scale.SIZES)
    assert f"written to {file}" in done.stdout
    assert "hybrid ms" in done.stdout
    rows = "\n".join(report._scale([found]))
    assert f"| 2 | alexnet-tiny, 10 | {10 / step['ours']['seconds']:,.0f} |" in rows
    assert report.MISSING in "\n".join(report._scale([]))
