"""What ends one process of a run ends all of them within seconds, with one message and one exit code; and nothing is
lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mpi import MPIRUN, mpirun, needs_mpi
from runs import ELSEWHERE, ENVIRONMENT, TINY, TRAIN, call, make_images, shared_folder, shared_images

from convnet.cli.train import main
from convnet.training import checkpoint

pytestmark = needs_mpi

RUN = [shared_images(), *TINY, "--shards", "2", "--save-every", "2", "-q"]
SECONDS = 10  # in which all processes are to have ended
# Of rank 1 alone. The others run what users run.
SECOND = "import os\nsecond = os.environ['PMI_RANK'] == '1'\n"
SLOW = """
import time, convnet
train_step = convnet.Network.train_step
def slow(network, *arguments):
    if network.steps_done == 5:
        os.write(1, f"{os.getpid()} is there\\n".encode())
        time.sleep(1)
    return train_step(network, *arguments)
convnet.Network.train_step = slow
"""
IN_STEP_5 = """
import convnet
train_step = convnet.Network.train_step
def failing(network, *arguments):
    if second and network.steps_done == 5:
        %s
    return train_step(network, *arguments)
convnet.Network.train_step = failing
"""


def failing(text: str, folder: Path, *arguments: str, n: int = 2, run: list[str] = RUN) -> tuple[int, str]:
    """A run that ``text``, run before it, disturbs: exit code and what was said on standard error."""
    began = time.monotonic()
    done = mpirun(n, "-c", ELSEWHERE + SECOND + text + TRAIN, *run, *arguments, "-o", folder)
    assert time.monotonic() - began < SECONDS + 15  # with what it takes to start
    return done.returncode, done.stderr


def assert_goes_on(folder: Path, *steps: int, more: tuple[str, ...] = (), n: int = 1) -> None:
    """The run in the folder stands at one of ``steps``, and ends, on n processes, as one that nothing has disturbed."""
    saved = checkpoint.load(folder / "last")
    assert saved.state["step"] in steps
    straight = shared_folder() / "-".join(("straight", *more))
    if not straight.exists():
        assert call(main, *RUN, *more, "-o", str(straight)) == 0
    if n == 1:
        assert call(main, *RUN, *more, "--resume", "auto", "-o", str(folder)) == 0
    else:
        done = mpirun(n, "-c", TRAIN, *RUN, *more, "--resume", "auto", "-o", folder)
        assert done.returncode == 0, done.stderr
    a, b = (checkpoint.load(each / "last").tensors for each in (straight, folder))
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name], err_msg=name)


def interrupted(number: int, folder: Path, *more: str) -> tuple[int, str]:
    """A run whose second process to say that it is there gets a signal."""
    command = [str(MPIRUN), "-n", "2", sys.executable, "-c", ELSEWHERE + SECOND + SLOW + TRAIN]
    command += [*RUN, *more, "-o", str(folder)]
    environment = {**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    pid = [int(process.stdout.readline().split()[0]) for _ in range(2)][1]
    os.kill(pid, number)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < SECONDS
    return process.returncode, error


@pytest.mark.parametrize(
    ("more", "n"), [((), 1), (("--shards", "4"), 4), (("--shards", "4", "--parallel", "hybrid"), 4)]
)
def test_a_kill_loses_what_was_since_the_last_checkpoint(more, n, tmp_path):
    code, _ = interrupted(signal.SIGKILL, tmp_path, *more)
    assert code in (9, 137)
    assert_goes_on(tmp_path, 5, more=more, n=n)


def test_asked_to_stop_on_any_process_all_write_one_checkpoint(tmp_path):
    assert interrupted(signal.SIGTERM, tmp_path) == (75, "")
    assert [int(path.stem[5:]) for path in checkpoint.files(tmp_path / "checkpoints")] == [4, 5, 6]
    assert_goes_on(tmp_path, 6)


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("raise KeyError('of ours')", 1, "KeyError: 'of ours' (-v shows where)"),
        (
            "raise MemoryError('a lot')",
            6,
            "this machine is out of memory (a lot); end other programs, or use a machine",
        ),
    ],
)
def test_an_exception_on_one_process_ends_all(what, code, message, tmp_path):
    found, error = failing(IN_STEP_5 % what, tmp_path)
    assert (found, error.count("\n")) == (code, 1), error
    assert error.startswith(f"convnet-train: error: {message}")
    assert_goes_on(tmp_path, 5)


@pytest.mark.parametrize("what", ["os._exit(4)", "import sys; sys.exit(4)"])
def test_an_exit_of_one_process_ends_all(what, tmp_path):
    code, error = failing(IN_STEP_5 % what, tmp_path)
    assert (code, error) == (4, "")
    assert_goes_on(tmp_path, 4, 5)  # a launcher may end the first one while it writes the latter


def test_a_full_disk_of_the_first_process_ends_all(tmp_path):
    """Checkpoints cannot be written any more, from that of step 6 on."""
    full = """
