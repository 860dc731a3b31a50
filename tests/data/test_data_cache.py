"""Images kept in memory: the same pixels, each decoded once, and a refusal where they do not fit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_files import write_folder

from convnet.data import cache, cached, open_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("cache") / "photos")


def counted(split, monkeypatch):
    """Indices of the images that ``split`` decodes from now on."""
    asked, image = [], split.image

    def counting(index, out=None):
        asked.append(index)
        return image(index, out)

    monkeypatch.setattr(split, "image", counting)
    return asked


def test_the_same_pixels_decoded_once(folder, monkeypatch):
    plain = open_dataset(folder, size=24, seed=0)
    asked = counted(plain.train, monkeypatch)
    kept = cached(plain)
    assert not asked  # not before they are needed
    expected = [plain.train.image(k) for k in range(len(plain.train))]
    asked.clear()
    room = np.zeros((24, 24, 3), np.uint8)
    for _ in range(2):
        for index in (5, 0, 17):
            np.testing.assert_array_equal(kept.train.image(index), expected[index])
            assert kept.train.image(index, room) is room
            np.testing.assert_array_equal(room, expected[index])
    assert asked == [5, 0, 17]
    kept.train.image(5)[:] = 0  # what is handed out is the caller's
    np.testing.assert_array_equal(kept.train.image(5), expected[5])


def test_all_else_stays(folder):
    plain = open_dataset(folder, size=24, seed=0)
    kept = cached(plain)
    assert (kept.name, kept.classes, kept.fingerprint) == (plain.name, plain.classes, plain.fingerprint)
    for one, other in ((kept.train, plain.train), (kept.valid, plain.valid)):
        assert (len(one), one.size, one.name(3)) == (len(other), other.size, other.name(3))
        np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(kept.valid.image(2), plain.valid.image(2))


def test_several_threads_see_whole_images(folder):
    plain = open_dataset(folder, size=24, seed=0).train
    expected = [plain.image(k) for k in range(18)]
    split = cache.CachedSplit(plain)
    start = threading.Barrier(4)

    def all_images(_):
        start.wait(60)
        return [split.image(k) for k in range(18)]

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(all_images, range(4)):
            np.testing.assert_array_equal(images, expected)


def test_an_image_that_could_not_be_decoded_is_not_kept(folder, monkeypatch):
    plain = open_dataset(folder, size=24, seed=0).train
    split, image = cache.CachedSplit(plain), plain.image

    def failing(index, out=None):
        raise OSError("gone")

    monkeypatch.setattr(plain, "image", failing)
    with pytest.raises(OSError, match="gone"):
        split.image(4)
    monkeypatch.undo()
    np.testing.assert_array_equal(split.image(4), image(4))


def test_what_does_not_fit_is_refused_before_anything_is_decoded(folder, monkeypatch):
    plain = open_dataset(folder, size=1000, seed=0)  # 24 images of 3 MB
    needed = 24 * 3 * 10**6
    monkeypatch.setattr(cache, "free_memory", lambda: needed)
    cached(plain)
    monkeypatch.setattr(cache, "free_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"take 0\.07 GB and 0\.07 GB of memory are free; leave the option out"):
        cached(plain)


def test_free_memory_is_a_number_of_this_machine(monkeypatch):
    assert 2**20 < cache.free_memory() < 2**50
    monkeypatch.setattr(cache, "MEMINFO", "/nonexistent")
    assert 2**20 < cache.free_memory() < 2**50


def test_drawn_shapes_are_kept_and_not_kept_twice():
    data = open_dataset("shapes", size=16, seed=0)
    assert isinstance(data.train, cache.CachedSplit)
    assert cached(data).train is data.train
