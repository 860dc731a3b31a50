"""What is done on a machine with a GPU (tools/gpu-check, tools/tensor_maps.py), as far as it goes without one: the
plan, stages that hang or fail, the archive, every stage in the emulator, and refused tensor maps."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import tensor_maps

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPT = ROOT / "tools" / "gpu-check"
loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
sys.modules["gpu_check"] = gpu_check  # where its dataclass looks for itself
loader.exec_module(gpu_check)
Stage = gpu_check.Stage
NAMES = [stage.name for stage in gpu_check.STAGES]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def unpacked(archive: Path) -> dict[str, str]:
    """Texts by name."""
    with tarfile.open(archive) as tar:
        files = {member.name.removeprefix("gpu-check/"): tar.extractfile(member).read() for member in tar}
    return {name: content.decode(errors="replace") for name, content in files.items()}


# ---- the plan


@pytest.mark.parametrize(("options", "minutes"), [((), 8), (("--second",), 6)])
def test_a_call_fits_its_minutes(options, minutes, tmp_path):
    (tmp_path / "pycuda-1-py3-none-any.whl").touch()
    done = call("--dry-run", "--wheels", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    parts = [float(line.split()[1]) for line in lines]
    assert f" min of {minutes}" in lines[-1]
    assert parts[-1] == pytest.approx(sum(parts[:-1]), abs=0.051 * len(parts))
    assert parts[-1] <= minutes
    assert "pycuda-1-py3-none-any.whl" in done.stdout
    too_few = call("--dry-run", "--minutes", minutes - 3, *options)
    assert too_few.returncode == 2
    assert f"of {minutes - 3} minutes; name fewer --stages" in too_few.stderr


def test_a_plan_that_does_not_fit_is_not_begun(tmp_path):
    done = call(tmp_path / "out", "--minutes", "1")
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_impossible_options(tmp_path):
    assert "there is no stage nonsense; there are driver, wheels," in call(tmp_path, "--stages", "nonsense").stderr
    assert "--device must be cuda:i or emu, got cpu" in call(tmp_path, "--device", "cpu").stderr
    assert "there is no wheel in" in call(tmp_path, "--wheels", tmp_path).stderr
    assert "name the folder" in call().stderr


@pytest.mark.parametrize("number", [1, 2])
def test_a_summary_is_short(number):
    """Of what is printed, a reader may get the last 12,000 characters."""
    stages = [stage for stage in gpu_check.STAGES if number in stage.calls]
    assert sum(stage.shown + 100 for stage in stages) < 11_500
    assert gpu_check.FATAL + 100 * len(stages) < 11_500


# ---- stages that are made up

HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def stage(name: str, code: str, minutes: float = 1.0, needed: bool = False) -> Stage:
    """A stage that runs this Python."""
    return Stage(name, minutes, 300, (1,), f"{{python}} -c '{code}'", needed=needed)


def run(tmp_path: Path, monkeypatch, *stages: Stage) -> tuple[int, dict[str, str], dict]:
    """Exit code, files of the archive, summary."""
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    monkeypatch.setattr(sys, "argv", ["gpu-check", str(tmp_path)])
    code = gpu_check.main()
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check.tar.gz"]
    files = unpacked(tmp_path / "gpu-check.tar.gz")
    return code, files, json.loads(files["summary.json"])


def gone(pid: int) -> bool:
    """Whether a process that was killed has ended, soon; somebody may still have to take note of that."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_a_stage_that_hangs_is_killed_with_its_children(tmp_path, monkeypatch, capsys):
    code, files, summary = run(
        tmp_path, monkeypatch, stage("hangs", HANGS, minutes=0.05), stage("fails", "print(5); raise SystemExit(3)"),
        stage("passes", "print(7)"),
    )  # fmt: skip
    assert code == 1
    assert [summary[name]["status"] for name in ("hangs", "fails", "passes")] == [
        "stopped after its 6 s", "failed with exit code 3", "passed",
    ]  # fmt: skip
    assert gone(int(files["hangs.log"].split()[1]))
    assert files["passes.log"] == "7\n"
    said = capsys.readouterr().out
    assert "hangs begins, at most 6 s\n" in said
    assert said.endswith(files["summary.txt"])
    assert "== fails: failed with exit code 3" in files["summary.txt"]


