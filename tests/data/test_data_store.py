"""Opening a store: as training sees it, resized, damaged in every file, and made by somebody hostile."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_files import write_folder
from PIL import Image
from preparing import here

from convnet.data import DataError, open_dataset
from convnet.data.images import scaled
from convnet.data.statistics import statistics
from convnet.data.store import INDEX, SHARD
from convnet.prepare import prepare

SIZE = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_folder(folder / "source", classes=3, train=6, valid=3)
    prepare.SHARD = 8
    try:
        assert here(folder / "source", folder / "store", "--size", SIZE, "-j", 1) == 0
    finally:
        prepare.SHARD = SHARD
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(made, tmp_path / "store")


def test_what_was_recognised_is_said(made):
    data = open_dataset(made, size=SIZE, seed=0)
    assert data.name == "prepared store: 3 classes, 18 training and 9 validation images, 40 x 40"
    resized = open_dataset(made, size=20, seed=0)
    assert resized.name.endswith("40 x 40, resized to 20 whenever read (quicker: prepare with --size 20)")
    assert resized.fingerprint == data.fingerprint


def test_another_size_is_resized_by_the_rule(made):
    stored, resized = open_dataset(made, size=SIZE, seed=0), open_dataset(made, size=33, seed=0)
    for k in range(3):
        expected = np.asarray(scaled(Image.fromarray(stored.train.image(k)), 33))
        np.testing.assert_array_equal(resized.train.image(k), expected)
    assert resized.statistics is None


def test_statistics_come_with_the_store_cut_to_the_crop(made):
    data = open_dataset(made, size=SIZE, seed=0)
    np.testing.assert_array_equal(statistics(data, 32).mean, data.statistics.mean[:, 4:36, 4:36])


@pytest.mark.parametrize("size", [SIZE, 33])
def test_images_are_written_where_they_are_wanted(made, size):
    split = open_dataset(made, size=size, seed=0).train
    out = np.full((3, size, size, 3), 9, np.uint8)
    assert split.image(4, out[1]).base is out
    np.testing.assert_array_equal(out[1], split.image(4))
    assert (out[[0, 2]] == 9).all()


def test_many_threads_read_at_once(made):
    split = open_dataset(made, size=SIZE, seed=0).train
    expected = [split.image(k) for k in range(18)]
    with ThreadPoolExecutor(8) as pool:
        for k, image in zip(list(range(18)) * 20, pool.map(split.image, list(range(18)) * 20), strict=True):
            np.testing.assert_array_equal(image, expected[k])


def test_a_damaged_image_is_named(store):
    path = store / "train-00001.bin"
    raw = bytearray(path.read_bytes())
    split = open_dataset(store, size=SIZE, seed=0).train
    raw[int(split._index["offset"][10]) + 300] ^= 4
    path.write_bytes(raw)
    split.image(9)
    split.image(11)
    with pytest.raises(DataError, match=r"train-00001.bin': image 10 of 'train' is damaged .*; prepare it anew"):
        split.image(10)
    path.unlink()
    with pytest.raises(DataError, match=r"image 9 of 'train' is damaged \(No such file"):
        split.image(9)


FILES = ["train.npy", "val.npy", "train-names.txt", "val-names.txt", "mean.npy"]


@pytest.mark.parametrize("name", [*FILES, "store.json", "val-00000.bin"])
@pytest.mark.parametrize("how", ["gone", "cut", "empty"])
def test_damaged_files_are_named(store, name, how):
    path = store / name
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] if how == "cut" else b"") if how != "gone" else path.unlink()
    if (name, how) == ("store.json", "cut"):
        assert open_dataset(store, size=SIZE, seed=0)  # its last byte ends a line
        path.write_bytes(raw[:-3])
    if (name, how) == ("store.json", "gone"):
        name = "its store.json is missing; prepare it anew"
    with pytest.raises(DataError, match=name.split(".")[0]) as caught:
        open_dataset(store, size=SIZE, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_one_other_bit_is_noticed(store, name):
    raw = bytearray((store / name).read_bytes())
    raw[-20] ^= 1
    (store / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"{name}: its bytes are not those that were written.*prepare it anew"):
        open_dataset(store, size=SIZE, seed=0)


def rewritten(store, name=None, raw=b"", **changes):
    """The store with one of its files replaced, as somebody would do it who knows the format."""
    told = json.loads((store / "store.json").read_text()) | changes
    if name is not None:
        (store / name).write_bytes(raw)
        told["sha256"][name] = hashlib.sha256(raw).hexdigest()
    (store / "store.json").write_text(json.dumps(told))
    return store


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tar"}, "expected a JSON object with the format"),
        ({"version": 2}, "has format version 2, expected 1; update convnet"),
        ({"version": "1"}, "has format version '1', expected 1; prepare it anew"),
        ({"size": 0}, "a size of 0"),
        ({"size": 10**9}, "a size of 1000000000"),
        ({"size": "40"}, "a size of '40'"),
        ({"size": True}, "a size of True"),
        ({"classes": ["one"]}, "at least two classes"),
        ({"classes": ["one", 2, "three"]}, "at least two classes"),
        ({"classes": ["one", "two"]}, "train.npy: expected labels from 0 to 1"),
        ({"fingerprint": None}, "expected a fingerprint"),
        ({"sha256": []}, "its bytes are not those"),
        ({"std": [1, 2]}, "std: expected finite float32"),
        ({"std": {"a": 1}}, "not a readable store"),
        ({"directions": [[1, 2, float("nan")]] * 3}, "directions: expected finite"),
    ],
)
def test_wrong_contents_of_the_json_file(store, changes, message):
    with pytest.raises(DataError, match=message):
        open_dataset(rewritten(store, **changes), size=SIZE, seed=0)


@pytest.mark.parametrize("text", [b"[]", b"{", b"[" * 100_000, b'{"format": "convnet store"}', b"\xff\xfe", b"null"])
def test_json_files_that_are_none(store, text):
    (store / "store.json").write_bytes(text)
    with pytest.raises(DataError, match=r"prepare it anew|version None"):
        open_dataset(store, size=SIZE, seed=0)


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label", -1, "expected labels"),
        ("label", 3, "expected labels"),
        ("shard", 10**9, "file number 1000000000"),
        ("shard", 7, "No such file"),
        ("offset", 2**64 - 1, "too few for image 2 of train.npy; it was cut short"),
        ("offset", 10**7, "too few for image 2"),
        ("length", 10**7, "too few for image 2"),
        ("length", 0, "train-00000.bin"),
    ],
)
def test_wrong_contents_of_an_index(store, field, value, message):
    index = np.load(store / "train.npy")
    index[field][2] = value
    with pytest.raises(DataError, match=message):
        open_dataset(rewritten(store, "train.npy", npy(index)), size=SIZE, seed=0)


@pytest.mark.parametrize(
    "index",
    [
        np.zeros(0, INDEX),
        np.zeros((2, 2), INDEX),
        np.zeros(5, np.float64),
        np.array([{"shard": 0}], object),
    ],
)
def test_indices_that_are_none(store, index):
    with pytest.raises(DataError, match=r"train.npy|allow_pickle"):
        open_dataset(rewritten(store, "train.npy", npy(index)), size=SIZE, seed=0)


def test_wrong_names_and_mean(store, tmp_path):
    with pytest.raises(DataError, match=r"val-names.txt: 1 lines for 9 images"):
        open_dataset(rewritten(store, "val-names.txt", b"one\n"), size=SIZE, seed=0)
    shutil.rmtree(store)


@pytest.mark.parametrize(
    "mean", [np.zeros((3, 8, 8), np.float32), np.zeros((3, SIZE, SIZE)), np.full((3, SIZE, SIZE), np.inf, np.float32)]
)
def test_wrong_mean(store, mean):
    with pytest.raises(DataError, match=r"mean.npy: expected finite float32 numbers of shape \(3, 40, 40\)"):
        open_dataset(rewritten(store, "mean.npy", npy(mean)), size=SIZE, seed=0)


def test_an_image_of_another_size_than_the_store_says_is_refused(store):
    split = open_dataset(rewritten(store, size=SIZE + 1), size=SIZE, seed=0).train
    with pytest.raises(DataError, match="40 x 40 pixels in a store of 41"):
        split.image(0)
