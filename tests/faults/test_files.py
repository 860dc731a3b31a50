"""Pipes in the place of files: refused at once, by one sentence, wherever a file of somebody else is read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from data_files import cifar_files, write_folder
from preparing import here as prepare
from runs import TINY, here, shared_images

from convnet.analysis.retrieval import read_rows
from convnet.data import DataError, open_dataset
from convnet.data.recognise import open_source
from convnet.data.source import Place
from convnet.data.store import HASHED, shard_name
from convnet.output.files import open_regular, read_regular
from convnet.prepare.journal import Journal
from convnet.training.config import read_toml
from convnet.training.metrics import MetricsFile

SHARDS = [shard_name(part, 0) for part in ("train", "val")]


@pytest.fixture(autouse=True)
def _in_time():
    """A reader that waits for a pipe would wait for ever."""

    def late(*_):
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_what_can_be_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"
    for odd, error, message in (
        (pipe(tmp_path / "pipe"), OSError, "not a regular file"),
        ("/dev/zero", OSError, "not a regular file"),
        (tmp_path, IsADirectoryError, "Is a directory"),
        (tmp_path / "nothing", FileNotFoundError, "No such file"),
    ):
        before = os.listdir("/proc/self/fd")
        with pytest.raises(error, match=message):
            open_regular(odd)
        assert os.listdir("/proc/self/fd") == before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    assert prepare(write_folder(folder / "photos"), folder / "store", "--size", 48) == 0
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    """A copy that may be changed."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["store.json", *HASHED, *SHARDS])
def test_a_pipe_in_a_store_is_refused(store, name):
    pipe(store / name)
    with pytest.raises(DataError, match=r"not a regular file|too few for image"):
        open_dataset(store, size=48, seed=0)


@pytest.mark.parametrize("name", SHARDS)
def test_a_pipe_that_takes_the_place_of_a_file_of_images_is_refused(store, name):
    dataset = open_dataset(store, size=48, seed=0)
    pipe(store / name)
    with pytest.raises(DataError, match=r"image 0 .*\(not a regular file\)"):
        (dataset.train if name == SHARDS[0] else dataset.valid).image(0)


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_a_pipe_in_a_cifar_folder_is_refused(tmp_path, kind):
    files = cifar_files(kind, 2)
    for name in files:
        folder = tmp_path / Path(name).name
        folder.mkdir()
        for other, content in files.items():
            (folder / Path(other).name).write_bytes(content)
        pipe(folder / Path(name).name)
        with pytest.raises(DataError, match=r"not a regular file|without pictures"):
            open_dataset(folder, size=32, seed=0)


def test_a_pipe_is_no_archive(tmp_path):
    path = pipe(tmp_path / "cifar-10.tar")
    with pytest.raises(DataError, match="there is no"):
        open_dataset(path, size=32, seed=0)


def test_pipes_among_the_archives_of_ilsvrc_are_refused(tmp_path):
    names = ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_validation_ground_truth.txt"]
    for name in names:
        pipe(tmp_path / name)
    with pytest.raises(DataError, match="has no file"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_toml(str(path)),
        lambda path: read_rows(path),
        lambda path: Place(str(path), 0, 5).read(),
        lambda path: Journal.read(path),
        lambda path: MetricsFile(path).records(),
    ],
    ids=["configuration", "rows", "image", "journal", "records"],
)
def test_no_reader_waits_for_a_pipe(tmp_path, read):
    with pytest.raises(Exception, match="not a regular file"):
        read(pipe(tmp_path / "file.npy"))


def test_a_command_that_is_given_a_pipe_ends_with_one_sentence(store, tmp_path, capsys):
    pipe(store / "train.npy")
    for options, code in ((["--config", str(pipe(tmp_path / "c.toml")), shared_images()], 2), ([str(store)], 3)):
        assert here(*options, *TINY, "-o", str(tmp_path / "run")) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "not a regular file" in error
