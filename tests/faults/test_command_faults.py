"""The commands that use what was trained, under signals, closed pipes, and surroundings that lack this and that."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from runs import ELSEWHERE, TINY, make_images, shared_images, spawn, straight_run
from test_run_faults import as_anybody
from test_train_faults import wait_for

import convnet

# one of the commands, which tells when it computes, and takes its time
SLOW = """
import importlib, sys, time, pathlib
import convnet
evaluate_batch = convnet.Network.evaluate_batch
def slow(network, *arguments):
    found = evaluate_batch(network, *arguments)
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(100)
    return found
convnet.Network.evaluate_batch = slow
sys.exit(importlib.import_module("convnet.cli." + sys.argv[2]).main(sys.argv[3:]))
"""
PLAIN = (
    ELSEWHERE + "import importlib; sys.exit(importlib.import_module('convnet.cli.' + sys.argv[1]).main(sys.argv[2:]))"
)


def commands(folder: Path) -> dict[str, list[str]]:
    """Arguments that make each command write files into ``folder``."""
    run, device = str(straight_run()), ["--device", "cpu", "-b", "4"]
    saved = ["--save-predictions", str(folder / "p.npy"), "--confusion", str(folder / "c.csv")]
    features = ["--features", "fc7", "-o", str(folder / "f.npy")]
    return {
        "eval": [run, *device, *saved],
        "predict": [run, os.path.join(shared_images(), "val"), *device, *features],
        "show": [run, "confusion", *device, "-o", str(folder / "c.png")],
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["eval", "predict", "show"])
def test_a_signal_ends_a_command_quietly_and_leaves_no_half_of_a_file(tmp_path, command, number, code):
    """What was there before is as it was."""
    folder = tmp_path / "written"
    folder.mkdir()
    names = ["p.npy", "p.csv", "c.csv", "f.npy", "f.csv", "c.png"]
    for name in names:
        (folder / name).write_text("what was there before")
    process = spawn(str(tmp_path / "flag"), command, *commands(folder)[command], code=SLOW)
    wait_for((tmp_path / "flag").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.split("\n")[-2:]) == (code, [f"convnet-{command}: stopped", ""]), errors
    assert errors.count("\n") <= 2
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(names, "what was there before")


def test_sigterm_ends_a_run_that_has_not_begun_its_first_step(tmp_path):
    """While it reads its data; later a checkpoint is written."""
    os.mkfifo(tmp_path / "config.toml")
    code = (
        "import sys, time, convnet.training.train as t; "
        "t.open_dataset = lambda *a, **k: [print(flush=True), time.sleep(100)]; "
    )
    process = spawn("shapes", "-o", str(tmp_path / "run"), code=code + PLAIN.replace("sys.argv[1]", "'train'"))
    assert process.stdout
    process.stdout.readline()
    process.terminate()
    assert process.communicate(timeout=120)[1] == "convnet-train: stopped\n"
    assert process.returncode == 143


def test_a_hangup_is_heeded_unless_it_is_ignored(tmp_path):
    """As under nohup."""
    waiting = "while not pathlib.Path(sys.argv[1] + '-go').exists():\n        time.sleep(0.05)"
    for ignored in (False, True):  # whatever the tests were started with
        flag = tmp_path / str(ignored)
        process = spawn(
            str(flag),
            *("eval", str(straight_run()), "--device", "cpu"),
            code=SLOW.replace("time.sleep(100)", waiting),
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
        )
        wait_for(flag.exists, process)
        process.send_signal(signal.SIGHUP)
        if ignored:
            Path(f"{flag}-go").touch()
        process.communicate(timeout=120)
        assert process.returncode == (0 if ignored else 129)


@pytest.mark.parametrize("command", ["eval", "predict", "show"])
def test_a_closed_pipe_is_quiet_and_what_was_asked_for_is_written(tmp_path, command):
    process = spawn(command, "-q", *commands(tmp_path)[command], code=PLAIN)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(120), errors) == (0 if command == "show" else 1, "")
    assert {"eval": "c.csv", "predict": "f.npy", "show": "c.png"}[command] in os.listdir(tmp_path)


# ---- surroundings


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A package that nobody can write to, named by no variable but PYTHONPATH, and an environment of little else: no
    home, no locale, and file names in ASCII."""
    site = tmp_path_factory.mktemp("site")
    source = Path(convnet.__file__).parent
    shutil.copytree(source, site / "convnet", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [site, *site.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": "/nonexistent", "LANG": "C", "LC_ALL": "C"}
    before = sorted(site.rglob("*"))
    yield {**plain, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OPENBLAS_NUM_THREADS": "1"}
    assert sorted(site.rglob("*")) == before
    for path in site.rglob("*"):
        path.chmod(0o755)


def in_bare(environment, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PLAIN, *map(os.fsencode, arguments)],
        capture_output=True,
        env=environment,
        preexec_fn=as_anybody,
        timeout=120,
        check=False,
    )


def test_without_a_home_a_locale_or_a_package_to_write_to_all_commands_work(bare, tmp_path):
    """On classes and files whose names ASCII does not have."""
    images = make_images(tmp_path / "bilder", classes=("gr\u00fcn", "\u9752", "rouge"))
    run, output = str(tmp_path / "l\u00e4uft"), str(tmp_path / "bild \u00fc.png")
    device = ["--device", "cpu", "-b", "8"]
    for arguments in (
        ["train", str(images), *TINY, "--steps", "2", "-o", run],
        ["eval", run, *device, "--confusion", str(tmp_path / "\u00e4.csv")],
        ["predict", run, str(images / "val" / "gr\u00fcn"), *device],
        ["show", run, "confusion", *device, "-o", output],
    ):
        done = in_bare(bare, *arguments)
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
    assert Path(output).stat().st_size > 1000
    assert "rouge" in (tmp_path / "\u00e4.csv").read_text("utf-8")
