"""Batches as cuda-convnet had them, a column for each picture, and ranges of numbered batches."""

from __future__ import annotations

import pickle
import sys
import tarfile

import numpy as np
import pytest
from data_files import (
    cifar_files,
    cifar_images,
    colmajor_batch,
    colmajor_meta,
    opened,
    python2_pickle,
    write_cifar,
    write_colmajor,
    write_folder,
)

from convnet.data import DataError, cifar, open_dataset, statistics
from convnet.data.pickles import read_plain
from convnet.data.source import spans


def images_of(split):
    return np.stack([split.image(k) for k in range(len(split))])


@pytest.mark.parametrize(("side", "classes"), [(8, 3), (32, 10), (32, 2), (13, 1000), (1, 2)])
def test_any_side_and_number_of_classes(tmp_path, side, classes):
    pictures = write_colmajor(tmp_path / "x", side=side, classes=classes)
    data = open_dataset(tmp_path / "x", size=side, seed=0)
    assert data.name.startswith("CIFAR batches, py-colmajor version")
    assert data.classes == [f"class {k}" for k in range(classes)]
    np.testing.assert_array_equal(images_of(data.train), np.concatenate(pictures[:-1]))
    np.testing.assert_array_equal(images_of(data.valid), pictures[-1])
    assert data.valid.labels.tolist() == [k % classes for k in range(4)]
    assert data.batches == (5, 6, 7)


def test_grey_pictures(tmp_path):
    pictures = write_colmajor(tmp_path / "x", side=7, grey=True)
    data = open_dataset(tmp_path / "x", size=7, seed=0)
    expected = np.concatenate(pictures[:-1])
    np.testing.assert_array_equal(images_of(data.train), np.repeat(expected[..., None], 3, axis=3))
    assert data.mean is not None
    np.testing.assert_allclose(data.mean, np.repeat(expected.mean(axis=0)[None], 3, axis=0), rtol=1e-6)


def test_as_many_pictures_as_numbers_of_each_are_still_columns(tmp_path):
    (pictures, _) = write_colmajor(tmp_path / "x", (192, 192), side=8)
    np.testing.assert_array_equal(images_of(open_dataset(tmp_path / "x", size=8, seed=0).train), pictures)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_today_with_labels_as_an_array(tmp_path, protocol, order):
    images, labels = cifar_images(6, 0)
    data = np.asarray(images.transpose(3, 1, 2, 0).reshape(3072, 6), order=order)
    meta = {"data_mean": np.zeros((3072, 1)), "label_names": list("abcdefghij"), "num_vis": 3072, "more": None}
    for number in (1, 2):
        batch = {"data": data, "labels": labels.astype(np.int32)}
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=protocol))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    data = open_dataset(tmp_path, size=32, seed=0)
    np.testing.assert_array_equal(images_of(data.train), images)
    assert data.valid.labels.tolist() == labels.tolist()


def test_a_single_batch_has_a_share_held_out(tmp_path):
    write_colmajor(tmp_path / "x", (30,))
    data = open_dataset(tmp_path / "x", size=8, seed=0)
    assert (len(data.train), len(data.valid), data.batches) == (27, 3, (27,))


@pytest.mark.parametrize("packing", ["w:gz", "w"])
def test_an_archive_of_the_published_name(tmp_path, packing):
    pictures = write_colmajor(tmp_path / "x", (2, 3, 2, 3, 2, 4))
    with tarfile.open(tmp_path / "archive", packing) as archive:
        archive.add(tmp_path / "x", "cifar-10-py-colmajor")
    data = open_dataset(tmp_path / "archive", size=8, seed=0)
    np.testing.assert_array_equal(images_of(data.train), np.concatenate(pictures[:-1]))
    assert (len(data.valid), data.batches) == (4, (2, 3, 2, 3, 2))
    assert data.fingerprint == open_dataset(tmp_path / "x", size=8, seed=0).fingerprint


def test_the_mean_image_that_came_with_them_is_cut_to_its_centre(tmp_path):
    pictures = write_colmajor(tmp_path / "x")
    mean = np.arange(192).reshape(8, 8, 3)
    (tmp_path / "x/batches.meta").write_bytes(colmajor_meta(mean, ["a", "b", "c"]))
    data = open_dataset(tmp_path / "x", size=8, seed=0)
    found = statistics(data, 4)
    np.testing.assert_array_equal(found.mean, mean.transpose(2, 0, 1)[:, 2:6, 2:6])
    inside = np.concatenate(pictures[:-1])[:, 2:6, 2:6].astype(np.float64)  # colours are those of the pictures
    np.testing.assert_allclose(found.std, inside.std(axis=(0, 1, 2)), rtol=1e-5)
    scaled = open_dataset(tmp_path / "x", size=16, seed=0)
    assert scaled.mean is None  # of other pictures


