"""Grids of configurations, and what a table calls them."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.cli.compare.grids import grid
from fxprune.cli.compare.labels import label
from fxprune.config import PruneConfig
from fxprune.errors import FxpruneError
from fxprune.select.budget import Budget

ONE: dict[str, Any] = {"criterion": ("taylor",), "pruning_ratio": (0.2,)}


def test_labels_say_what_is_not_default() -> None:
    assert label(PruneConfig()) == "obs, global, 20 %"
    number = PruneConfig(budget=Budget(params=105_747_264, kv_cache=0.5))
    assert label(number) == "obs, global, params 105,747,264, kv_cache 0.5"
    assert label(PruneConfig(budget=Budget(units=0.1))) == "obs, global, units removed 0.1"
    whole = PruneConfig(
        criterion={"name": "flap", "aggregate": "max"}, pruning_ratio=0.125, ranking="local",
        normalise="kind", cost_aware=False, kinds=("mlp",), calibration_samples=4,
        calibration_lengths=(16,), keep_first=1, compensation="bias", compensation_samples=9,
    )  # fmt: skip
    assert label(whole) == (
        "flap, local, aggregate max, normalise kind, not cost-aware, mlp, 4 samples, 16 tokens, "
        "keep 1/0 layers, bias, compensated on 9 samples, 12.5 %"
    )
    assert label(PruneConfig(target="mlx")) == "obs, for mlx, 20 %"
    assert label(PruneConfig(target="mlx", ranking="local")) == "obs, local, for mlx, 20 %"
    assert label(PruneConfig(compensation=None)) == "obs, global, not compensated, 20 %"
    assert label(PruneConfig(seed=1)) == label(PruneConfig(seed=2))


def test_grid_is_every_combination() -> None:
    axes: dict[str, Any] = {
        "pruning_ratio": (0.1, 0.2), "ranking": ("local", "global"),
        "compensation": (None, "bias"), "criterion": ("random", "flap"),
    }  # fmt: skip
    found = grid(axes, seeds=3)
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * 3
    ratios = [c.goal()["pruning_ratio"] for c in found]
    assert ratios == sorted(ratios)
    assert [c.seed for c in found[:3]] == [0, 1, 2]


def test_grid_gives_one_row_to_a_criterion_without_aggregate() -> None:
    found = grid({**ONE, "criterion": ("random", "taylor")}, aggregates=("max", "mean"))
    assert [label(c) for c in found] == [
        "random, global, 20 %",
        "taylor, global, aggregate max, 20 %",
        "taylor, global, aggregate mean, 20 %",
    ]


def test_compensation_samples_are_of_compensation_only() -> None:
    found = grid({**ONE, "compensation": (None, "bias")}, compensation_samples=50)
    assert [c.compensation_samples for c in found] == [None, 50]


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        ({}, {"seeds": 0}, "seeds is 0: at least 1"),
        ({"criterion": ()}, {}, "nothing to compare"),
        ({"pruning_ratio": (0.2, 2.0)}, {}, "ratio=2.0 is outside"),
        ({"criterion": ("random",)}, {"aggregates": ("max",)}, "none of the criteria has"),
    ],
)
def test_bad_grids(axes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        grid({**ONE, **axes}, **options)
