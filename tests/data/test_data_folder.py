"""Image folders: recognition, mistakes named at the start, and files that turn out to be bad on the way."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from data_files import picture, write_folder

from convnet.data import DataError, Loader, load_square, open_dataset, sampled_statistics


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "photos")


def test_classes_labels_and_images(root):
    (root / "train" / "class1" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    os.rename(root / "train" / "class1" / "003.jpg", root / "train" / "class1" / "003.JPEG")
    data = open_dataset(root, size=32, seed=0)
    assert data.name == "image folder: 3 classes, 18 training and 6 validation images"
    assert data.classes == ["class0", "class1", "class2"]
    np.testing.assert_array_equal(data.train.labels, np.repeat(np.arange(3), 6))
    np.testing.assert_array_equal(data.valid.labels, np.repeat(np.arange(3), 2))
    assert data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.image(9), load_square(root / "train/class1/003.JPEG", 32))
    np.testing.assert_array_equal(data.valid.image(5), load_square(root / "val/class2/051.jpg", 32))


def test_classes_and_files_are_ordered_by_name_not_as_the_disk_lists_them(tmp_path):
    names = [f"{k * 7 % 12:02}" for k in range(12)]
    for part in ("train", "val"):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for file in names:
                (tmp_path / part / name / f"{file}.png").write_bytes(b"not looked at yet")
    data = open_dataset(tmp_path, size=8, seed=0)
    assert data.classes == sorted(names)
    assert [data.train.name(k) for k in range(144)] == [str(path) for path in sorted(tmp_path.glob("train/*/*"))]


def test_a_class_without_validation_images_keeps_its_number(root):
    shutil.rmtree(root / "val" / "class1")
    data = open_dataset(root, size=32, seed=0)
    np.testing.assert_array_equal(data.valid.labels, [0, 0, 2, 2])


def test_fingerprint_follows_names_sizes_and_labels_alone(root):
    first = open_dataset(root, size=32, seed=0).fingerprint
    assert open_dataset(root, size=48, seed=7).fingerprint == first
    assert open_dataset(shutil.copytree(root, root.parent / "copy"), size=32, seed=0).fingerprint == first
    changes = [
        lambda: os.rename(root / "train/class0/000.jpg", root / "train/class0/00a.jpg"),
        lambda: (root / "val/class2/050.jpg").write_bytes(b"x"),
        lambda: shutil.move(root / "train/class0/001.jpg", root / "train/class1/001a.jpg"),
        lambda: os.remove(root / "train/class2/000.jpg"),
    ]
    prints = [first]
    for change in changes:
        change()
        prints.append(open_dataset(root, size=32, seed=0).fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), "has pictures for val and none to train on"),
        (
            lambda root: os.rename(root / "val/class1", root / "val/dog"),
            "class 'dog' is in the val part of .*, but not among the 3 classes",
        ),
        (lambda root: (root / "train/cat").mkdir(), "cat' has no picture that can be used"),
        (
            lambda root: (root / "val/class1/050.jpg").unlink() or (root / "val/class1/051.jpg").unlink(),
            "class1' has no",
        ),
        (
            lambda root: [shutil.rmtree(root / part / f"class{k}") for part in ("train", "val") for k in (1, 2)],
            "1 class, 'class0'; at least 2 are needed",
        ),
        (lambda root: shutil.rmtree(root / "train") or (root / "train").mkdir(), "none to train on"),
        (
            lambda root: [shutil.rmtree(root / part) or (root / part).mkdir() for part in ("train", "val")],
            "is a folder without pictures; accepted are",
        ),
        (lambda root: shutil.rmtree(root), "there is no .*photos'; accepted are 'shapes'"),
        (
            lambda root: shutil.rmtree(root) or root.write_text("text"),
            "is a file of an unknown kind; accepted are",
        ),
    ],
)
def test_mistakes_are_named_at_the_start(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(root, size=32, seed=0)
    assert "photos" in str(caught.value)
    assert "\n" not in str(caught.value)


@contextmanager
def without_rights():
    """Permissions count, also for root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("locked", ["train/class1", "train", "val/class2", "."])
def test_a_folder_that_cannot_be_read_is_named_at_the_start(locked):
    with tempfile.TemporaryDirectory() as parent:  # tmp_path is nobody else's
        os.chmod(parent, 0o755)
        folder = write_folder(Path(parent) / "photos") / locked
        folder.chmod(0)
        with without_rights(), pytest.raises(DataError, match=rf"^cannot read '{folder}': Permission denied$"):
            open_dataset(Path(parent) / "photos", size=32, seed=0)
        folder.chmod(0o755)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
