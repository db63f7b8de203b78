"""Steps to a goal: what each asks for, from the original model."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.errors import SelectionError
from fxprune.select.budget import Budget
from fxprune.select.schedule import Gradual, goals, schedule


def test_a_schedule_rises_evenly_to_the_exact_end() -> None:
    assert schedule(1, 0.3) == (0.3,)
    assert schedule(3, 0.3) == pytest.approx((0.1, 0.2, 0.3))
    assert schedule(7, 0.3)[-1] == 0.3
    assert schedule(2, 0.0) == (0.0, 0.0)


def test_goals_of_a_ratio() -> None:
    assert goals(1, 0.3) == ({"pruning_ratio": 0.3},)
    assert [goal["pruning_ratio"] for goal in goals(3, 0.3)] == pytest.approx([0.1, 0.2, 0.3])


def test_goals_of_fractions_fall_from_the_whole() -> None:
    budget = Budget(params=0.7, macs=0.4, kv_cache=1, shape=(2, 9))
    found = [goal["budget"] for goal in goals(3, budget=budget)]
    assert [each.params for each in found] == pytest.approx([0.9, 0.8, 0.7])
    assert [each.macs for each in found] == pytest.approx([0.8, 0.6, 0.4])
    assert [each.kv_cache for each in found] == pytest.approx([1, 1, 1])
    assert {(*each.shape, each.units) for each in found} == {(2, 9, None)}
    assert found[-1] is budget


def test_a_limit_that_is_not_set_stays_unset() -> None:
    assert [g["budget"].limits for g in goals(2, budget=Budget(macs=0.5))] == [
        {"macs": 0.75},
        {"macs": 0.5},
    ]


def test_goals_of_units_rise() -> None:
    found = [goal["budget"] for goal in goals(4, budget=Budget(units=0.4, rounding="down"))]
    assert [each.units for each in found] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert {each.rounding for each in found} == {"down"}


def test_an_absolute_limit_is_for_one_step() -> None:
    budget = Budget(params=0.5, kv_cache=48)
    assert goals(1, budget=budget) == ({"budget": budget},)
    with pytest.raises(SelectionError, match="kv_cache=48 is absolute; in 2 steps give a fraction"):
        goals(2, budget=budget)


@pytest.mark.parametrize("steps", [0, -1, 1.5, float("nan")])
@pytest.mark.parametrize("asked", [{"pruning_ratio": 0.2}, {"budget": Budget(macs=0.5)}])
def test_steps_are_counted(steps: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match="a schedule has at least one step"):
        goals(steps, **asked)


def test_one_goal_is_needed() -> None:
    for asked in ({}, {"pruning_ratio": 0.2, "budget": Budget(macs=0.5)}):
        with pytest.raises(SelectionError, match="either pruning_ratio or budget"):
            goals(1, **asked)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_the_ratio_has_a_range(ratio: float) -> None:
    with pytest.raises(SelectionError, match=r"outside \[0, 1\)"):
        goals(2, ratio)


# While a model is trained


def test_the_cubic_schedule_is_that_of_the_paper() -> None:
    """Zhu & Gupta, arXiv 1710.01878, equation 1, from nothing."""
    gradual = Gradual("50%", begin=100, end=500, every=100)
    assert gradual.steps == pytest.approx(
        {200: 0.5 * (1 - 0.75**3), 300: 0.5 * (1 - 0.5**3), 400: 0.5 * (1 - 0.25**3), 500: 0.5}
    )
    assert list(Gradual(0.3, end=7, every=3).steps) == [3, 6, 7]  # the end is never left out
    assert list(Gradual(0.3, end=2).steps) == [2]


def test_steps_that_are_given() -> None:
    gradual = Gradual(at={20: "30%", 10: 0.1})
    assert gradual.steps == {10: 0.1, 20: 0.3}
    assert list(gradual.steps) == [10, 20]
    assert gradual.pruning_ratio == 0.3
    assert hash(gradual) == hash(Gradual(at={10: 0.1, 20: 0.3}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either end="),
        ({"pruning_ratio": 0.2}, "give either end="),
        ({"end": 5}, "pruning_ratio=None"),
        ({"pruning_ratio": 20, "end": 5}, r"did you mean 0\.2"),
        ({"pruning_ratio": 0.2, "begin": 5, "end": 5}, "begin=5, end=5, every=100: steps of"),
        ({"pruning_ratio": 0.2, "end": 5, "every": 0}, "at least 1 between two"),
        ({"at": {1: 0.2, 2: 0.1}}, "with ratios that do not fall"),
        ({"at": {0: 0.2}}, "steps from 1 on"),
        ({"at": {1: 0.2}, "end": 4}, "give either end="),
        ({"at": {1: 0.2}, "pruning_ratio": 0.3}, "leave out pruning_ratio="),
    ],
)
def test_schedules_of_training_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Gradual(**options)