def test_where_none_came_it_is_of_all_images_that_are_as_large_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["convnet.data.statistics"], "LIMIT", 10)
    path = write_cifar(tmp_path / "a", "bin")
    every = np.concatenate([cifar_images(20, k)[0] for k in range(5)]).mean(axis=0).transpose(2, 0, 1)
    found = statistics(open_dataset(path, size=32, seed=0), 24).mean
    np.testing.assert_allclose(found, every[:, 4:28, 4:28], rtol=1e-6)
    scaled = open_dataset(path, size=40, seed=0)
    some = np.stack([scaled.train.image(k) for k in range(0, 100, 10)]).mean(axis=0).transpose(2, 0, 1)
    np.testing.assert_allclose(statistics(scaled, 40).mean, some, rtol=1e-6)


@pytest.mark.parametrize("removed", [1, 3])
def test_a_missing_batch_is_named_with_the_remedy(tmp_path, removed):
    write_colmajor(tmp_path / "x")
    (tmp_path / f"x/data_batch_{removed}").unlink()
    there = {1: "2-4", 3: "1-2, 4"}[removed]
    with pytest.raises(DataError, match=f"has the data batches {there}, and {removed} is missing; add .*--train-range"):
        open_dataset(tmp_path / "x", size=8, seed=0)
    data = open_dataset(tmp_path / "x", size=8, seed=0, ranges=("2", "4"))
    assert (len(data.train), len(data.valid)) == (6, 4)


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
DAMAGE = {
    "cut short": (lambda raw: raw[:-30], "not a pickle"),
    "rows": (
        lambda raw: python2_pickle({"data": np.zeros((4, 192), np.uint8), "labels": [0] * 4}),
        "4 labels for 192 columns",
    ),
    "numbers": (
        lambda raw: python2_pickle({"data": np.zeros((192, 4)), "labels": [0] * 4}),
        r"found float64 \(192, 4\)",
    ),
    "nothing": (lambda raw: python2_pickle({"labels": [0] * 4}), "found none"),
    "no picture": (lambda raw: python2_pickle({"data": np.zeros((192, 0), np.uint8), "labels": []}), "has no picture"),
    "labels": (lambda raw: colmajor_batch(IMAGES, [0, 1]), "2 labels for 4 columns of 'data'"),
    "label": (lambda raw: colmajor_batch(IMAGES, [0, 1, -2, 0]), "list or an array of numbers from 0 on"),
    "another side": (lambda raw: colmajor_batch(IMAGES[:, :7, :7], [0] * 4), "7 pixels wide, and 8 in the files"),
    "grey": (
        lambda raw: colmajor_batch(IMAGES[..., 0], [0] * 4),
        "pictures in grey, and in colour in the files before",
    ),
    "a program": (lambda raw: b"cos\nsystem\n(S'true'\ntR.", "it names os.system"),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damaged_batches_are_named(tmp_path, kind):
    write_colmajor(tmp_path / "x")
    change, message = DAMAGE[kind]
    path = tmp_path / "x/data_batch_2"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path / "x", size=8, seed=0)
    assert "data_batch_2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (colmajor_meta(np.zeros((7, 7, 3)), ["a", "b"]), "'data_mean' has 147 numbers, and a picture 192"),
        (
            colmajor_meta(np.full((8, 8, 3), np.nan), ["a", "b"]),
            "'data_mean' must be an array of numbers from 0 to 255",
        ),
        (python2_pickle({"data_mean": [1.0, 2.0]}), "'data_mean' must be an array"),
        (python2_pickle({"data_mean": np.zeros(192, int)}), "'data_mean' must be an array"),
        (colmajor_meta(np.zeros((8, 8, 3)), ["a"], num_test_batches="1"), "'num_test_batches' must be a number"),
        (b"<html>", "file 'batches.meta': not a pickle"),
    ],
)
def test_damaged_metas(tmp_path, meta, message):
    write_colmajor(tmp_path / "x")
    (tmp_path / "x/batches.meta").write_bytes(meta)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "x", size=8, seed=0)


def test_without_a_mean_image_batches_are_rows_as_they_were(tmp_path):
    write_colmajor(tmp_path / "x")
    (tmp_path / "x/batches.meta").unlink()
    with pytest.raises(DataError, match="rows of 3 S S bytes"):
        open_dataset(tmp_path / "x", size=8, seed=0)


