"""A disk that is really full: a small file system in memory, under whole commands."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_files import write_folder
from preparing import here as prepare
from runs import TINY, final, here, shared_images, straight_run
from test_train_faults import slow_run, wait_for

from convnet.output import files
from convnet.output import results as outputs
from convnet.training import checkpoint

SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path_factory) -> Iterator[Path]:
    """The folder of a file system of 4 MiB that exists in a mount namespace of its own: nobody needs to be root."""
    place = tmp_path_factory.mktemp("disk")
    script = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec sleep 600'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(SIZE), str(place)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        pytest.skip(f"no mount namespaces: {error}")
    assert process.stdout
    if process.stdout.readline() != "mounted\n":
        pytest.skip(f"no mount namespaces: {process.communicate()[1].strip()}")
    try:
        seen = Path(f"/proc/{process.pid}/root{place}")
        assert os.statvfs(seen).f_blocks * os.statvfs(seen).f_frsize == SIZE
        yield seen
    finally:
        process.kill()
        process.communicate()


def fill(disk: Path, leave: int = 0) -> Path:
    """Writes a file until nothing more fits, then gives ``leave`` bytes back."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(ballast, ballast.stat().st_size - leave)
    return ballast


def test_a_disk_that_fills_up_under_a_run_ends_it_and_the_same_command_goes_on(disk, tmp_path):
    """The third checkpoint in a row that does not fit ends the run."""
    folder = disk / "run"
    assert here(shared_images(), *TINY, "-o", str(folder), "--steps", "2") == 0
    old = {path: path.read_bytes() for path in checkpoint.files(folder / "checkpoints")}
    options = ["--resume", "auto", "--save-every", "2"]
    process = slow_run(shared_images(), folder, tmp_path / "flag", options=options)
    wait_for((tmp_path / "flag").exists, process)
    ballast = fill(disk)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    *warnings, last = errors.splitlines()
    assert all(line.startswith("warning: ") and "No space left on device" in line for line in warnings)
    assert sum("not written" in line and "will try again with the next checkpoint" in line for line in warnings) == 2
    assert last.startswith("convnet-train: error: OSError: ")
    assert "No space left on device" in last
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == old
    assert checkpoint.load(folder / "last").state["step"] == 2
    assert not list(folder.rglob("*.tmp"))
    ballast.unlink()
    assert here(shared_images(), *TINY, "-o", str(folder), *options) == 0
    assert final(folder) == final(straight_run())


def test_a_disk_that_has_room_again_is_a_warning(disk, tmp_path):
    folder = disk / "run"
    process = slow_run(shared_images(), folder, tmp_path / "flag", options=["--save-every", "4"])
    wait_for((tmp_path / "flag").exists, process)
    ballast = fill(disk, leave=1 << 16)  # records fit, checkpoints do not
    assert process.stderr
    assert "step-00000004.safetensors: not written: No space left on device; will try" in process.stderr.readline()
    ballast.unlink()
    assert "Traceback" not in process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert final(folder) == final(straight_run())


def test_a_disk_without_room_for_a_result_leaves_the_old_one(disk):
    path = disk / "table.csv"
    outputs.write_csv(path, [("old", 1)])
    fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        outputs.write_csv(path, [("new", "x" * 100_000)])
    with pytest.raises(OSError, match="No space left on device"), outputs.RowsFile(disk / "f.npy", ("name",)) as file:
        file.append(np.zeros((1000, 100), np.float32), [("a",)] * 1000)
    assert path.read_text() == "old,1\n"
    assert sorted(os.listdir(disk)) == ["ballast", "table.csv"]


def test_a_store_that_finds_no_room_goes_on_where_there_is_some(disk, tmp_path, capsys):
    source = write_folder(tmp_path / "photos")
    ballast = fill(disk, leave=1 << 14)
    assert prepare(source, disk / "store", "--size", 64, "-j", 1) == 3
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert not list(disk.rglob("*.tmp"))
    ballast.unlink()
    assert prepare(source, disk / "store", "--size", 64, "-j", 1) == 0
    assert prepare(source, tmp_path / "whole", "--size", 64, "-j", 1) == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (disk / "store" / path.name).read_bytes()


def test_the_fault_is_the_one_that_is_meant(disk):
    fill(disk)
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENOSPC}\]"):
        files.write_atomically(disk / "file", bytes(1 << 16))
