"""What a run says at its end about whether anything was learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convnet.training.verdict import FEW_STEPS, Chance, Last, standard_error, verdict

THREE = np.repeat(np.arange(3, dtype=np.int32), 30)
SKEWED = np.repeat(np.arange(2, dtype=np.int32), [95, 5])


def said(labels, error, loss, training_loss=None, steps=FEW_STEPS, lr=0.01, init="he"):
    last = None if error is None else Last(error, loss)
    return verdict(Chance.of(labels), last, training_loss, steps, lr, init)


def test_chance_of_equally_frequent_classes():
    chance = Chance.of(THREE)
    assert (chance.images, chance.error, chance.loss) == (90, pytest.approx(2 / 3), pytest.approx(math.log(3)))


def test_chance_knows_the_largest_class():
    chance = Chance.of(SKEWED)
    assert chance.error == pytest.approx(0.05)
    assert chance.loss == pytest.approx(-0.95 * math.log(0.95) - 0.05 * math.log(0.05))


def test_the_standard_error():
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(0, 100) == standard_error(1, 100) == 0


@pytest.mark.parametrize(("error", "above"), [(0.66, False), (0.57, False), (0.56, True), (0, True)])
def test_an_error_is_judged_against_the_noise_of_chance(error, above):
    """Of 90 images a third are right by chance, more or less 4.97 %."""
    assert Chance.of(THREE).above(error) is above
    assert Chance.of(THREE[::30]).above(error) is (error == 0)  # three images: 27 %, and two of them 54 %


def test_learning_begins_with_the_loss_or_with_the_error():
    chance = Chance.of(THREE)
    assert not chance.begun(0.64, 1.0975)
    assert not chance.begun(0.66, 3.0)
    assert not chance.begun(0.66, 1.0)  # 90 images: losses of half a nat more or less are 0.05 off, or twice that
    assert chance.begun(0.66, 0.99)
    many = Chance.of(np.repeat(THREE, 1000))
    assert not many.begun(0.666, 1.08)
    assert many.begun(0.666, 1.07)
    assert chance.begun(0.3, 3.0)  # too sure of what is wrong


def test_learnt():
    learnt, sentence = said(THREE, 0.3, 0.8)
    assert learnt
    assert sentence.startswith("learnt: top-1 error 30.00 % (+- 4.83 %), and 66.67 % for who names the most frequent")


def test_a_beginning():
    learnt, sentence = said(THREE, 0.64, 0.95)
    assert learnt
    assert sentence.startswith("learning has begun, but not to show: loss 0.9500, and 1.0986 for who knows no more")


def test_the_largest_class_alone_is_nothing():
    learnt, sentence = said(SKEWED, 0.05, 0.2)
    assert not learnt
    assert sentence.startswith("nothing was learnt: top-1 error 5.00 % (+- 2.18 %), and 5.00 % for who names")


REMEDIES = {
    "few steps": ({"steps": 30, "lr": 0.01}, "try more --epochs than these 30 steps, --lr 0.003 or 0.03, smaller"),
    "many steps": ({"training_loss": 1.0986}, "; try --lr 0.003 or 0.03, smaller batches (-b), and look whether the"),
    "the paper's weights": ({"init": "paper"}, "; try --init he, --lr"),
    "an unlucky draw": ({"training_loss": 0.9}, "; try --lr 0.003 or 0.03, smaller batches (-b), and look whether the"),
    "learnt by heart": ({"training_loss": 0.1}, "; the training images alone were learnt (loss 0.1000): look whether"),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_nothing_learnt_and_what_to_try(case):
    options, text = REMEDIES[case]
    learnt, sentence = said(THREE, 0.66, 1.0975, **options)
    assert not learnt
    assert sentence.startswith("nothing was learnt: top-1 error 66.00 % (+- 4.99 %), and 66.67 %")
    assert "loss 1.0975, and 1.0986" in sentence
    assert text in sentence


def test_what_cannot_be_told():
    assert "before its first evaluation" in said(THREE, None, None)[1]
    assert "all 30 validation images are of one class" in said(THREE[:30], 0.0, 0.0)[1]
    assert "2 validation images are too few to tell: give more" in said(THREE[[0, 30]], 0.5, 2.0)[1]
    assert said(THREE, None, None)[0]  # asked for with --steps, and no reason to warn
    assert not any(said(*case)[0] for case in ((THREE[:30], 0.0, 0.0), (THREE[[0, 30]], 0.5, 2.0)))