def test_what_all_others_need_ends_the_run(tmp_path, monkeypatch, capsys):
    broken = stage("build", 'print("line\\n" * 500); raise SystemExit(1)', needed=True)
    code, files, summary = run(tmp_path, monkeypatch, stage("first", "pass"), broken, stage("second", "pass"))
    assert code == 1
    assert [result["status"] for result in summary.values()] == ["passed", "failed with exit code 1", "not begun"]
    assert 300 < files["summary.txt"].count("line\n") * 5 <= gpu_check.FATAL
    assert "second.log" not in files


def test_time_that_is_left_over_goes_to_the_next(tmp_path):
    plan = [stage("a", "", 1.0), stage("b", "", 1.0)]
    limits = []

    class Timed(gpu_check.Run):
        def watched(self, stage, limit):
            limits.append(round(limit))
            return "passed"

    for minutes in (4.0, 2.5, 2.0, 0.5):
        limits.clear()
        archive = gpu_check.free_name(tmp_path)
        Timed(plan, {}, "cuda", tmp_path / "folder", archive, time.monotonic() + 60 * minutes)
        (tmp_path / "folder").mkdir(exist_ok=True)
        Timed(plan, {}, "cuda", tmp_path / "folder", archive, time.monotonic() + 60 * minutes).stage(plan[0], 60.0)
        assert limits == [{4.0: 120, 2.5: 90, 2.0: 60, 0.5: 30}[minutes]]
    assert sorted(path.name for path in tmp_path.glob("*.gz")) == [
        "gpu-check-2.tar.gz", "gpu-check-3.tar.gz", "gpu-check-4.tar.gz", "gpu-check.tar.gz",
    ]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_archive_outlives_the_tool(tmp_path, how):
    """Killed while its second stage runs; asked to end, it packs what that one had said."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r}); sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "from test_gpu_check import HANGS, gpu_check, stage\n"
        "gpu_check.STAGES, gpu_check.PACK_SECONDS = [stage('passes', 'print(7)'), stage('hangs', HANGS, 0.2)], 0.2\n"
        f"sys.argv = ['gpu-check', {str(tmp_path / 'out')!r}]\nraise SystemExit(gpu_check.main())\n"
    )
    archive = tmp_path / "out" / "gpu-check.tar.gz"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a tool that is killed leaves its folder
    command = [sys.executable, str(driver)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as tool:
        while not archive.exists() or "child" not in (files := unpacked(archive)).get("hangs.log", ""):
            assert tool.poll() is None
            time.sleep(0.1)
        tool.send_signal(how)
        said = tool.communicate(timeout=60)[0]
    child = int(files["hangs.log"].split()[1])
    if how == signal.SIGKILL:
        os.killpg(os.getpgid(child), signal.SIGKILL)  # nobody else does
    files = unpacked(archive)
    summary = json.loads(files["summary.json"])
    assert files["passes.log"] == "7\n"
    assert summary["passes"]["status"] == "passed"
    assert f"child {child}" in files["hangs.log"]
    assert gone(child)
    if how == signal.SIGTERM:
        assert tool.returncode == 1
        assert "stopped on request" in said
        assert said.endswith(files["summary.txt"])


# ---- the archive


def test_an_archive_keeps_beginning_and_end_and_stays_small(tmp_path, monkeypatch):
    lines = "".join(f"line {i} {os.urandom(30).hex()}\n" for i in range(30_000))
    (tmp_path / "long.log").write_text(lines)
    (tmp_path / "other.log").write_text(lines[::-1])
    (tmp_path / "third.log").write_text(lines[7:])
    (tmp_path / "figure.png").write_bytes(os.urandom(5 << 20))
    (tmp_path / "small.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "file").write_text("x")
    monkeypatch.setattr(gpu_check, "ARCHIVE_BYTES", 1 << 20)
    archive = tmp_path.with_name("archive.tar.gz")
    gpu_check.Run([], {}, "cuda", tmp_path, archive, 0.0).pack()
    assert archive.stat().st_size <= 1 << 20
    files = unpacked(archive)
    assert set(files) == {
        "figure.png", "long.log", "other.log", "third.log", "small.json", "summary.json", "summary.txt", "left-out.txt",
    } - {"figure.png"}  # fmt: skip
    assert files["left-out.txt"] == f"figure.png: {5 << 20} bytes\n"
    assert files["long.log"].startswith("line 0 ")
    assert files["long.log"].endswith(lines[-70:])
    assert "bytes left out" in files["long.log"]
    assert len(files["long.log"]) > 100_000  # no more was cut than had to be


def test_a_summary_quotes_errors_and_the_end(tmp_path):
    log = tmp_path / "ops.log"
    log.write_text("".join(f"line {i}\n\n" for i in range(50)) + "error: conv1 is wrong\n" + "end " * 200 + "\nlast\n")
    assert gpu_check.quoted(log, 360) == ["  error: conv1 is wrong", f"  {('end ' * 200)[:320]}", "  last"]
    assert gpu_check.quoted(log, 60) == ["  error: conv1 is wrong", "  last"]
    assert gpu_check.quoted(tmp_path / "none.log", 100) == []


# ---- with no GPU


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")
def test_without_a_gpu(tmp_path):
    done = call(tmp_path)
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-check.tar.gz"]
    files = unpacked(tmp_path / "gpu-check.tar.gz")
    assert set(files) == {"driver.log", "summary.json", "summary.txt"}
    assert "libcuda.so.1" in files["driver.log"]
    assert "driver is what all others need: the run ends" in done.stdout
    assert [result["status"] for result in json.loads(files["summary.json"]).values()][1:] == ["not begun"] * 10


@pytest.mark.slow
def test_every_stage_in_the_emulator(tmp_path):
    done = call(tmp_path, "--device", "emu", "--stages", ",".join(NAMES), "--minutes", "20")
    assert done.returncode == 0, done.stdout
    files = unpacked(tmp_path / "gpu-check.tar.gz")
    statuses = {name: result["status"] for name, result in json.loads(files["summary.json"]).items()}
    elsewhere = {name for name, status in statuses.items() if status.startswith("not on emu: ")}
    assert elsewhere == {
        "driver", "build", "machine", "memcheck", "predict-bf16", "predict-tf32", "predict-fp32", "train-bf16",
    }  # fmt: skip
    assert {status for name, status in statuses.items() if name not in elsewhere} == {"passed"}
    assert {f"{name}.log" for name in statuses if name not in elsewhere} <= set(files)
    assert {"maps.json", "smoke.json", "tests.json", "step-bf16.json", "timeline-bf16.png"} <= set(files)
    assert "22 of kernels with tensor maps, 0 refused" in files["summary.txt"]
    assert "9 passed, 0 skipped, 0 failed, 0 crashed, 0 hung, 0 not run" in files["summary.txt"]


# ---- tensor maps


def test_refused_tensor_maps_are_collected(monkeypatch, tmp_path, capsys):
    from convnet.kernels import _emu as emu

    forward, shapes = emu.conv_forward, []

    def refusing(shape, *arguments):
        shapes.append(shape)
        if len(shapes) == 1:
            raise RuntimeError("x: the driver refuses the tensor map")
        forward(shape, *arguments)

    refusing.__name__ = "conv_forward"
    monkeypatch.setattr(emu, "conv_forward", refusing)
    options = ["--device", "emu", "--model", "alexnet-tiny", "-b", "64", "-o", str(tmp_path / "maps.json")]
    assert tensor_maps.main(options) == 1
    said = capsys.readouterr().out
    assert "32 calls, 22 of kernels with tensor maps, 1 refused" in said
    assert "refused: N=64 conv1 conv_forward wgmma-256x64: RuntimeError: x: the driver refuses" in said
    refused = {call["layer"] for call in json.loads((tmp_path / "maps.json").read_text()) if call["refused"]}
    assert refused == {"conv1"}
    monkeypatch.undo()
    assert tensor_maps.main([*options[:4], "-b", "8"]) == 1  # kernels for whole blocks of 64 images alone have any
    assert tensor_maps.main(["--device", "cpu", "--model", "alexnet-tiny", "-b", "64", "--precision", "fp32"]) == 2
    assert "its kernels have no tensor maps; choose cuda or emu" in capsys.readouterr().err


def test_nothing_runs_while_only_checking():
    """Arguments are checked all the same, and the next call computes."""
    import numpy as np

    from convnet.kernels import _emu as emu

    x, y = np.ones(16, np.float32), np.full(16, 7, np.float32)
    call = (16, "fp32", x.ctypes.data, y.ctypes.data, 0)
    emu.check_only(True)
    try:
        emu.relu_forward(*call)
        with pytest.raises(ValueError, match="relu_forward: x"):
            emu.relu_forward(16, "fp32", x.ctypes.data + 4, y.ctypes.data, 0)
    finally:
        emu.check_only(False)
    assert (y == 7).all()
    emu.relu_forward(*call)
    assert (y == 1).all()
