"""The drawn photographs: the same for every number of processes, readable, of varied sizes, in two separate sets."""

from __future__ import annotations

import hashlib
import re
import sys

import draw_photographs
import numpy as np
import pytest
from PIL import Image

from convnet.data import open_dataset


def drawn(folder, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["draw_photographs.py", str(folder), *options])
    assert draw_photographs.main() == 0
    return sorted(folder.rglob("*.jpg"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "photographs"
    with pytest.MonkeyPatch.context() as patch:
        files = drawn(folder, patch, "--images", "120", "--val-share", "0.34", "-j", "2")
    return folder, files


def test_files_depend_on_the_seed_and_not_on_the_processes(photographs, tmp_path, monkeypatch):
    folder, files = photographs
    options = ["--images", "120", "--val-share", "0.34", "-j", "1"]
    again = drawn(tmp_path / "again", monkeypatch, *options)
    assert [file.relative_to(tmp_path / "again") for file in again] == [file.relative_to(folder) for file in files]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    other = drawn(tmp_path / "other", monkeypatch, *options, "--seed", "1")
    assert {file.read_bytes() for file in other}.isdisjoint(file.read_bytes() for file in files)


def test_sizes_vary_and_no_image_is_there_twice(photographs):
    _, files = photographs
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append(image.size)
            assert np.asarray(image).std() > 4  # something is to be seen
    assert min(map(min, sizes)) >= 90
    assert max(map(max, sizes)) <= 500
    assert len(set(sizes)) > 50
    assert {np.sign(w - h) for w, h in sizes} >= {-1, 1}
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files) == 120


def test_it_is_a_data_set(photographs):
    folder, _ = photographs
    dataset = open_dataset(folder, size=32, seed=0)
    assert dataset.classes == sorted(draw_photographs.SETS["first"])
    assert len(dataset.classes) == 20
    assert np.bincount(dataset.train.labels).tolist() == [4] * 20
    assert np.bincount(dataset.valid.labels).tolist() == [2] * 20
    assert dataset.valid.image(0).shape == (32, 32, 3)


def test_second_set_has_other_classes(tmp_path, monkeypatch):
    first, second = (set(draw_photographs.SETS[kind]) for kind in ("first", "second"))
    assert not first & second
    files = drawn(tmp_path / "second", monkeypatch, "--set", "second", "--images", "20", "--val-share", "0.5")
    assert {file.parent.name for file in files} == second
    few = drawn(tmp_path / "few", monkeypatch, "--classes", "3", "--images", "6", "--val-share", "0.5", "-j", "1")
    assert [file.parent.name for file in few] == 2 * sorted(draw_photographs.SETS["first"][:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "21"], "--classes must be 2 to 20"),
        (["--images", "30"], "leave a class no image"),
        (["--images", "40", "--val-share", "1"], "leave a class no image"),
        ([], "not an empty folder"),
    ],
)
def test_mistakes_end_with_a_line(tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "something").touch()
    monkeypatch.setattr(sys, "argv", ["draw_photographs.py", str(tmp_path), *options])
    with pytest.raises(SystemExit, match="2"):
        draw_photographs.main()
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
