"""What launchers say, and what is said of processes that do not find each other."""

from __future__ import annotations

import pytest
from mpi import needs_mpi
from runs import ENVIRONMENT, TRAIN, spawn

from convnet.group import launch

NAMES = [name for *names, _ in launch.VARIABLES for name in names]
WITHOUT = "import sys; sys.modules['mpi4py'] = None\n" + TRAIN


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("rank", "size", "launcher"), launch.VARIABLES)
def test_every_launcher_is_understood(rank, size, launcher, monkeypatch):
    assert launch.launched() is None
    monkeypatch.setenv(rank, "3")
    assert launch.launched() is None
    monkeypatch.setenv(size, "1")
    assert launch.launched() is None  # a single process is none of several
    monkeypatch.setenv(size, "4")
    assert launch.launched() == launch.Launched(3, 4, launcher)
    monkeypatch.setenv(size, "many")
    assert launch.launched() is None


def test_by_oneself_nobody_looks_for_mpi(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    assert launch.joined().size == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_missing_mpi4py_is_named(rank, monkeypatch):
    monkeypatch.setenv("PMI_RANK", rank)
    monkeypatch.setenv("PMI_SIZE", "2")
    process = spawn("shapes", "--steps", "1", code=WITHOUT, env=environment(PMI_RANK=rank, PMI_SIZE="2"))
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error.count("\n")) == (6, "", 1)
    assert "error: mpirun started 2 processes, and mpi4py cannot be used here" in error
    assert 'install it with: pip install ".[mpi]"' in error


@needs_mpi
def test_processes_that_do_not_find_each_other_are_noticed():
    """A launcher whose MPI is another one: every process believes to be alone."""
    variables = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    process = spawn("shapes", "--steps", "1", env=environment(**variables))
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error.count("\n")) == (6, "", 1)
    assert "error: srun started 2 processes, and MPI sees 1 of them: mpi4py's library (MPI" in error


def test_of_several_that_are_told_the_same_one_speaks():
    for rank, lines in (("0", 1), ("1", 0)):
        process = spawn("--no-such-option", env=environment(PMI_RANK=rank, PMI_SIZE="2"))
        output, error = process.communicate(timeout=60)
        assert (process.returncode, output, error.count("\n")) == (2, "", lines)


def environment(**variables: str) -> dict[str, str]:
    return {**ENVIRONMENT, **variables}