def test_impossible_paths(path):
    with pytest.raises(DataError):
        open_dataset(path, size=32, seed=0)


def test_links_that_lead_in_circles_are_no_trap(root):
    (root / "train" / "class0" / "loop.jpg").symlink_to(root / "train" / "class0" / "loop.jpg")
    (root / "train" / "class0" / "up").symlink_to(root)
    assert len(open_dataset(root, size=32, seed=0).train) == 18


def test_a_bad_file_is_replaced_by_the_next_of_its_class_and_warned_about_once(root, caplog):
    for name in ("class0/005.jpg", "class1/002.jpg", "class1/003.jpg"):
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:300])
    split = open_dataset(root, size=32, seed=0).train
    with caplog.at_level(logging.WARNING, "convnet.data"):
        for _ in range(2):  # the same on every visit
            np.testing.assert_array_equal(split.image(5), load_square(root / "train/class0/000.jpg", 32))
            np.testing.assert_array_equal(split.image(8), load_square(root / "train/class1/004.jpg", 32))
            np.testing.assert_array_equal(split.image(9), load_square(root / "train/class1/004.jpg", 32))
    assert len(caplog.records) == len(split.bad) == 3
    assert all("bad image" in record.getMessage() for record in caplog.records)


def test_the_order_of_visits_does_not_matter(root):
    (root / "train/class1/002.jpg").write_bytes(b"x")
    forward, backward = (open_dataset(root, size=32, seed=0).train for _ in range(2))
    a = [forward.image(k) for k in range(18)]
    b = [backward.image(k) for k in reversed(range(18))]
    np.testing.assert_array_equal(a, b[::-1])


def test_a_file_that_vanishes_is_a_bad_file(root):
    split = open_dataset(root, size=32, seed=0).train
    os.remove(root / "train/class2/001.jpg")
    np.testing.assert_array_equal(split.image(13), load_square(root / "train/class2/002.jpg", 32))


def test_a_class_without_a_readable_image_is_an_error(root):
    for path in (root / "train/class1").iterdir():
        path.write_bytes(b"nothing")
    data = open_dataset(root, size=32, seed=0)
    data.train.image(0)
    with pytest.raises(DataError, match="class 'class1' has no readable image among 6"):
        data.train.image(6)


@pytest.mark.parametrize(("bad", "fails"), [(10, False), (11, True)])
def test_too_many_bad_files_are_an_error(tmp_path, bad, fails):
    root = write_folder(tmp_path / "a", classes=2, train=12)
    for k, path in enumerate(sorted((root / "train").glob("*/*.jpg"))):
        if k % 2 == 0 and k // 2 < bad:
            path.write_bytes(b"nothing")
    split = open_dataset(root, size=32, seed=0).train
    if fails:
        with pytest.raises(DataError, match=r"11 of 24 images cannot be read, .* convnet-prepare"):
            [split.image(k) for k in range(24)]
    else:
        assert all(split.image(k).shape == (32, 32, 3) for k in range(24))
        assert len(split.bad) == 10


def test_the_error_reaches_the_consumer_of_a_loader(root):
    for path in (root / "train/class1").iterdir():
        path.write_bytes(b"nothing")
    split = open_dataset(root, size=32, seed=0).train
    colours = sampled_statistics(open_dataset(root, size=32, seed=0).valid, 32)
    for workers in (0, 2):
        loader = Loader(split, batch_size=4, crop=32, seed=0, augment=True, statistics=colours, workers=workers)
        with loader, pytest.raises(DataError, match="class1"):
            list(loader.epoch(0))


def test_control_characters_in_names_stay_out_of_messages(root, caplog):
    picture(40, 40).save(root / "train/class0/a\x1b[31m.jpg")
    (root / "train/class0/a\x1b[31m.jpg").write_bytes(b"x")
    split = open_dataset(root, size=32, seed=0).train
    split.image(6)
    assert len(split.bad) == 1
    assert "\x1b" not in caplog.text


def test_names_that_are_not_utf8(root):
    name = os.fsencode(root / "train/class0") + b"/\xff\xfe.jpg"
    shutil.copy(root / "train/class0/000.jpg", name)
    data = open_dataset(root, size=32, seed=0)
    np.testing.assert_array_equal(data.train.image(6), data.train.image(0))
