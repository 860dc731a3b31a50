"""The learning rate over a run."""

from __future__ import annotations

import json

import pytest

from convnet.schedule import Schedule


def plateau(patience=2):
    return Schedule("plateau", base=0.01, epochs=10, patience=patience)


def test_constant_never_changes():
    schedule = Schedule("constant", base=0.02, epochs=4, patience=1)
    for error in (0.5, 0.5, 0.6, 0.7):
        assert schedule.evaluated(error) is False
    assert [schedule.rate(epoch) for epoch in range(4)] == [0.02] * 4


def test_step_drops_at_the_quarters():
    schedule = Schedule("step", base=0.01, epochs=8, patience=1)
    rates = [schedule.rate(epoch) for epoch in range(8)]
    assert rates == pytest.approx([0.01] * 2 + [0.001] * 2 + [0.0001] * 2 + [0.00001] * 2, rel=1e-12)


def test_step_of_fewer_epochs_than_drops_still_ends_at_the_lowest_quarter_it_reaches():
    assert [Schedule("step", 1.0, 1, 1).rate(0), Schedule("step", 1.0, 2, 1).rate(1)] == [1.0, 0.01]


def test_plateau_drops_after_patience_evaluations_without_a_new_minimum():
    schedule = plateau()
    #         new   new   equal  worse=drop  new   worse  worse=drop
    errors = (0.50, 0.40, 0.40, 0.45, 0.30, 0.35, 0.31)
    assert [schedule.evaluated(error) for error in errors] == [False, False, False, True, False, False, True]
    assert schedule.rate(0) == pytest.approx(0.0001)


def test_plateau_drops_three_times_at_most():
    schedule = plateau(patience=1)
    assert [schedule.evaluated(0.5) for _ in range(8)] == [False, True, True, True, False, False, False, False]
    assert schedule.rate(0) == pytest.approx(0.00001)


@pytest.mark.parametrize("cut", range(7))
def test_state_survives_json_at_any_point(cut):
    errors = (0.50, 0.40, 0.40, 0.45, 0.30, 0.35, 0.31)
    straight, first, second = plateau(), plateau(), plateau()
    before = [straight.evaluated(error) for error in errors]
    after = [first.evaluated(error) for error in errors[:cut]]
    second.restore(json.loads(json.dumps(first.state())))
    after += [second.evaluated(error) for error in errors[cut:]]
    assert after == before
    assert second == straight
