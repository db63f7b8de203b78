"""Configurations and grids of them: checked before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.cli.compare.configuration import Configuration
from fxprune.cli.compare.grids import grid
from fxprune.errors import CalibrationError, CriterionError, FxpruneError, SelectionError
from fxprune.importance import Random, Taylor


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "tailor"}, CriterionError, "no criterion 'tailor'"),
        ({"ratio": 1.0}, SelectionError, r"ratio=1\.0 is outside"),
        ({"ratio": float("nan")}, SelectionError, "ratio=nan is outside"),
        ({"ranking": "best"}, SelectionError, "no ranking 'best': take local, global"),
        ({"normalise": "max"}, SelectionError, "no normalise 'max'"),
        ({"kinds": ("mlp", "heads")}, SelectionError, "no kind 'heads'"),
        ({"kinds": ()}, SelectionError, "no kind ''"),
        ({"aggregate": "median"}, CriterionError, "median"),
        ({"criterion": "random", "aggregate": "max"}, CriterionError, "random has no aggregate"),
        ({"compensate": "magic"}, SelectionError, "no compensate 'magic': take none, bias"),
        ({"samples": 0}, CalibrationError, "samples is 0: at least 1"),
        ({"length": 1}, CalibrationError, "length is 1: at least 2"),
        ({"compensation_samples": 0}, CalibrationError, "compensation-samples is 0"),
        ({"keep_first": -1}, SelectionError, "keep-first is -1"),
    ],
)
def test_refused(options: dict[str, Any], error: type[FxpruneError], message: str) -> None:
    with pytest.raises(error, match=message):
        Configuration(**options).check()


def test_criterion() -> None:
    assert Configuration().make_criterion() == Taylor()
    assert Configuration(criterion="random", seed=4).make_criterion() == Random(4)
    assert Configuration(aggregate="max").make_criterion() == Taylor(aggregate="max")


def test_scores_are_ranked_as_they_say_unless_told() -> None:
    plain = {"kinds", "ranking", "keep_first", "keep_last"}
    assert Configuration().selection().keys() == plain
    flap = Configuration(criterion="flap", compensate="bias").selection()
    assert flap.keys() == plain | {"gain_bias"}
    told = Configuration(criterion="flap", normalise="kind", cost_aware=True).selection()
    assert (told["normalise"], told["cost_aware"]) == ("kind", True)


def test_labels_say_what_is_not_default() -> None:
    assert Configuration().label == "taylor, local, 20 %"
    whole = Configuration(
        criterion="flap", ratio=0.125, ranking="global", normalise="kind", cost_aware=False,
        kinds=("mlp",), aggregate="max", samples=4, length=16, keep_first=1, compensate="bias",
        compensation_samples=9,
    )  # fmt: skip
    assert whole.label == (
        "flap, global, normalise kind, not cost-aware, mlp, aggregate max, 4 x 16 tokens, "
        "keep 1/0 layers, bias (9 x 16), 12.5 %"
    )
    assert Configuration(seed=1).label == Configuration(seed=2).label


def test_grid_is_every_combination() -> None:
    found = grid(
        criterion=("random", "flap"), ratio=(0.1, 0.2), ranking=("local", "global"),
        compensate=(None, "bias"), seeds=3,
    )  # fmt: skip
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 3
    assert [c.ratio for c in found] == sorted(c.ratio for c in found)
    assert [c.seed for c in found[:3]] == [0, 1, 2]


def test_grid_gives_one_row_to_a_criterion_without_aggregate() -> None:
    found = grid(criterion=("random", "taylor"), aggregate=("max", "mean"))
    assert [(c.criterion, c.aggregate) for c in found] == [
        ("random", None), ("taylor", "max"), ("taylor", "mean"),
    ]  # fmt: skip


def test_compensation_samples_are_of_compensation_only() -> None:
    found = grid(compensate=(None, "bias"), compensation_samples=50)
    assert [c.compensation_samples for c in found] == [None, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0: at least 1"),
        ({"criterion": ()}, "nothing to compare"),
        ({"ratio": (0.2, 2.0)}, "ratio=2.0 is outside"),
        ({"criterion": ("random",), "aggregate": ("max",)}, "none of the criteria has"),
    ],
)
def test_bad_grids(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        grid(**options)
