"""scikit-learn's own checks of what calls itself a classifier."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import convnet

checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")

EPOCHS = 4  # enough for the checks that want something learnt


def all_checks() -> list:
    """Each bound to the classifier that it is for, by its name: none is left out, none is expected to fail."""
    classifier = convnet.Classifier(epochs=EPOCHS, augment=False, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is none of scikit-learn's own
        found = [(check, estimator) for estimator, check in checks.estimator_checks_generator(classifier)]
    return [pytest.param(*each, id=f"{each[0].func.__name__}{each[0].keywords or ''}") for each in found]


@pytest.mark.slow
@pytest.mark.parametrize(("check", "estimator"), all_checks())
@pytest.mark.filterwarnings("ignore")  # what scikit-learn warns of by itself
def test_estimator_check(check, estimator):
    check(estimator)


def test_there_are_many_checks():
    """Where the classifier said that it takes no tables, nothing would be checked."""
    assert len(all_checks()) > 45


def test_it_is_a_part_of_what_scikit_learn_builds():
    """Pictures go through cross-validation and a search for parameters, labels as they are."""
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score

    random = np.random.default_rng(0)
    labels = np.array(["dark", "light"])[np.arange(24) % 2]
    pixels = random.integers(0, 100, (24, 12, 12, 3), dtype=np.uint8)
    pixels[labels == "light"] += 150
    classifier = convnet.Classifier(epochs=4, batch_size=8, device="cpu")
    assert is_classifier(classifier)
    assert repr(clone(classifier)) == repr(classifier)
    assert cross_val_score(classifier, pixels, labels, cv=2).mean() == 1
    found = GridSearchCV(classifier, {"epochs": np.array([1, 4])}, cv=2).fit(pixels, labels)
    assert found.best_estimator_.predict(pixels).tolist() == labels.tolist()
