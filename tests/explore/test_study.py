"""What is computed meanwhile: neighbours and confusions, beside their plain computation."""

from __future__ import annotations

import shutil
import threading
import time

import numpy as np
import pytest
from pages import LOAD, copy_run
from runs import TINY, here, make_images

from convnet.analysis import evaluate, retrieval
from convnet.data import Subset
from convnet.explore import study as module
from convnet.explore.listing import Listing
from convnet.explore.study import Forgotten, Study, sentence


def run_of(folder):
    return next(iter(Listing(folder).runs().values()))


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 5)  # so that there are several
    found = Study(LOAD)
    yield found
    found.close()


@pytest.fixture
def subject(study, tmp_path):
    copy_run(tmp_path)
    return study.subject(run_of(tmp_path))


def when_finished(ask, told="finished"):
    for _ in range(2000):
        found = ask()
        if found["finished"] or "error" in found:
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def features(subject, split):
    with subject.trained.open_network("cpu", 8, fused=False) as network:
        return evaluate.features(network, split).reshape(len(split), -1)


def test_neighbours_are_the_nearest_of_all_training_pictures(subject):
    dataset = subject.dataset()
    picture, _ = subject.picture("val", 3)
    token, _ = subject.look(picture)
    found = when_finished(lambda: subject.neighbours(token))
    assert (found["done"], found["total"], found["all"]) == (36, 36, 36)
    rows, distances = retrieval.nearest(
        features(subject, Subset(dataset.valid, [3])), features(subject, dataset.train), 6
    )
    np.testing.assert_allclose([one["distance"] for one in found["nearest"]], distances[0], rtol=1e-4)
    assert [one["index"] for one in found["nearest"]] == rows[0].tolist()
    assert [one["label"] for one in found["nearest"]] == [dataset.classes[dataset.train.labels[k]] for k in rows[0]]


def test_neighbours_are_told_among_those_looked_at_so_far(study, tmp_path, monkeypatch):
    """The second batch of training pictures waits until somebody has asked."""
    monkeypatch.setattr(module, "BATCH", 8)
    go, plain = threading.Event(), evaluate.image_batches

    def slowly(network, split):
        for number, images in enumerate(plain(network, split)):
            if number == 1:
                assert go.wait(60)
            yield images

    monkeypatch.setattr(evaluate, "image_batches", slowly)
    copy_run(tmp_path)
    subject = study.subject(run_of(tmp_path))
    token, _ = subject.look(subject.picture("val", 0)[0])
    while (found := subject.neighbours(token))["done"] < 8:
        time.sleep(0.01)
    assert (found["finished"], found["done"], found["total"]) == (False, 8, 36)
    first = np.random.default_rng(0).permutation(36)[:8]
    assert {one["index"] for one in found["nearest"]} <= set(first.tolist())
    go.set()
    assert when_finished(lambda: subject.neighbours(token))["done"] == 36


def test_a_training_picture_is_its_own_neighbour(subject):
    token, _ = subject.look(subject.picture("train", 17)[0])
    first = when_finished(lambda: subject.neighbours(token))["nearest"][0]
    assert first["index"] == 17
    assert first["distance"] < 1e-4


def test_so_many_training_pictures_as_fit(subject, monkeypatch):
    token, _ = subject.look(subject.picture("val", 0)[0])
    entries = subject.features(subject.picture("val", 0)[0][None]).shape[1]
    monkeypatch.setattr(module, "ROWS", 4 * entries * 10)
    found = when_finished(lambda: subject.neighbours(token))
    assert (found["total"], found["all"]) == (10, 36)


def test_confusions_are_those_of_all_validation_pictures(subject):
    found = when_finished(subject.confusion)
    valid, classes = subject.dataset().valid, subject.dataset().classes
    with subject.trained.open_network("cpu", 8) as network:
        shares = evaluate.probabilities(network, valid)
    counts = evaluate.confusion(shares, valid.labels)
    assert found["rows"] == counts.tolist()
    assert (found["images"], found["mistakes"]) == (12, int(counts.sum() - np.trace(counts)))
    own = shares[np.arange(12), valid.labels]
    np.testing.assert_allclose([one["probability"] for one in found["doubtful"]], np.sort(own)[:6], rtol=1e-4)
    assert [(p["true"], p["taken"], p["count"], p["of"]) for p in found["pairs"]] == evaluate.most_confused(
        counts, classes, 8
    )
    for pair in found["pairs"]:
        assert len(pair["pictures"]) == min(pair["count"], 6)
        assert {classes[valid.labels[k]] for k in pair["pictures"]} == {pair["true"]}
        assert {classes[shares[k].argmax()] for k in pair["pictures"]} == {pair["taken"]}


def test_confused_pictures_come_with_the_least_aware_first():
    labels, taken = np.array([0, 1, 1, 1, 2]), np.array([0, 2, 2, 0, 2])
    outcomes = evaluate.Outcomes(labels, np.array([0.9, 0.3, 0.1, 0.2, 0.8]), taken != labels, taken)
    assert module._surest(outcomes, 1, 2) == [2, 1]
    assert module._surest(outcomes, 1, 0) == [3]


def test_examples_are_of_as_many_classes_as_possible(subject):
    found = subject.examples(5)
    assert [one["split"] for one in found] == ["val"] * 5
    assert {one["label"] for one in found[:3]} == {"blue", "green", "red"}
    assert len({one["index"] for one in found}) == 5
    assert len({one["index"] for one in subject.examples(100)}) == 12


def test_pictures_that_are_not_there(subject):
    for split, index in (("val", 12), ("train", 36), ("train", -1), ("test", 0)):
        with pytest.raises(LookupError):
            subject.picture(split, index)


def test_few_pictures_are_kept(subject, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    picture, _ = subject.picture("val", 0)
    tokens = [subject.look(picture)[0] for _ in range(3)]
    assert subject.occlusion(tokens[2]).shape == (3, 32, 32)
    for ask in (subject.occlusion, subject.neighbours):
        with pytest.raises(Forgotten, match="choose it again"):
            ask(tokens[0])


def test_few_networks_stay_open(study, tmp_path):
    for name in "abc":
        copy_run(tmp_path, name)
    first, second, third = map(study.subject, Listing(tmp_path).runs().values())
    assert study.subject(third.run) is third
    assert study.subject(second.run) is second
    with pytest.raises(Forgotten, match="load the page again"):
        first.look(np.zeros((36, 36, 3), np.uint8))
    assert study.subject(first.run) is not first


def test_better_weights_are_looked_at_when_they_are_there(study, tmp_path):
    folder = copy_run(tmp_path)
    before = study.subject(run_of(tmp_path))
    (folder / "best").unlink()
    (folder / "best").symlink_to("checkpoints/step-00000010.safetensors")
    assert study.subject(run_of(tmp_path)).trained.step == 10 != before.trained.step


def test_data_that_has_moved_is_one_sentence_without_options_that_are_not_there(study, tmp_path):
    images = make_images(tmp_path / "images")
    assert here(str(images), *TINY, "--steps", "2", "-o", str(tmp_path / "runs" / "one")) in (0, 75)
    shutil.rmtree(images)
    subject = study.subject(run_of(tmp_path / "runs"))
    found = when_finished(subject.confusion)
    assert "images" in found["error"]
    assert found["error"].endswith("the run's data is needed where it was when the run began")
    assert "--data" not in found["error"]


def test_a_sentence_is_one_line():
    assert sentence(ValueError("one\ntwo  three")) == "one two three"
    assert sentence(ValueError()) == "ValueError"
