"""Images kept in memory: the same pixels, each decoded once, and a refusal where they do not fit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_files import write_folder

from convnet.data import cache, cached, open_dataset, sampled_statistics
from convnet.data.cache import kept


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


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_no_more_memory_than_its_groups(tmp_path, monkeypatch, version):
    line, root = {1: ("4:memory:", "groups/memory"), 2: ("0::", "groups")}[version]
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]

    def group(path, limit, used, cached_files):
        path.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (path / f"memory.{name}").write_text(f"{value}\n")
        stat = {
            1: f"inactive_file 0\ntotal_inactive_file {cached_files}\n",
            2: f"anon 5\ninactive_file {cached_files}\n",
        }
        (path / "memory.stat").write_text(stat[version])

    own = tmp_path / "own"
    own.write_text(f"9:cpu:/outer\n{line}/outer/inner\n")
    monkeypatch.setattr(cache, "OWN_GROUPS", own)
    monkeypatch.setattr(cache, "GROUPS", tmp_path / "groups")
    assert cache.free_memory() > 10**6  # there are no such groups
    outer = tmp_path / root / "outer"
    group(outer, 10**6, 3 * 10**5, 10**5)
    group(outer / "inner", {1: 2**63 - 4096, 2: "max"}[version], 3 * 10**5, 10**5)
    assert cache.free_memory() == 8 * 10**5
    group(outer / "inner", 5 * 10**5, 3 * 10**5, 10**5)
    assert cache.free_memory() == 3 * 10**5
    group(outer / "inner", 10**5, 3 * 10**5, 0)
    assert cache.free_memory() == 0
    own.unlink()
    assert cache.free_memory() > 10**6


def test_drawn_shapes_are_kept_and_not_kept_twice():
    data = open_dataset("shapes", size=16, seed=0)
    assert isinstance(data.train, cache.CachedSplit)
    assert cached(data).train is data.train


def with_room_for(images, size, monkeypatch):
    """A quarter of the free memory holds so many images, and almost one more."""
    monkeypatch.setattr(cache, "free_memory", lambda: 4 * (images + 1) * size * size * 3 - 1)


@pytest.mark.parametrize("room", [0, 1, 7, 18, 20, 23, 24, 1000])
def test_as_many_images_as_fit_are_kept_and_all_are_the_same(folder, monkeypatch, room):
    plain = open_dataset(folder, size=24, seed=0)  # 18 and 6 images
    expected = [[split.image(k) for k in range(len(split))] for split in (plain.train, plain.valid)]
    with_room_for(room, 24, monkeypatch)
    asked = [counted(split, monkeypatch) for split in (plain.train, plain.valid)]
    dataset, told = kept(plain)
    assert asked == [[], []]
    out = np.zeros((24, 24, 3), np.uint8)
    for _ in range(3):
        for split, images in zip((dataset.train, dataset.valid), expected, strict=True):
            assert len(split) == len(images)
            for k, image in enumerate(images):
                np.testing.assert_array_equal(split.image(k), image)
                assert split.image(k, out) is out
                np.testing.assert_array_equal(out, image)
    times = [asked[0].count(k) for k in range(18)] + [asked[1].count(k) for k in range(6)]
    assert times == [1] * min(room, 24) + [6] * max(24 - room, 0)
    if room >= 24:
        assert told == "memory: all 24 images are kept once they are decoded, 0 MB"
    else:
        assert told.startswith(
            f"memory: {room} of 24 images are kept once they are decoded, as many as fit into 0 MB, a q"
        )


def test_images_that_are_in_memory_already_are_not_kept_again(folder, monkeypatch):
    shapes = open_dataset("shapes", size=16, seed=0)
    assert kept(shapes) == (shapes, "")
    data = cached(open_dataset(folder, size=24, seed=0))
    assert kept(data) == (data, "")


def test_looking_at_the_images_fills_the_memory(folder, monkeypatch):
    plain = open_dataset(folder, size=24, seed=0)
    asked = counted(plain.train, monkeypatch)
    dataset, _ = kept(plain)
    sampled_statistics(dataset.train, 20, workers=3)
    assert sorted(asked) == list(range(18))
    for k in range(18):
        dataset.train.image(k)
    assert len(asked) == 18


def test_the_room_is_a_quarter_of_the_free_memory(folder, monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda: 20 * 10**9)
    monkeypatch.setattr(cache.np, "empty", lambda shape, dtype: np.broadcast_to(np.zeros(1, dtype), shape))
    _, told = kept(open_dataset(folder, size=10_000, seed=0))  # 300 MB each
    assert told == (
        "memory: 16 of 24 images are kept once they are decoded, as many as fit into 5,000 MB, a quarter of what is "
        "free; the others are decoded in every epoch"
    )
