"""Tests in processes of their own (tools/watched_tests.py): made-up ones that hang, crash, fail and break a device.
Each is named, and the others run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import watched_tests

TESTS = Path(__file__).parents[1]
BAD = """
import ctypes, os, signal, time
import pytest

def test_passes(): pass
def test_sleeps(): ctypes.CDLL(None).sleep(1000)
def test_behind_sleeps(): pass
def test_sleeps_with_the_lock(): ctypes.PyDLL(None).sleep(1000)
def test_behind_the_lock(): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def test_is_wrong(): assert 1 + 1 == 3
def test_is_skipped(): pytest.skip("no reason")
def test_leaves(): os._exit(7)
def test_is_last(): pass
"""
# the device is the stand-in's; a new process has a new one
DEVICE = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
import pytest
from fake_cuda import Machine, install
from convnet import functional
from convnet.kernels import _emu

machine = Machine()
install(pytest.MonkeyPatch(), machine, _emu)

def relu(): functional.relu(np.ones((8, 8), np.float32), device="cuda:0")

def test_before(): relu()
def test_breaks_the_device():
    machine.fail(0, 0, "cuEventSynchronize failed: an illegal memory access was encountered")
    relu()
    relu()
def test_behind(): relu()
def test_plays_a_broken_device():
    machine.fail(0, 0, "cuEventSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="a kernel broke off"):
        relu(), relu()
    machine.dead.clear()
def test_behind_it(): relu()
def test_hangs():
    machine.ran = lambda context: time.sleep(1000)
    relu()
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The checkout would stand in for the installed package."""
    monkeypatch.chdir(tmp_path)


def run(tmp_path: Path, *options: str, **files: str) -> tuple[int, dict]:
    """Exit code and findings."""
    for name, text in files.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    output = tmp_path / "found.json"
    code = watched_tests.main([str(tmp_path), "--logs", str(tmp_path / "logs"), "-o", str(output), *options])
    return code, json.loads(output.read_text())


@pytest.mark.slow
def test_each_fault_costs_one_test(tmp_path, capsys):
    code, found = run(tmp_path, "-j", "1", "--limit", "3", bad=BAD)
    assert code == 1
    tests = {kind: {test.rpartition("::")[2] for test in found[kind]} for kind in found}
    assert tests == {
        "passed": {"test_passes", "test_behind_sleeps", "test_behind_the_lock", "test_is_last"},
        "skipped": {"test_is_skipped"},
        "failed": {"test_is_wrong"},
        "crashed": {"test_crashes", "test_leaves"},
        "hung": {"test_sleeps", "test_sleeps_with_the_lock"},
        "not_run": set(),
    }
    assert found["crashed"] == {"test_bad.py::test_crashes": "SIGSEGV", "test_bad.py::test_leaves": "exit code 7"}
    assert "a call that holds Python's lock" in found["hung"]["test_bad.py::test_sleeps_with_the_lock"]
    said = capsys.readouterr().out
    assert "failed: test_bad.py::test_is_wrong: assert (1 + 1) == 3" in said
    assert "4 passed, 1 skipped, 1 failed, 2 crashed, 2 hung, 0 not run in" in said
    log = (tmp_path / "logs" / "test_bad-0.log").read_text()
    assert "test_sleeps hangs: more than 3 s" in log
    assert re.search(r'File ".*test_bad.py", line \d+ in test_sleeps_with_the_lock', log)


@pytest.mark.slow
def test_a_broken_device_costs_one_test(tmp_path, capsys):
    code, found = run(tmp_path, "-j", "1", "--limit", "5", device=DEVICE)
    assert code == 1
    assert found["passed"] == [
        f"test_device.py::test_{name}" for name in ("before", "behind", "plays_a_broken_device", "behind_it")
    ]
    assert list(found["failed"]) == ["test_device.py::test_breaks_the_device"]
    assert "kernels queued last: cuda:0 relu_forward" in found["hung"]["test_device.py::test_hangs"]
    said = capsys.readouterr().out
    assert f"exit code {watched_tests.SPOILT}, 2 of 6 begun" in said
    assert f"exit code {watched_tests.HUNG}, 6 of 6 begun" in said
    assert re.search(r"failed: .*breaks_the_device: .*KernelFault: cuda:0: .* illegal memory .* relu_forward", said)


def test_processes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(watched_tests, "ATTEMPTS", 2)
    text = "import os\n" + "".join(f"def test_{i}(): os._exit(3)\n" for i in range(4))
    code, found = run(tmp_path, "--each", "4", crashes=text, passes="def test_passes(): pass")
    assert (code, len(found["passed"]), len(found["crashed"])) == (1, 1, 2)
    assert set(found["not_run"].values()) == {"2 processes ended before it"}


def test_only_what_passes_is_good(tmp_path, capsys):
    text = "import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pytest.skip('why')\n"
    assert run(tmp_path, "--each", "1", "-k", "not test_b", all=text)[0] == 0
    assert "2 tests in 2 processes" in capsys.readouterr().out
    assert run(tmp_path, "-k", "test_c", all=text)[0] == 1
    assert "skipped: 1 tests: Skipped: why\n0 passed, 1 skipped" in capsys.readouterr().out
    assert watched_tests.main([str(tmp_path), "-k", "nonsense"]) == 1
    assert "no test was collected" in capsys.readouterr().err


def test_a_file_that_ends_its_process(tmp_path):
    """While it is collected in one, not in the parent's."""
    text = "import sys\nif not any('--collect-only' in a for a in sys.argv): raise SystemExit(5)\ndef test_a(): pass\n"
    code, found = run(tmp_path, broken=text)
    assert code == 1
    assert "ended in front of all tests" in found["not_run"]["test_broken.py::test_a"]


def test_what_was_under_way_when_the_time_was_up_is_said(tmp_path):
    part = watched_tests.Part("test_x.py", str(tmp_path), ["a", "b", "c"], "x-0", tmp_path, tmp_path)
    part.attempts = 1
    notes = [{"begun": "a"}, {"ended": "a", "outcome": "passed", "text": ""}, {"begun": "b"}]
    part.record.write_text("\n".join(map(json.dumps, notes)) + '\n{"ended": "b", "outco')
    found = watched_tests.summed_up([part], 3)
    assert found.passed == ["a"]
    assert found.not_run["b"] == "was not done when the time was up"
    assert "was stopped" in found.not_run["c"]
    assert not found.good()
