"""Checkpoints: what is read is what was written, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from runs import STATE

from convnet.training import checkpoint
from convnet.training.checkpoint import CheckpointError

RANDOM = np.random.default_rng(0)
PLAIN = RANDOM.standard_normal((4, 3, 2), dtype=np.float32)
ARRAYS = {
    "C order": PLAIN,
    "F order": np.asfortranarray(PLAIN),
    "transposed": PLAIN.transpose(2, 0, 1),
    "strided": RANDOM.standard_normal((8, 6), dtype=np.float32)[::2, ::-3],
    "0-d": np.array(3.25, np.float32),
    "0-size": np.zeros((0, 5), np.float32),
    "big-endian": PLAIN.astype(">f4"),
    "read-only": np.broadcast_to(np.float32(7), (3, 2)),
}


def write(path: Path, tensors=None, **changes) -> Path:
    checkpoint.save(path, {"weights/a": PLAIN} if tensors is None else tensors, {**STATE, **changes})
    return path


def is_damaged(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return True
    return False


@pytest.fixture
def path(tmp_path):
    return tmp_path / "step-00000120.safetensors"


@pytest.mark.parametrize("kind", ARRAYS)
def test_round_trip_of_every_kind_of_array(path, kind):
    found = checkpoint.load(write(path, {"weights/x": ARRAYS[kind], "mean": PLAIN})).tensors
    assert found["weights/x"].dtype == np.float32
    assert found["weights/x"].shape == ARRAYS[kind].shape
    assert found["weights/x"].tobytes() == np.asarray(ARRAYS[kind], "<f4").tobytes()
    assert found["mean"].tobytes() == PLAIN.tobytes()


def test_round_trip_of_the_state(path):
    assert checkpoint.load(write(path)).state == {**STATE, "format": "convnet checkpoint", "version": 1}


def test_equal_contents_are_equal_files(path, tmp_path):
    tensors = {f"weights/{name}": PLAIN for name in "abcdef"}
    other = write(tmp_path / "other.safetensors", dict(reversed(tensors.items())), **dict(reversed(STATE.items())))
    assert write(path, tensors).read_bytes() == other.read_bytes()


def test_parts_lose_their_prefix(path):
    found = checkpoint.load(write(path, {"weights/a": PLAIN, "velocity/a": 2 * PLAIN, "mean": PLAIN}))
    assert list(found.part("velocity")) == ["a"]
    assert (found.part("velocity")["a"] == 2 * PLAIN).all()


def test_truncation_at_any_place_is_noticed(path):
    content = write(path).read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"step-00000120\.safetensors"):
            checkpoint.load(path)


def test_appended_bytes_are_noticed(path):
    content = write(path).read_bytes()
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize("bit", [0, 3, 5])
def test_a_flipped_bit_in_any_byte_is_noticed(path, bit):
    """Header, metadata and tensors: every byte of the file."""
    content = write(path).read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        assert is_damaged(path), f"bit {bit} of byte {place} of {len(content)}: not noticed"


def test_not_a_file_of_ours_is_named(path, tmp_path):
    path.write_bytes(safetensors.numpy.save({"x": PLAIN}))
    with pytest.raises(CheckpointError, match='found no metadata of the format "convnet checkpoint"'):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path)


def test_newer_format_says_update(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    write(path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected format version 1, found 2; update convnet"):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(path, value):
    write(path, {"weights/conv1.weight": np.array([1, value], np.float32)})
    with pytest.raises(CheckpointError, match=r"weights/conv1\.weight.*finite"):
        checkpoint.load(path)


def test_missing_state_is_named(path):
    write(path, step="12")
    with pytest.raises(CheckpointError, match='"step"'):
        checkpoint.load(path)


def test_another_network_is_named_by_tensor(path):
    tensors = {f"{part}/{name}": PLAIN for part in ("weights", "velocity") for name in ("a", "b")}
    found = checkpoint.load(write(path, tensors))
    checkpoint.check_network(found, {"a": PLAIN.shape, "b": PLAIN.shape})
    with pytest.raises(CheckpointError, match=r"weights/b: the network has \(2,\), the file has \(4, 3, 2\)"):
        checkpoint.check_network(found, {"a": PLAIN.shape, "b": (2,)})
    with pytest.raises(CheckpointError, match=r"weights/c: the network has \(4, 3, 2\), the file has none"):
        checkpoint.check_network(found, dict.fromkeys("abc", PLAIN.shape))
    with pytest.raises(CheckpointError, match="weights/b: the network has no such tensor"):
        checkpoint.check_network(found, {"a": PLAIN.shape})


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path):
    before = write(path).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write(path, {"weights/a": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_before_the_rename_leaves_the_old_file(path, monkeypatch, call):
    before = write(path).read_bytes()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        write(path, {"weights/a": 2 * PLAIN})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_mode_follows_the_umask(path, umask):
    before = os.umask(umask)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def folder_of(tmp_path, *steps):
    for step in steps:
        write(tmp_path / checkpoint.file_name(step), step=step)
    return tmp_path


def test_newest_goes_by_number_not_by_text(tmp_path):
    folder_of(tmp_path, 9, 10, 99_999_999, 100_000_000)
    (tmp_path / "step-00000200.safetensors.tmp").write_bytes(b"half")
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warnings.append).state["step"] == 100_000_000
    assert warnings == []


def test_newest_steps_back_over_damage_with_a_warning(tmp_path):
    folder_of(tmp_path, 1, 2, 3)
    for step in (2, 3):
        os.truncate(tmp_path / checkpoint.file_name(step), 100)
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warnings.append).state["step"] == 1
    assert ["step-00000003" in warnings[0], "step-00000002" in warnings[1], len(warnings)] == [True, True, 2]
    os.truncate(tmp_path / checkpoint.file_name(1), 0)
    with pytest.raises(CheckpointError, match="3 damaged"):
        checkpoint.newest(tmp_path, warnings.append)


def test_newest_of_nothing_is_none(tmp_path):
    assert checkpoint.newest(tmp_path, pytest.fail) is None
    assert checkpoint.newest(tmp_path / "missing", pytest.fail) is None


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    folder_of(tmp_path, 1, 2, 3, 10, 20)
    checkpoint.prune(tmp_path, keep=2, best=tmp_path / checkpoint.file_name(2))
    assert [int(path.stem[5:]) for path in checkpoint.files(tmp_path)] == [2, 10, 20]


@pytest.mark.parametrize("links", [True, False])
def test_point_makes_a_link_or_else_a_copy_and_replaces_it(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "checkpoints").mkdir()
    folder_of(tmp_path / "checkpoints", 1, 2)
    for step in (1, 2):
        checkpoint.point(tmp_path / "last", tmp_path / "checkpoints" / checkpoint.file_name(step))
        assert checkpoint.load(tmp_path / "last").state["step"] == step
    assert (tmp_path / "last").is_symlink() == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "last"]