def test_strings_and_arrays_of_python_2_are_read_as_python_3_would():
    """The writer of these tests against Python's own reader."""
    value = {"a": [1, -5, 2.5, None, True, (b"x" * 300, "y")], "b": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    theirs = pickle.loads(python2_pickle(value), encoding="latin1")
    assert theirs["a"] == [1, -5, 2.5, None, True, ("x" * 300, "y")]
    np.testing.assert_array_equal(theirs["b"], value["b"])
    np.testing.assert_array_equal(read_plain(python2_pickle(value), "here")["b"], value["b"])


# ---- ranges ----


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [
        ("1-2", "3", ([1, 2], [3], [4])),
        ("1-2", None, ([1, 2], [4], [3])),
        (None, "2-3", ([1], [2, 3], [4])),
        ("4", "1-3", ([4], [1, 2, 3], [])),
        ("3", "1", ([3], [1], [2, 4])),
        ("1-4", None, None),
        ("2-4", None, ([2, 3, 4], [1], [])),
    ],
)
def test_ranges_choose_batches(tmp_path, train, test, numbers):
    pictures = write_colmajor(tmp_path / "x")
    if numbers is None:
        with pytest.raises(DataError, match=r"--train-range 1-4: no data batch of .* is left to validate with"):
            open_dataset(tmp_path / "x", size=8, seed=0, ranges=(train, test))
        return
    data = open_dataset(tmp_path / "x", size=8, seed=0, ranges=(train, test))
    for split, chosen in zip((data.train, data.valid, data.test), numbers, strict=True):
        if chosen:
            np.testing.assert_array_equal(images_of(split), np.concatenate([pictures[k - 1] for k in chosen]))
        else:
            assert split is None
    assert data.batches == tuple(len(pictures[k - 1]) for k in numbers[0])
    assert data.fingerprint == open_dataset(tmp_path / "x", size=8, seed=0).fingerprint  # of all batches


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("packing", ["archive", "folder"])
def test_ranges_of_the_published_batches(tmp_path, kind, packing):
    path = write_cifar(tmp_path / "a", kind)
    if packing == "folder":
        path = tmp_path / f"cifar-10-batches-{kind}"
        path.mkdir()
        for name, raw in cifar_files(kind).items():
            (path / name).write_bytes(raw)
    data = open_dataset(path, size=32, seed=0, ranges=("2-4", "5"))
    np.testing.assert_array_equal(images_of(data.train), np.concatenate([cifar_images(20, k)[0] for k in (1, 2, 3)]))
    np.testing.assert_array_equal(images_of(data.valid), cifar_images(20, 4)[0])
    assert data.valid.name(3) == "CIFAR-10 train 83"
    assert data.test is not None
    assert (len(data.test), data.batches) == (40, (20, 20, 20))  # 1, and the test batch, which is 6


def test_batches_of_the_published_sets_are_known_without_ranges(tmp_path):
    assert opened(cifar, write_cifar(tmp_path / "a", "bin"), size=32).batches == (20,) * 5


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (("1-7", None), r"--train-range 1-7: '.*x' has no data batch 5; there are 1-4"),
        (("1", "9"), r"--test-range 9: '.*x' has no data batch 9; there are 1-4"),
        (("1-3", "3-4"), r"data batch 3 of .* is in both --train-range 1-3 and --test-range 3-4"),
        ((None, "1-4"), "has no picture to train on|is left|pictures for val and none to train on"),
    ],
)
def test_ranges_that_cannot_be_are_told_with_the_batches_there_are(tmp_path, ranges, message):
    write_colmajor(tmp_path / "x")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "x", size=8, seed=0, ranges=ranges)


def test_data_without_batches_has_no_ranges(tmp_path):
    write_folder(tmp_path / "photos")
    for path in (tmp_path / "photos", "shapes"):
        with pytest.raises(DataError, match=r"no numbered data batches.* leave"):
            open_dataset(path, size=8, seed=0, ranges=("1-4", "5"))


def test_spans_are_written_as_people_do():
    assert spans({1, 2, 3, 5, 7, 8}) == "1-3, 5, 7-8"


def test_held_out_pictures_leave_batches_smaller(tmp_path):
    """Own batches of which none is for validation."""
    for number in (1, 2):
        rows = np.random.default_rng(number).integers(0, 256, (10 * number, 192), dtype=np.uint8)
        batch = {"data": rows, "labels": [k % 2 for k in range(10 * number)]}
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch, protocol=2))
    data = open_dataset(tmp_path, size=8, seed=0, val_split=0.5)
    assert 10 < len(data.train) < 20
    numbers = [int(data.train.name(k).split()[-1]) for k in range(len(data.train))]  # of all, from 0 on
    assert data.batches == (sum(n < 10 for n in numbers), sum(n >= 10 for n in numbers))
