"""Probabilities, activations and errors of a trained network, and ensembles, as a library."""

from __future__ import annotations

import numpy as np
import pytest
from runs import straight_run

from convnet import evaluate
from convnet.trained import load_trained


@pytest.fixture(scope="module")
def trained():
    return load_trained(straight_run(), pytest.fail)


@pytest.fixture(scope="module")
def network(trained):
    with trained.open_network("cpu", batch_size=5) as network:  # 12 images: three batches, the last one short
        yield network


@pytest.fixture(scope="module")
def split(trained):
    return trained.open_dataset().valid


def crops(trained, split, views):
    """What the network sees, cut out, mirrored and normalised here: float32 (views, n, 3, crop, crop)."""
    crop, size = trained.spec.crop, split.size
    far, middle = size - crop, (size - crop) // 2
    assert far > middle > 0
    places = [(0, 0), (0, far), (middle, middle), (far, 0), (far, far)] if views == 10 else [(middle, middle)]
    seen = []
    for mirrored in (False, True) if views == 10 else (False,):
        for top, left in places:
            cut = np.stack([split.image(i)[top : top + crop, left : left + crop] for i in range(len(split))])
            cut = (cut[:, :, ::-1] if mirrored else cut).transpose(0, 3, 1, 2).astype(np.float32)
            seen.append((cut - trained.statistics.mean) * np.float32(trained.spec.input_scale))
    return np.stack(seen)


def forward(network, images):
    return np.concatenate([network.forward(images[i : i + 5]) for i in range(0, len(images), 5)])


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_the_mean_over_explicit_forward_passes(views, trained, network, split):
    explicit = []
    for images in crops(trained, split, views):
        x = forward(network, images).astype(np.float64)
        explicit.append(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True))
    told = []
    found = evaluate.probabilities(network, split, views, workers=1, progress=lambda *at: told.append(at))
    assert (found.dtype, found.shape) == (np.float32, (12, 3))
    np.testing.assert_allclose(found, np.mean(explicit, axis=0), rtol=1e-5)
    assert np.ptp(explicit, axis=0).max() > 1e-4 or views == 1  # the views differ, or this would show nothing
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_features_are_activations_of_the_centre_crop(trained, network, split):
    for layer in ("conv5", "fc7"):
        found = evaluate.features(network, split, layer, workers=0)
        explicit = []
        for start in range(0, 12, 5):
            network.forward(crops(trained, split, 1)[0][start : start + 5])
            explicit.append(network.activation(layer))
        np.testing.assert_allclose(found, np.concatenate(explicit), rtol=1e-4, atol=1e-6)
        assert found.min() == 0  # behind the ReLU
        assert found.max() > 0
    assert found.dtype == np.float32
    with pytest.raises(ValueError, match=r'no layer is called "fc9"; there are conv1, .*fc8'):
        evaluate.features(network, split, "fc9")
