"""The learning rate over a run."""

from __future__ import annotations

import json
import math

import pytest

from convnet.training.schedule import LEAST_STEPS, Schedule, Stage, stages_of


def plateau(patience=2):
    """Epochs of 1000 steps: long enough for patience to count."""
    return Schedule("plateau", base=0.01, epochs=10, patience=patience, steps=1000)


def drops(schedule, errors, noise=0.0, begun=True, first=1):
    """Which of these evaluations, one an epoch, make the rate drop."""
    return [
        schedule.evaluated(error, noise, epoch * schedule.steps, begun) for epoch, error in enumerate(errors, first)
    ]


def test_constant_never_changes():
    schedule = Schedule("constant", base=0.02, epochs=4, patience=1, steps=1000)
    assert drops(schedule, (0.5, 0.5, 0.6, 0.7)) == [False] * 4
    assert [schedule.rate(epoch) for epoch in range(4)] == [0.02] * 4


def test_step_drops_at_the_quarters():
    schedule = Schedule("step", base=0.01, epochs=8, patience=1)
    rates = [schedule.rate(epoch) for epoch in range(8)]
    assert rates == pytest.approx([0.01] * 2 + [0.001] * 2 + [0.0001] * 2 + [0.00001] * 2, rel=1e-12)


def test_step_of_fewer_epochs_than_drops_still_ends_at_the_lowest_quarter_it_reaches():
    assert [Schedule("step", 1.0, 1, 1).rate(0), Schedule("step", 1.0, 2, 1).rate(1)] == [1.0, 0.01]


def test_plateau_drops_after_patience_epochs_without_a_new_minimum():
    schedule = plateau()
    #         new   new   equal  worse=drop  new   worse  worse=drop
    errors = (0.50, 0.40, 0.40, 0.45, 0.30, 0.35, 0.31)
    assert drops(schedule, errors) == [False, False, False, True, False, False, True]
    assert schedule.rate(0) == pytest.approx(0.0001)


def test_plateau_drops_three_times_at_most():
    schedule = plateau(patience=1)
    assert drops(schedule, [0.5] * 8) == [False, True, True, True, False, False, False, False]
    assert schedule.rate(0) == pytest.approx(0.00001)


def test_plateau_waits_until_learning_has_begun():
    """However long that takes, and whatever errors chance gives; patience counts from then on."""
    schedule = plateau(patience=2)
    assert drops(schedule, [0.66, 0.60, 0.67, 0.66, 0.66, 0.66, 0.67], begun=False) == [False] * 7
    assert schedule.lowest is None
    # once it has, a loss above that of chance, as of a network that is too sure, does not take that back
    assert drops(schedule, [0.65], first=8) == [False]
    assert drops(schedule, [0.65, 0.65], begun=False, first=9) == [False, True]


def test_plateau_judges_against_the_noise_of_the_error():
    """Errors that fall by less than their standard error do not count as falling, but in sum they do."""
    lower = (0.50, 0.48, 0.46, 0.44, 0.42, 0.40)
    assert drops(plateau(), lower, noise=0.03) == [False] * 6  # .50, .46 and .42 are progress
    assert drops(plateau(), lower, noise=0.09) == [False, False, True, False, True, False]
    assert drops(plateau(), lower) == [False] * 6