import convnet.training.checkpoint as checkpoint
save = checkpoint.save
def full(path, tensors, state):
    if state["step"] > 5:
        raise OSError(28, "No space left on device", str(path))
    save(path, tensors, state)
checkpoint.save = full
"""
    code, error = failing(full, tmp_path)
    assert code == 1
    *warnings, last = error.splitlines()
    assert all("not written: No space left on device; will try again" in line for line in warnings)
    assert len(warnings) == 2
    assert "error: OSError: [Errno 28] No space left on device: " in last
    assert_goes_on(tmp_path, 5)


def test_other_data_on_one_process_is_refused(tmp_path):
    """The name is the same everywhere, and on one machine other pictures lie there."""
    others = make_images(tmp_path / "images", seed=1)
    (others / "train" / "blue" / "0.png").unlink()
    text = f"""
import convnet.training.train as train
open_dataset = train.open_dataset
train.open_dataset = lambda data, **options: open_dataset({str(others)!r} if second else data, **options)
"""
    code, error = failing(text, tmp_path / "run")
    assert (code, error.count("\n")) == (3, 1), error
    assert re.search(r"error: rank 1 \(\S+\) finds other data in \S+ than rank 0; give all processes the same", error)
    assert not (tmp_path / "run").exists()


def test_another_version_on_one_process_is_refused(tmp_path):
    text = "import convnet.training.alike as alike\nalike._program = lambda: str(second)\n"
    code, error = failing(text, tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1), error
    assert re.search(r"error: rank 1 \(\S+\) runs another version of convnet than rank 0; install the same", error)


def test_other_options_on_one_process_are_refused(tmp_path):
    code, error = failing("import sys\nsys.argv += ['--lr', '0.5'] * second\n", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1), error
    assert re.search(r"error: rank 1 \(\S+\) was told --lr 0.5, and rank 0 0.01; start all alike", error)


def test_one_process_that_is_late_is_named_and_waited_for(tmp_path):
    late = "import convnet.group.mpi as mpi\nmpi.LATE = 1\n" + IN_STEP_5 % "import time; time.sleep(3)"
    code, error = failing(late, tmp_path)
    assert code == 0
    assert re.search(r"^warning: .*: waiting for rank 1 \(\S+\) for \d+ seconds$", error, re.MULTILINE)
    assert re.search(r"^warning: .*: all are there, after \d+ seconds$", error, re.MULTILINE)
    assert_goes_on(tmp_path, 10)


def test_one_process_that_does_not_come_is_given_up(tmp_path):
    late = "import convnet.group.mpi as mpi\nmpi.GONE = 8\n" + IN_STEP_5 % "import time; time.sleep(60)"
    code, error = failing(late, tmp_path)
    warning, told = error.splitlines()
    assert (code, "waiting for rank 1" in warning) == (6, True), error
    assert re.search(r"error: rank 1 \(\S+\) did not answer for 8 seconds, at .*; the last checkpoint is \S+;", told)
    assert_goes_on(tmp_path, 5)


def test_numbers_of_processes_that_do_not_divide_are_refused(tmp_path):
    code, error = failing("", tmp_path / "run", n=3)
    assert (code, error.count("\n")) == (2, 1), error
    wanted = "--shards 2: 3 processes cannot share these out evenly; start 1, 2 of them, or say another"
    assert f"convnet-train: error: {wanted}" in error
    code, error = failing("", tmp_path / "run", "--shards", "16")
    assert (code, error.count("\n")) == (2, 1), error
    assert "error: --batch-size 8 cannot be cut into 16 shards; use larger batches" in error


def test_data_that_is_not_there_is_told_once(tmp_path):
    code, error = failing("", tmp_path / "run", run=[str(tmp_path / "none"), "--shards", "2"])
    assert (code, error.count("\n")) == (3, 1), error
    assert "convnet-train: error: " in error


def test_a_run_folder_that_cannot_be_used_is_told_once(tmp_path):
    (tmp_path / "run").write_text("no folder")
    code, error = failing("", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1), error
    assert "cannot be used as run folder" in error


def test_a_folder_with_a_run_is_told_once(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    code, error = failing("", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1), error
    assert "there is a run in this folder" in error


def test_a_process_that_stands_still_is_named_and_nothing_is_lost(tmp_path):
    """A real stop, for longer than others wait in silence."""
    patient = "import convnet.group.mpi as mpi\nmpi.LATE = 1\n"
    command = [str(MPIRUN), "-n", "2", sys.executable, "-c", ELSEWHERE + SECOND + patient + SLOW + TRAIN]
    environment = {**os.environ, **ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *RUN, "-o", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    pid, _ = [int(process.stdout.readline().split()[0]) for _ in range(2)]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(pid, signal.SIGCONT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert re.search(r"^warning: .*: waiting for rank [01] \(\S+\) for [12] seconds$", error, re.MULTILINE)
    assert_goes_on(tmp_path, 10)


def test_a_run_that_diverges_is_told_once(tmp_path):
    code, error = failing("", tmp_path, "--lr", "1e30")
    assert (code, error.count("\n")) == (5, 1), error
    assert "training has diverged" in error
