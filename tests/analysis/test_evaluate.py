"""Probabilities, activations and errors of a trained network, and ensembles, as a library."""

from __future__ import annotations

import numpy as np
import pytest
from runs import straight_run

from convnet.analysis import ensemble, evaluate, retrieval
from convnet.training.trained import load_trained


@pytest.fixture(scope="module")
def trained():
    return load_trained(straight_run(), pytest.fail)


@pytest.fixture(scope="module")
def network(trained):
    with trained.open_network("cpu", batch_size=5, fused=False) as network:  # 12 images: the last batch is short
        yield network


@pytest.fixture(scope="module")
def split(trained):
    return trained.open_dataset().valid


def crops(trained, split, views):
    """What the network sees, cut out, mirrored and normalised here: float32 (views, n, 3, crop, crop)."""
    crop, size = trained.spec.crop, split.size
    far, middle = size - crop, (size - crop) // 2
    assert far > middle > 0
    along = (0, middle, far)
    places = {
        1: [(middle, middle)],
        9: [(top, left) for top in along for left in along],
        10: [(0, 0), (0, far), (middle, middle), (far, 0), (far, far)],
    }[views]
    seen = []
    for mirrored in (False, True) if views == 10 else (False,):
        for top, left in places:
            cut = np.stack([split.image(i)[top : top + crop, left : left + crop] for i in range(len(split))])
            cut = (cut[:, :, ::-1] if mirrored else cut).transpose(0, 3, 1, 2).astype(np.float32)
            seen.append((cut - trained.statistics.mean) * np.float32(trained.spec.input_scale))
    return np.stack(seen)


def forward(network, images):
    return np.concatenate([network.forward(images[i : i + 5]) for i in range(0, len(images), 5)])


@pytest.mark.parametrize("views", [1, 9, 10])
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


def test_probabilities_are_softmax_in_float64_and_do_not_overflow():
    logits = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], np.float32)
    found = evaluate.softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[0, :2], [1 / (1 + np.exp(-1)), 1 / (1 + np.e)], rtol=1e-15)
    np.testing.assert_array_equal(found[1], 1 / 3)


def test_scores_count_errors_and_standard_errors():
    p = np.full((4, 7), 0.02, np.float32)
    p[np.arange(4), [3, 3, 3, 3]] = 0.88  # the others are equal: classes 0, 1, 2, 4 come next
    found = evaluate.scores(p, np.array([3, 0, 4, 5], np.int32))
    assert (found.n, found.top1_error, found.top5_error) == (4, 0.75, 0.25)
    assert found.top1_standard_error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert found.top5_standard_error == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    losses = -np.log(np.float32([0.88, 0.02, 0.02, 0.02]).astype(np.float64))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-12)
    assert found.loss_standard_error == pytest.approx(losses.std() / 2, rel=1e-12)


def test_the_loss_of_a_zero_is_finite():
    found = evaluate.scores(np.float32([[1, 0], [0, 1]]), np.array([1, 1]))
    assert found.loss == pytest.approx(-np.log(evaluate.SMALLEST) / 2)
    assert found.loss == pytest.approx(87.336 / 2, abs=1e-3)
    with pytest.raises(ValueError, match="at least one image"):
        evaluate.scores(np.empty((0, 2), np.float32), np.empty(0, np.int32))


def test_confusions():
    p = np.float32([[0.6, 0.4, 0], [0.3, 0.3, 0.4], [0, 0.1, 0.9], [0.5, 0.5, 0], [0, 0, 1]])
    counts = evaluate.confusion(p, np.array([0, 0, 0, 1, 2]))
    assert counts.tolist() == [[1, 0, 2], [1, 0, 0], [0, 0, 1]]  # of equal ones the first
    assert evaluate.most_confused(counts, "abc") == [("a", "c", 2, 3), ("b", "a", 1, 1)]
    assert evaluate.most_confused(counts, "abc", most=1) == [("a", "c", 2, 3)]
    assert evaluate.top(p, 2)[3].tolist() == [0, 1]
    assert evaluate.top(p, 9).shape == (5, 3)


# ---- ensembles


