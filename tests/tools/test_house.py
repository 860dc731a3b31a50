"""What a stranger needs to join: the licence, how to cite, one version everywhere, commands that are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import ENVIRONMENT

import convnet
from convnet.__main__ import COMMANDS
from convnet.output.files import lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)


def test_one_version():
    assert PROJECT["version"] == convnet.__version__
    assert f"\nversion: {convnet.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(convnet.__version__)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_licence():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("BSD 3-Clause License")
    assert "The convnet authors" in text
    assert PROJECT["license"] == "BSD-3-Clause"
    assert "\nlicense: BSD-3-Clause\n" in (ROOT / "CITATION.cff").read_text()


def test_commands_are_listed():
    assert {f"convnet-{name}": f"convnet.cli.{name}:main" for name in COMMANDS} == PROJECT["scripts"]
    done = run("convnet")
    assert done.returncode == 0
    assert re.findall(r"^  (convnet-\w+) +\w", done.stdout, re.MULTILINE) == [f"convnet-{name}" for name in COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_found_as_modules(name):
    assert run(f"convnet.cli.{name}", "--version").stdout == f"convnet-{name} {convnet.__version__}\n"


def test_rooms_do_not_hide_what_is_public():
    """There is a room ``devices``, and a function."""
    import convnet.devices.cuda

    assert convnet.devices()[0] == "cpu"


def test_a_system_without_locks_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with open(tmp_path / "file", "w") as file, pytest.raises(OSError, match="convnet runs on Linux"):
        lock(file.fileno())


def test_thinned_out_there_are_cases_of_every_kind():
    """What runs under sanitizers: each n-th case of a function, and of every device and precision the first."""
    from conftest import thinned

    def case(function: str, **chosen: str) -> SimpleNamespace:
        return SimpleNamespace(path="a.py", originalname=function, callspec=SimpleNamespace(params=chosen))

    cases = [case("f", device=device, size=str(i)) for i in range(10) for device in ("cpu", "emu")] + [case("g")]
    kept = [(c.originalname, *c.callspec.params.values()) for c in thinned(cases, 4)]
    assert kept == [("f", d, s) for s in "048" for d in ("cpu", "emu")] + [("g",)]
    assert list(thinned(cases, 1)) == cases