def test_patience_counts_steps_not_evaluations():
    """Epochs of five steps: a hundred evaluations are as much work as one evaluation of 500 steps."""
    often = Schedule("plateau", 0.01, 400, patience=3, steps=5)
    found = drops(often, [0.5] * 202)
    assert [epoch for epoch, drop in enumerate(found, 1) if drop] == [1 + LEAST_STEPS // 5, 1 + 2 * LEAST_STEPS // 5]
    seldom = plateau(patience=4)  # evaluated every second epoch
    assert [seldom.evaluated(0.5, 0, 2000 * k, True) for k in range(1, 5)] == [False, False, True, False]


@pytest.mark.parametrize("cut", range(7))
def test_state_survives_json_at_any_point(cut):
    errors = (0.50, 0.40, 0.40, 0.45, 0.30, 0.35, 0.31)
    straight, first, second = plateau(), plateau(), plateau()
    before = drops(straight, errors)
    after = drops(first, errors[:cut])
    second.restore(json.loads(json.dumps(first.state())), 1000 * cut)
    after += drops(second, errors[cut:], first=cut + 1)
    assert after == before
    assert second == straight


def test_a_state_of_version_0_1_counted_evaluations():
    schedule = plateau(patience=3)
    schedule.restore({"lowest": 0.4, "waited": 1, "drops": 2}, 7000)
    assert drops(schedule, [0.45, 0.45], first=8) == [False, True]
    assert schedule.drops == 3


def test_plateau_ends_when_the_error_stops_falling_once_more():
    schedule = plateau(patience=2)
    ends = []
    for epoch in range(1, 10):
        drops(schedule, [0.5], first=epoch)
        ends.append(schedule.finished)
    assert ends == [False] * 8 + [True]  # one minimum, three times two without, then two more
    drops(schedule, [0.4], first=10)
    assert not schedule.finished  # a resumed run may find a way down again
    assert not Schedule("constant", 0.01, 4, 1, judged=9000, drops=3).finished


def test_cosine_falls_from_the_rate_to_nothing():
    schedule = Schedule("cosine", 0.02, 4, 1, steps=10)
    assert schedule.rate(0) == 0.02
    assert schedule.rate(2) == pytest.approx(0.01)
    assert schedule.rate(1, 5) == pytest.approx(0.02 * (1 + math.cos(math.pi * 1.5 / 4)) / 2)
    assert schedule.rate(3, 9) == pytest.approx(0.02 * math.sin(math.pi / 80) ** 2)
    assert schedule.rate(4) == pytest.approx(0, abs=1e-12)


def test_flat_cosine_keeps_the_rate_for_a_quarter():
    schedule = Schedule("flat-cosine", 0.02, 8, 1, steps=10)
    assert {schedule.rate(epoch, step) for epoch in (0, 1) for step in range(10)} == {0.02}
    assert schedule.rate(2) == 0.02 > schedule.rate(2, 1)
    assert schedule.rate(5) == pytest.approx(0.01)
    assert schedule.rate(4, 5) == pytest.approx(0.02 * (1 + math.cos(math.pi * 2.5 / 6)) / 2)
    assert schedule.rate(8) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "cosine", "flat-cosine", "plateau"])
def test_warmup_rises_in_equal_steps(kind):
    schedule, plain = (Schedule(kind, 1.0, 4, 1, warmup=w, steps=5) for w in (2.0, 0.0))
    factors = [schedule.rate(e, s) / plain.rate(e, s) for e in range(3) for s in range(5)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, *[1.0] * 5])


def test_stages():
    tables = [
        {"epoch": 0, "lr": 0.01, "bias_lr": 0.02, "noise": 0.1},
        {"epoch": 3, "lr": 0.001, "layers": {"conv1": 0.0001, "conv2": 0}},
    ]
    schedule = Schedule("stages", 0.01, 9, 1, stages=stages_of(tables))
    assert [schedule.rate(epoch) for epoch in (0, 2, 3, 8)] == [0.01, 0.01, 0.001, 0.001]
    first, second = schedule.stage(2), schedule.stage(3)
    assert (first.factor("conv1.weight"), first.factor("conv1.bias"), first.noise, first.frozen) == (1, 2, 0.1, [])
    assert [second.factor(f"{name}.bias") for name in ("conv1", "conv2", "fc8")] == pytest.approx([0.1, 0, 1])
    assert second.frozen == ["conv2"]
    assert Schedule("plateau", 0.01, 9, 1).stage(4) == Stage(0, 0.01)


WRONG = {
    "no epoch": ([{"lr": 1}], "the 1. stage needs epoch and lr"),
    "unknown key": ([{"epoch": 0, "lr": 1, "momentum": 1}], "may have bias_lr, noise and layers"),
    "not from the start": ([{"epoch": 1, "lr": 1}], "epoch must be 0, got 1"),
    "order": ([{"epoch": 0, "lr": 1}, {"epoch": 5, "lr": 1}, {"epoch": 5, "lr": 1}], "the 3. stage.*at least 6, got 5"),
    "no rate": ([{"epoch": 0, "lr": 0}], "lr must be a number of more than 0, got 0"),
    "negative": ([{"epoch": 0, "lr": 1, "layers": {"conv1": -1}}], "conv1 must be a number of at least 0, got -1"),
    "too large": ([{"epoch": 0, "lr": 1e300}], r"lr must be a number of more than 0 and at most 1e\+30, got 1e\+300"),
    "not finite": ([{"epoch": 0, "lr": 1, "noise": float("nan")}], "noise must be a number of at least 0, got nan"),
    "true": ([{"epoch": True, "lr": 1}], "epoch must be 0, got True"),
    "no table": ([3], "the 1. stage needs"),
    "layers": ([{"epoch": 0, "lr": 1, "layers": [1]}], "layers must be a table"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_impossible_stages(mistake):
    tables, text = WRONG[mistake]
    with pytest.raises(ValueError, match=text):
        stages_of(tables)