def members(count, n=400, classes=5, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    found = []
    for _ in range(count):
        logits = random.normal(size=(n, classes))
        logits[np.arange(n), labels] += 1.5
        found.append(evaluate.softmax(logits).astype(np.float32))
    return found, labels


def test_an_ensemble_is_the_mean_of_probabilities():
    (a, b, c), _ = members(3)
    np.testing.assert_allclose(ensemble.mean([a, b, c]), (a + b + c) / 3, rtol=1e-6)
    np.testing.assert_allclose(ensemble.mean([a, b, c], [0.5, 0.3, 0.2]), 0.5 * a + 0.3 * b + 0.2 * c, rtol=1e-6)
    np.testing.assert_array_equal(ensemble.mean([a, b], [1, 0]), a)


def test_fitted_weights_have_the_lowest_loss():
    (a, b), labels = members(2)
    weights = ensemble.fit_weights([a, b], labels)
    losses = [evaluate.scores(ensemble.mean([a, b], [w, 1 - w]), labels).loss for w in np.linspace(0, 1, 1001)]
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert abs(weights[0] - np.argmin(losses) / 1000) <= 2e-3
    fitted = evaluate.scores(ensemble.mean([a, b], weights), labels).loss
    assert fitted <= min(losses) + 2e-6
    assert fitted < min(losses[0], losses[500], losses[1000])


def test_a_member_that_knows_nothing_gets_no_weight():
    (a, b), labels = members(2)
    uniform = np.full_like(a, 1 / 5)
    wrong = np.zeros_like(a)
    wrong[np.arange(len(labels)), (labels + 1) % 5] = 1
    weights = ensemble.fit_weights([wrong, a, b], labels)
    assert weights[0] < 1e-6
    np.testing.assert_allclose(weights[1:], ensemble.fit_weights([a, b], labels), atol=1e-3)
    right = np.roll(wrong, -1, axis=1)
    assert ensemble.fit_weights([uniform, right, a], labels)[1] > 0.999
    assert np.isfinite(ensemble.fit_weights([wrong, wrong], labels)).all()  # nobody gives the label anything


# ---- neighbours


def test_neighbours_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(retrieval, "PART", 256 * 12 * 8)
    random = np.random.default_rng(3)
    features = random.normal(size=(600, 4, 3)).astype(np.float32)  # more than two parts, the last one short
    queries = features[[10, 599]] + np.float32(0.01)
    rows, distances = retrieval.nearest(queries, features, 7)
    for query, row, distance in zip(queries, rows, distances, strict=True):
        all_of_them = [np.linalg.norm(query.astype(np.float64) - one) for one in features]
        order = sorted(range(600), key=lambda i: (all_of_them[i], i))[:7]
        assert row.tolist() == order
        np.testing.assert_allclose(distance, np.array(all_of_them)[order], rtol=1e-14)
    assert rows[:, 0].tolist() == [10, 599]


def test_among_equal_neighbours_the_first_comes_first_whatever_the_blocks():
    features = np.float32([[1, 0], [0, 1], [3, 3], [-1, 0], [0, -1], [0, 0]])
    for cut in ([features], [features[:1], features[1:4], features[4:]], np.split(features, 6)):
        rows, distances = retrieval.nearest(np.zeros((1, 2), np.float32), iter(cut), 4)
        assert rows.tolist() == [[5, 0, 1, 3]]
        assert distances.tolist() == [[0, 1, 1, 1]]
    assert retrieval.nearest(features[:1], features, 99)[0].shape == (1, 6)
    assert retrieval.nearest(features[:0], features, 2)[0].shape == (0, 2)


def test_distances_do_not_cancel():
    """Rows far from the origin and close to each other: the sum of squares less the product would be all rounding."""
    row = np.full(4096, 1e4, np.float32)
    near = row.copy()
    near[5] += np.float32(0.0078125)
    rows, distances = retrieval.nearest(row[None], np.stack([near, row]), 2)
    assert rows.tolist() == [[1, 0]]
    assert distances.tolist() == [[0, 0.0078125]]


def test_impossible_neighbours():
    features = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retrieval.nearest(features, features, 0)
    with pytest.raises(ValueError, match="the queries' 5 entries, got 4"):
        retrieval.nearest(np.zeros((1, 5), np.float32), features, 1)
