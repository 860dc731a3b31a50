"""``convnet-prepare --format py-colmajor``: batches as cuda-convnet had them, from what people have."""

from __future__ import annotations

import pickle
import pickletools

import numpy as np
import pytest
from data_files import CIFAR_CLASSES, cifar_images, cifar_rows, write_cifar, write_colmajor, write_folder
from runs import call, here

from convnet.cli.prepare import main as prepare
from convnet.data import open_dataset
from convnet.data.recognise import open_source
from convnet.data.source import spans

FORMAT = ["--format", "py-colmajor", "-q", "-j", "2"]


def batches(folder):
    """What Python's own reader finds: the pickles are ours."""
    names = sorted((p for p in folder.iterdir() if p.name.startswith("data_batch")), key=lambda p: int(p.name[11:]))
    found = [pickle.loads(path.read_bytes(), encoding="latin1") for path in names]
    return found, pickle.loads((folder / "batches.meta").read_bytes(), encoding="latin1")


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_both_published_versions_in_their_order(tmp_path, kind):
    assert call(prepare, str(write_cifar(tmp_path / "a", kind)), str(tmp_path / "out"), *FORMAT) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "batches.meta", *(f"data_batch_{k}" for k in range(1, 7))
    ]  # fmt: skip
    found, meta = batches(tmp_path / "out")
    for k, batch in enumerate(found):
        images, labels = cifar_images(20, k)
        assert batch.keys() == {"data", "labels"}
        assert (batch["data"].dtype, batch["data"].flags.c_contiguous) == (np.uint8, True)
        np.testing.assert_array_equal(batch["data"], cifar_rows(images).T)
        assert batch["labels"] == labels.tolist()
        assert {type(label) for label in batch["labels"]} == {int}
    train = np.concatenate([cifar_rows(cifar_images(20, k)[0]) for k in range(5)])
    assert (meta["data_mean"].dtype, meta["data_mean"].shape) == (np.float32, (3072, 1))
    np.testing.assert_allclose(meta["data_mean"][:, 0], train.mean(axis=0), rtol=1e-6)
    assert (meta["label_names"], meta["num_vis"], meta["num_cases_per_batch"]) == (CIFAR_CLASSES, 3072, 20)


def test_what_is_written_is_what_python_2_wrote(tmp_path):
    """Opcodes of protocol 2, byte strings, and the module names of NumPy 1: nothing that Python 2 does not know."""
    assert call(prepare, str(write_cifar(tmp_path / "a", "bin")), str(tmp_path / "out"), *FORMAT) == 0
    for name in ("data_batch_1", "batches.meta"):
        program = list(pickletools.genops((tmp_path / "out" / name).read_bytes()))
        assert (program[0][0].name, program[0][1]) == ("PROTO", 2)
        assert max(opcode.proto for opcode, _, _ in program) == 2
        assert not any("UNICODE" in opcode.name or "BYTES" in opcode.name for opcode, _, _ in program)
        named = {argument for opcode, argument, _ in program if opcode.name == "GLOBAL"}
        assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def test_the_reader_takes_them_and_they_train(tmp_path):
    source = write_cifar(tmp_path / "a", "py")
    assert call(prepare, str(source), str(tmp_path / "out"), *FORMAT) == 0
    ours, theirs = open_dataset(tmp_path / "out", size=32, seed=0), open_dataset(source, size=32, seed=0)
    assert ours.classes == theirs.classes
    for split, other in ((ours.train, theirs.train), (ours.valid, theirs.valid)):
        assert split.labels.tolist() == other.labels.tolist()
        assert all((split.image(k) == other.image(k)).all() for k in range(len(split)))
    assert ours.batches == theirs.batches == (20,) * 5
    tiny = ["--device", "cpu", "-b", "8", "--width", "0.05", "--size", "40", "--crop", "36", "--steps", "2", "-j", "0"]
    assert here(str(tmp_path / "out"), *tiny, "--order", "file", "-o", str(tmp_path / "run")) == 0
    # and are a source themselves
    assert call(prepare, str(tmp_path / "out"), str(tmp_path / "again"), *FORMAT) == 0
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_of_pictures_is_shuffled_and_cut(tmp_path):
    root = write_folder(tmp_path / "photos", train=7, valid=3)  # of each of three classes
    out = tmp_path / "out"
    assert call(prepare, str(root), str(out), *FORMAT, "--size", "24", "--per-batch", "8", "--seed", "5") == 0
    found, meta = batches(out)
    assert [len(batch["labels"]) for batch in found] == [8, 8, 5, 8, 1]
    source = open_dataset(root, size=24, seed=5)
    rows = [source.train.image(k).transpose(2, 0, 1).tobytes() for k in range(21)]
    stored = [batch["data"][:, k].tobytes() for batch in found[:3] for k in range(batch["data"].shape[1])]
    assert sorted(stored) == sorted(rows)
    assert stored != rows
    labels = [label for batch in found[:3] for label in batch["labels"]]
    assert [labels[stored.index(row)] for row in rows] == source.train.labels.tolist()
    valid = [batch["data"][:, k].tobytes() for batch in found[3:] for k in range(batch["data"].shape[1])]
    assert valid == [source.valid.image(k).transpose(2, 0, 1).tobytes() for k in range(9)]
    assert meta["label_names"] == ["class0", "class1", "class2"]
    pixels = np.stack([np.frombuffer(row, np.uint8) for row in rows])
    np.testing.assert_allclose(meta["data_mean"][:, 0], pixels.mean(axis=0), rtol=1e-6)
    data = open_dataset(out, size=24, seed=0)  # which knows where validation begins
    assert (len(data.train), len(data.valid), data.batches) == (21, 9, (8, 8, 5))
    other = tmp_path / "other"
    assert call(prepare, str(root), str(other), *FORMAT, "--size", "24", "--per-batch", "8", "--seed", "6") == 0
    assert (other / "data_batch_1").read_bytes() != (out / "data_batch_1").read_bytes()


