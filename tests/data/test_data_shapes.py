"""The drawn shapes: the same for ever, distinct, and what the statistics say about them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from convnet import data
from convnet.data import shapes
from convnet.data.shapes import ShapesSplit


def test_the_data_set_as_users_get_it():
    first, again, other = (data.open_dataset("shapes", size=73, seed=seed) for seed in (0, 0, 1))
    assert first.name == "drawn shapes: 10 classes, 12,000 training and 1,000 validation images"
    assert len(first.classes) == 10
    assert first.classes == sorted(set(first.classes))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.train.labels.dtype == np.int32
    for split in (first.train, first.valid):
        counts = np.bincount(split.labels, minlength=10)
        assert counts.sum() == len(split)
        assert np.abs(counts - len(split) / 10).max() < 5 * np.sqrt(len(split) / 10)  # five standard deviations
    image = first.valid.image(3)
    assert image.shape == (73, 73, 3)
    assert image.dtype == np.uint8
    image[:] = 0  # the caller's own copy
    assert first.valid.image(3).any()


def test_images_stay_the_same_for_ever():
    """If this fails the drawing has changed: raise shapes.VERSION, and know that old runs cannot be resumed."""
    split = ShapesSplit(40, size=24, seed=2012, split=1)
    digest = hashlib.sha256(split.labels.tobytes())
    for k in range(40):
        digest.update(split.image(k).tobytes())
    assert digest.hexdigest()[:16] == "ed5c9c9b26ee7885"


def test_an_image_depends_on_seed_split_and_index_alone(monkeypatch):
    few, many = (ShapesSplit(count, size=20, seed=5, split=0) for count in (7, 50))
    expected = [many.image(k) for k in range(7)]
    for k in (6, 2, 2, 0):
        np.testing.assert_array_equal(few.image(k), expected[k])
    monkeypatch.setattr(shapes, "CACHE_BYTES", 0)
    np.testing.assert_array_equal(ShapesSplit(7, size=20, seed=5, split=0).image(4), expected[4])
    for other in (ShapesSplit(7, size=20, seed=6, split=0), ShapesSplit(7, size=20, seed=5, split=1)):
        assert not any(np.array_equal(other.image(k), expected[k]) for k in range(7))
    large_seed = ShapesSplit(7, size=20, seed=5 + 2**40, split=0)
    assert not any(np.array_equal(large_seed.image(k), expected[k]) for k in range(7))


def test_validation_images_are_not_training_images():
    train, valid = (ShapesSplit(400, size=16, seed=0, split=k) for k in (0, 1))
    seen = {train.image(k).tobytes() for k in range(400)}
    assert len(seen) == 400
    assert not seen & {valid.image(k).tobytes() for k in range(400)}


def test_shapes_differ_from_each_other_however_they_are_turned():
    """Laid over each other at the best angle, any two classes still differ in a good part of their area."""
    axis = ((np.arange(96) + 0.5) / 48 - 1).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    masks = {}
    for name, distance in shapes.SHAPES.items():
        turns = []
        for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            turns.append(distance(1.1 * (c * x + s * y), 1.1 * (c * y - s * x)) < 0)
        masks[name] = np.stack(turns)
        assert 0.08 < masks[name].mean() < 0.6, name  # visible, and not the whole image
        assert not masks[name][:, 0].any(), name  # bounded, at every angle
    names = list(masks)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = (masks[a][0] & masks[b]).sum(axis=(1, 2))
            either = (masks[a][0] | masks[b]).sum(axis=(1, 2))
            assert (both / either).max() < 0.85, (a, b)


def test_shape_and_background_contrast_in_every_image():
    split = ShapesSplit(2000, size=16, seed=3, split=0)
    for row in split._u:
        first, second, colour = shapes._colours(row)
        assert min(np.abs(colour - first).sum(), np.abs(colour - second).sum()) > 60
        assert all(0 <= value <= 255 for value in (*first, *second, *colour))


class Stored:
    """A split of given images."""

    def __init__(self, images):
        self.images, self.size = images, images.shape[1]
        self.labels = np.zeros(len(images), np.int32)

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]

    def name(self, index):
        return str(index)


@pytest.mark.parametrize("workers", [1, 3])
def test_statistics_against_numpy(workers):
    rng = np.random.default_rng(0)
    mixing = np.array([[40, 20, 5], [35, -10, 8], [30, -5, -9]])
    images = (128 + rng.normal(size=(150, 11, 11, 3)) @ mixing.T).clip(0, 255).astype(np.uint8)
    images[:, 3] //= 2  # rows differ, so that a transposed mean or a shifted crop is seen
    images[:, :, 6] //= 3
    found = data.sampled_statistics(Stored(images), 7, workers=workers)

    crops = images[:, 2:9, 2:9].astype(np.float64)
    np.testing.assert_allclose(found.mean, crops.mean(axis=0).transpose(2, 0, 1), rtol=1e-6)
    covariance = np.cov(crops.reshape(-1, 3).T, bias=True)
    rebuilt = found.directions @ np.diag(found.deviations.astype(np.float64) ** 2) @ found.directions.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(3), atol=1e-6)
    assert found.deviations[0] > found.deviations[1] > found.deviations[2] > 0
    assert all(column[np.abs(column).argmax()] > 0 for column in found.directions.T)
    np.testing.assert_allclose(found.std, crops.reshape(-1, 3).std(axis=0), rtol=1e-5)
    assert [a.dtype for a in (found.mean, found.std, found.deviations, found.directions)] == [np.float32] * 4
    assert found.mean.shape == (3, 7, 7)


def test_statistics_look_at_evenly_spaced_images():
    images = np.repeat(np.arange(100, dtype=np.uint8), 4 * 4 * 3).reshape(100, 4, 4, 3)
    assert data.sampled_statistics(Stored(images), 4, limit=10).mean[0, 0, 0] == np.arange(0, 100, 10).mean()
    grey = data.sampled_statistics(Stored(images), 4)
    np.testing.assert_allclose(grey.deviations, [np.std(np.arange(100)) * np.sqrt(3), 0, 0], atol=1e-2)
    np.testing.assert_allclose(grey.directions[:, 0], np.full(3, 3**-0.5), rtol=1e-6)


def test_statistics_tell_how_far_they_are():
    told = []
    images = Stored(np.zeros((50, 4, 4, 3), np.uint8))
    data.sampled_statistics(images, 4, limit=10, workers=3, progress=lambda *seen: told.append(seen))
    assert told == [(k, 10) for k in range(1, 11)]


def test_statistics_of_one_constant_image():
    found = data.sampled_statistics(Stored(np.full((1, 4, 4, 3), 200, np.uint8)), 4)
    assert (found.mean == 200).all()
    np.testing.assert_allclose(found.deviations, 0, atol=1e-4)
    assert np.isfinite(found.directions).all()


@pytest.mark.parametrize(("count", "crop"), [(0, 4), (1, 5), (1, 0)])
def test_impossible_statistics(count, crop):
    with pytest.raises(ValueError, match="statistics: crop must be 1 to 4 and there must be images"):
        data.sampled_statistics(Stored(np.zeros((count, 4, 4, 3), np.uint8)), crop)
