"""Batches: the same for any number of workers and after a resume, bounded memory, and an end that always comes."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import numpy as np
import pytest
from data_files import write_cifar, write_folder

from convnet.data import Batch, Loader, Statistics, open_dataset, sampled_statistics
from convnet.data.loader import AHEAD, CHUNK
from convnet.group.shares import Shares

COLOURS = Statistics(
    mean=np.zeros((3, 6, 6), np.float32),
    std=np.ones(3, np.float32),
    deviations=np.array([100, 10, 1], np.float32),
    directions=np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]], np.float32).T.copy(),
)


class Numbered:
    """Image ``i`` is full of ``i`` and has the label ``i``; counts what was asked for, and can fail or wait."""

    def __init__(self, count, size=8):
        self.size, self.labels = size, np.arange(count, dtype=np.int32)
        self.asked, self.lock = [], threading.Lock()
        self.fails_at: int | None = None
        self.held: int | None = None  # the one image that waits for the gate; None: all do
        self.gate = threading.Event()
        self.gate.set()

    def __len__(self):
        return len(self.labels)

    def image(self, index, out):
        if self.held in (None, index):
            assert self.gate.wait(60)
        with self.lock:
            self.asked.append(index)
        if index == self.fails_at:
            raise OSError(f"image {index} is gone")
        out[:] = index % 256
        return out

    def wait_for(self, count):
        """Until so many images have been asked for."""
        for _ in range(60_000):
            if len(self.asked) >= count:
                return
            threading.Event().wait(0.001)
        raise AssertionError(f"{len(self.asked)} of {count} images have been asked for")


def loader(split, *, batch_size=10, crop=6, seed=1, augment=True, workers=0, **more):
    return Loader(
        split, batch_size=batch_size, crop=crop, seed=seed, augment=augment, statistics=COLOURS, workers=workers, **more
    )


def kept(batches) -> list[Batch]:
    """All of them, with images of their own: those of a loader lie where the next batch will."""
    return [replace(batch, images=batch.images.copy()) for batch in batches]


def epoch(split, number=0, start=0, noise=0.1, **options) -> list[Batch]:
    with loader(split, **options) as batches:
        return kept(batches.epoch(number, start, noise))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    names = [field.name for field in fields(Batch) if field.name != "wait_seconds"]
    return len(a) == len(b) and all(
        np.array_equal(getattr(x, name), getattr(y, name)) for x, y in zip(a, b, strict=True) for name in names
    )


def joined(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([getattr(batch, name) for batch in batches])


def test_shapes_types_and_short_last_batch():
    batches = epoch(Numbered(27), workers=2)
    assert [batch.position for batch in batches] == [0, 10, 20]
    for batch, n in zip(batches, (10, 10, 7), strict=True):
        for name, shape, dtype in (
            ("images", (n, 8, 8, 3), np.uint8),
            ("labels", (n,), np.int32),
            ("windows", (n, 3), np.int32),
            ("noise", (n, 3), np.float32),
        ):
            assert getattr(batch, name).shape == shape
            assert getattr(batch, name).dtype == dtype
        assert batch.wait_seconds >= 0
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)  # an image keeps its own label


def test_every_image_once_in_an_order_of_its_own_each_epoch():
    split = Numbered(200)
    orders = [
        joined(epoch(split, number, seed=seed), "labels") for number, seed in ((0, 1), (1, 1), (0, 2), (0, 1 + 2**35))
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(200))
    assert len({order.tobytes() for order in [*orders, np.arange(200, dtype=np.int32)]}) == 5
    assert abs(np.corrcoef(orders[0], np.arange(200))[0, 1]) < 0.3
    np.testing.assert_array_equal(joined(epoch(split), "labels"), orders[0])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(workers):
    split = Numbered(103)
    assert equal(epoch(split, 3, workers=workers, batch_size=40), epoch(split, 3, workers=0, batch_size=40))


def test_draws_of_an_epoch_are_those_of_one_image_at_a_time():
    """What is drawn for an image depends on seed, epoch and place alone: not on workers, batches or where it began."""
    split = Numbered(37)
    whole = epoch(split, 4, workers=4, batch_size=16)
    for place in range(37):
        (one,) = epoch(split, 4, start=place, batch_size=1)[:1]
        for name in ("labels", "windows", "noise"):
            np.testing.assert_array_equal(getattr(one, name)[0], joined(whole, name)[place])


@pytest.mark.parametrize("workers", [0, 3])
def test_resume_inside_an_epoch(workers):
    split = Numbered(57)
    whole = epoch(split, 2)
    assert equal(epoch(split, 2, start=20, workers=workers), whole[2:])
    assert epoch(split, 2, start=57, workers=workers) == []
    for name in ("labels", "windows", "noise"):  # also where no batch began, and with another batch size
        part = joined(epoch(split, 2, start=13, workers=workers, batch_size=7), name)
        np.testing.assert_array_equal(part, joined(whole, name)[13:])


def test_a_folder_gives_the_same_batches_for_any_number_of_workers(tmp_path):
    root = write_folder(tmp_path / "photos", train=12)
    (root / "train/class1/004.jpg").write_bytes(b"damaged")
    runs = []
    for workers in (0, 1, 3):
        split = open_dataset(root, size=24, seed=0).train
        colours = sampled_statistics(split, 20, workers=workers)
        options = {"batch_size": 7, "crop": 20, "seed": 0, "augment": True, "workers": workers}
        with Loader(split, statistics=colours, **options) as batches:
            runs.append([batch for number in range(2) for batch in kept(batches.epoch(number))])
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])
    assert not equal(runs[0][:6], runs[0][6:])


@pytest.mark.parametrize("kind", ["shapes", "folder", "CIFAR"])
def test_every_split_writes_where_it_is_told(tmp_path, kind):
    path = {
        "shapes": lambda: "shapes",
        "folder": lambda: write_folder(tmp_path / "photos"),
        "CIFAR": lambda: write_cifar(tmp_path / "cifar.tar.gz", "bin"),
    }[kind]()
    room = np.full((3, 24, 24, 3), 7, np.uint8)
    for split in (open_dataset(path, size=24, seed=0).train, open_dataset(path, size=24, seed=0).valid):
        assert split.image(4, room[1]).ctypes.data == room[1].ctypes.data
        np.testing.assert_array_equal(room[1], split.image(4))
        assert (room[::2] == 7).all()


def test_windows_flips_and_noise_follow_their_distributions():
    batches = epoch(Numbered(6000, size=8), crop=6, batch_size=500)
    windows, noise = joined(batches, "windows"), joined(batches, "noise").astype(np.float64)
    for column, values in ((0, 3), (1, 3), (2, 2)):
        counts = np.bincount(windows[:, column], minlength=values)
        assert len(counts) == values  # top and left 0..2: all places and no more
        assert np.abs(counts - 6000 / values).max() < 5 * np.sqrt(6000 / values)
    assert np.abs(np.corrcoef(windows.T) - np.eye(3)).max() < 0.07
    # Along each component the noise has a tenth of its standard deviation, and the components are independent.
    along = noise @ COLOURS.directions / (0.1 * COLOURS.deviations)
    np.testing.assert_allclose(along.std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=0.07)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.07


def test_noise_is_scaled_and_can_be_changed_from_epoch_to_epoch():
    split = Numbered(40)
    paper = joined(epoch(split), "noise")
    assert np.abs(paper).max() > 1
    with loader(split) as batches:
        np.testing.assert_allclose(joined(kept(batches.epoch(0, noise=0.3)), "noise"), 3 * paper, rtol=1e-6)
        assert not joined(kept(batches.epoch(0, noise=0)), "noise").any()
        again = kept(batches.epoch(0))
    assert equal(again, epoch(split))
    for name in ("labels", "windows"):  # and nothing else changes with it
        np.testing.assert_array_equal(joined(epoch(split, noise=0), name), joined(again, name))


def test_draws_differ_between_epochs_and_seeds():
    split = Numbered(50)
    for name in ("windows", "noise"):
        draws = {joined(epoch(split, number, seed=seed), name).tobytes() for number, seed in ((0, 1), (1, 1), (0, 2))}
        assert len(draws) == 3


def test_without_augmentation_as_stored_and_centred():
    batches = epoch(Numbered(23, size=9), augment=False, crop=6, workers=2)
    np.testing.assert_array_equal(joined(batches, "labels"), np.arange(23))
    np.testing.assert_array_equal(joined(batches, "windows"), np.tile([1, 1, 0], (23, 1)))
    assert not joined(batches, "noise").any()


def test_shuffle_without_augmentation():
    batches = epoch(Numbered(40), augment=False, shuffle=True)
    np.testing.assert_array_equal(joined(batches, "labels"), joined(epoch(Numbered(40)), "labels"))
    assert not joined(batches, "windows")[:, 2].any()


@pytest.mark.parametrize("workers", [1, 4])
def test_no_more_is_decoded_ahead_than_promised(workers):
    split = Numbered(400)
    with loader(split, workers=workers) as batches:
        running = batches.epoch(0)
        for taken in range(1, 20):
            next(running)
            assert len(split.asked) <= (taken + AHEAD) * 10
    assert len(split.asked) <= (19 + AHEAD) * 10


def test_without_workers_nothing_is_decoded_ahead():
    split = Numbered(100)
    with loader(split) as batches:
        next(batches.epoch(0))
        assert len(split.asked) == 10


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_of_a_worker_reaches_the_consumer(workers):
    split = Numbered(100)
    split.fails_at = 35
    with loader(split, workers=workers, augment=False) as batches:
        running = batches.epoch(0)
        assert [next(running).position for _ in range(3)] == [0, 10, 20]
        with pytest.raises(OSError, match="image 35 is gone"):
            next(running)
        split.fails_at = None  # the loader lives on
        assert len(list(batches.epoch(1))) == 10


def running_workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("convnet-data")]


def test_leaving_the_block_ends_the_workers_and_drops_what_waits():
    split = Numbered(1000)

    def interrupted_training():
        with loader(split, workers=2, batch_size=100) as batches:
            for _ in batches.epoch(0):
                assert running_workers()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_training()
    assert not running_workers()
    assert len(split.asked) <= (1 + AHEAD) * 100


def test_close_ends_workers_after_the_image_they_are_at():
    split = Numbered(1000)
    split.gate.clear()
    batches = loader(split, workers=2, batch_size=10 * CHUNK)
    consumer_error = []

    def consume():
        try:
            next(batches.epoch(0))
        except BaseException as error:
            consumer_error.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    while not running_workers():
        consumer.join(0.001)
    closer = threading.Thread(target=batches.close)
    closer.start()
    while not batches._closed:
        closer.join(0.001)
    split.gate.set()
    closer.join(60)
    consumer.join(60)
    assert not closer.is_alive()
    assert not consumer.is_alive()
    assert not running_workers()
    assert len(consumer_error) == 1  # and the one who waited was told
    assert len(split.asked) <= 2  # the image each worker was at


def test_an_epoch_left_early_does_not_disturb_the_next():
    split = Numbered(300)
    with loader(split, workers=2) as batches:
        for batch in batches.epoch(0):
            if batch.position == 20:
                break
        assert equal(kept(batches.epoch(1)), epoch(split, 1))


def test_two_loaders_may_run_in_turns():
    split = Numbered(60)
    with loader(split, workers=2) as a, loader(split, workers=1, augment=False) as b:
        pairs = [kept(pair) for pair in zip(a.epoch(0), b.epoch(0), strict=True)]
    assert equal([pair[0] for pair in pairs], epoch(split))
    assert equal([pair[1] for pair in pairs], epoch(split, augment=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_epochs_of_a_loader_may_run_in_turns(workers):
    split = Numbered(60)
    with loader(split, workers=workers) as batches:
        pairs = [kept(pair) for pair in zip(batches.epoch(0), batches.epoch(1), strict=True)]
    for number in range(2):
        assert equal([pair[number] for pair in pairs], epoch(split, number))


@pytest.mark.parametrize(("workers", "blocks"), [(0, 1), (2, AHEAD)])
def test_the_memory_of_batches_is_used_again(workers, blocks):
    with loader(Numbered(300), workers=workers) as batches:
        used = {batch.images.ctypes.data for number in range(2) for batch in batches.epoch(number)}
    assert len(used) <= blocks


def test_memory_that_workers_may_still_write_into_is_not_used_again():
    """An epoch left early leaves a worker behind in the middle of a batch; its images must not reach the next epoch."""
    split, order = Numbered(100), joined(epoch(Numbered(100)), "labels")
    split.held = order[15]  # the worker at the second batch waits there
    split.gate.clear()
    with loader(split, workers=2) as batches:
        first = batches.epoch(0)
        next(first)
        split.wait_for(10 + 5 + 10)
        first.close()
        second = batches.epoch(1)
        found = kept([next(second)])
        split.wait_for(25 + 30)  # the other worker has decoded all that is decoded ahead
        split.gate.set()
        split.wait_for(55 + 5)  # and the one left behind has come to the end of its batch
        found += kept(second)
    assert equal(found, epoch(Numbered(100), 1))


def test_wrong_arguments():
    split = Numbered(10)
    with pytest.raises(ValueError, match="batch_size must be at least 1 and workers at least 0, got 0 and 0"):
        loader(split, batch_size=0)
    with pytest.raises(ValueError, match="got 4 and -1"):
        loader(split, batch_size=4, workers=-1)
    for crop in (0, 9):
        with pytest.raises(ValueError, match=f"crop must be 1 to the images' size of 8, got {crop}"):
            loader(split, crop=crop)
    with loader(split) as batches:
        for start in (-1, 11):
            with pytest.raises(ValueError, match=f"start must be 0 to 10, got {start}"):
                batches.epoch(0, start)
        for noise in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"noise must be at least 0, got {noise}"):
                batches.epoch(0, noise=noise)
    with pytest.raises(RuntimeError, match="closed"):
        batches.epoch(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_decoding_all_but_the_pixels_is_the_same(workers):
    split = Numbered(23)
    with loader(split, workers=workers) as decoding:
        expected = [replace(batch, images=batch.images.copy()) for batch in decoding.epoch(3, 5)]
    split.asked.clear()
    with loader(split, workers=workers, decode=False) as numbers:
        found = list(numbers.epoch(3, 5))
    assert not split.asked
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.images.shape == (len(batch.labels), 0, 0, 3)
        np.testing.assert_array_equal(other.images[:, 0, 0, 0], batch.indices)  # image i is full of i
        for name in ("indices", "labels", "windows", "noise", "position"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(("shards", "processes"), [(4, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("workers", [0, 2])
def test_shares_of_batches_are_the_whole_ones(shards, processes, workers):
    """What all processes get together is what one gets alone; the last batch has fewer images than there are shards."""
    split = Numbered(42)
    whole = epoch(split, workers=workers)
    ranks = [Shares(shards, processes, rank) for rank in range(processes)]
    parts = [epoch(split, workers=workers, share=one.part) for one in ranks]
    for batch, *own in zip(whole, *parts, strict=True):
        assert {(one.position, one.of) for one in own} == {(batch.position, len(batch.labels))}
        for name in ("images", "indices", "labels", "windows", "noise"):
            np.testing.assert_array_equal(np.concatenate([getattr(one, name) for one in own]), getattr(batch, name))


@pytest.mark.parametrize("count", [40, 42, 3])
def test_within_parts_every_shard_has_its_own_images_in_every_epoch(count):
    split, shares = Numbered(count), [Shares(4, 4, rank) for rank in range(4)]
    seen = [
        [
            np.concatenate([b.indices for b in epoch(split, number, share=one.part, cuts=one.cuts)])
            for number in range(3)
        ]
        for one in shares
    ]
    for epochs in seen:
        assert len({tuple(sorted(indices)) for indices in epochs}) == 1
    if count > 4:
        assert all(len({tuple(indices) for indices in epochs}) == 3 for epochs in seen)  # shuffled
    for number in range(3):
        assert sorted(np.concatenate([epochs[number] for epochs in seen])) == list(range(count))
    borders = [(min(e[0]), max(e[0])) for e in seen if len(e[0])]
    assert borders == sorted(borders)  # images that lie beside each other