def test_pictures_that_cannot_be_read_are_left_out_and_listed(tmp_path, capsys):
    root = write_folder(tmp_path / "photos")
    (root / "train/class1/004.jpg").write_bytes(b"\xff\xd8\xff damaged")
    assert call(prepare, str(root), str(tmp_path / "out"), *FORMAT, "--size", "8") == 0
    assert "1 of 24 images cannot be used" in capsys.readouterr().err
    assert "train/class1/004.jpg" in (tmp_path / "out/bad.csv").read_text()
    found, _ = batches(tmp_path / "out")
    assert [len(batch["labels"]) for batch in found] == [17, 6]


def test_what_an_interrupted_call_left_is_made_anew(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("data_batch_1", "data_batch_17", "data_batch_2.tmp"):
        (out / name).write_bytes(b"half")
    assert call(prepare, str(write_cifar(tmp_path / "a", "bin")), str(out), *FORMAT) == 0
    assert spans({int(path.name[11:]) for path in out.iterdir() if path.name.startswith("data_batch")}) == "1-6"
    assert len(open_source(out).train) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8", "--quality", "90"], "--quality is for a store"),
        (["--size", "8", "--keep-aspect"], "--keep-aspect is for a store"),
        ([], "has pictures of any size; say with --size"),
        (["--size", "0"], "--size must be 1 to"),
        (["--size", "8", "--per-batch", "0"], "--per-batch must be at least 1"),
        (["--size", "8", "--val-split", "2"], "--val-split must be more than 0"),
        (["--size", "8", "-j", "0"], "-j must be at least 1"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, options, message):
    root = write_folder(tmp_path / "photos", train=2, valid=1)
    assert call(prepare, str(root), str(tmp_path / "out"), "--format", "py-colmajor", "-q", *options) == 2
    assert message in capsys.readouterr().err


def test_other_folders_are_left_alone(tmp_path, capsys):
    write_colmajor(tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    source = str(write_cifar(tmp_path / "a", "bin"))
    assert call(prepare, source, str(tmp_path / "x"), *FORMAT) == 2
    assert "has data batches already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    (tmp_path / "y").mkdir()
    (tmp_path / "y/data_batch_1").write_bytes(b"")
    (tmp_path / "y/mine.txt").write_bytes(b"")
    assert call(prepare, source, str(tmp_path / "y"), *FORMAT) == 2
    assert "it holds 'mine.txt'" in capsys.readouterr().err
    assert (tmp_path / "y/data_batch_1").exists()
    assert call(prepare, source, str(tmp_path / "z"), "--per-batch", "5", "-q") == 2
    assert "--per-batch is for --format py-colmajor" in capsys.readouterr().err
