"""Options are refused before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest

import fxprune
from fxprune.errors import CriterionError, SelectionError
from fxprune.recipe import Recipe


def test_defaults_are_fine() -> None:
    Recipe().check()
    Recipe(ratio=0.0).check()
    Recipe(ratio=0.999, kinds=("channel",), ranking="global", criterion="random").check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, r"outside \[0, 1\)"),
        ({"ratio": -0.1}, r"outside \[0, 1\)"),
        ({"ratio": math.nan}, r"outside \[0, 1\)"),
        ({"ranking": "best"}, "no ranking 'best': take local, global"),
        ({"kinds": ("mlp", "heads")}, "no kind 'heads': take some of mlp, attention"),
        ({"kinds": ()}, "no kinds: take some of"),
        ({"keep_first": -1}, "keep-first is -1"),
        ({"calibration_samples": 0}, "calibration-samples is 0: at least 1"),
        ({"evaluation_length": 1}, "evaluation-length is 1: at least 2"),
        ({"ratio": None}, "either pruning_ratio or budget"),
        ({"ratio": 1.5, "macs": 0.5}, r"ratio=1.5 is outside \[0, 1\)"),
        ({"macs": 0}, "macs=0: what stays is a fraction"),
        ({"kv_cache": -1.0}, "kv_cache=-1.0: what stays"),
        ({"ratio": None, "units": 1.0}, r"units=1.0 is outside \[0, 1\)"),
        ({"units": 0.2}, "units= cannot be combined with params="),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2, "macs": 1e9}, "macs=1e\\+09 is absolute"),
        ({"steps": 2, "criterion": None, "scores": "s"}, "2 steps need new scores"),
        ({"compensate": "best"}, "no compensate 'best': take auto, none, bias, least-squares"),
        ({"multiple_of": 0}, "multiple-of is 0: at least 1"),
        ({"layer_ratios": {"*.3.*": 1.0}}, r"layer-ratio \*\.3\.\*=1.0 is outside"),
        ({"compensation_samples": 0}, "compensation-samples is 0: at least 1"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Recipe(**changes).check()


def test_unknown_criterion() -> None:
    with pytest.raises(CriterionError, match="no criterion 'tailor'; did you mean taylor"):
        Recipe(criterion="tailor").check()


def test_criteria() -> None:
    assert Recipe().make_criterion() == fxprune.OBS()
    assert Recipe(criterion="taylor").make_criterion() == fxprune.Taylor()
    assert (Recipe().samples, Recipe(criterion="taylor").samples) == (128, 10)
    assert Recipe(criterion="magnitude").make_criterion() == fxprune.Magnitude()
    assert Recipe(criterion="random", seed=5).make_criterion() == fxprune.Random(5)
    assert Recipe(criterion=None, scores="s").make_criterion() is None
    for wrong in (Recipe(criterion=None), Recipe(scores="s")):
        with pytest.raises(CriterionError, match="either a criterion or saved scores"):
            wrong.check()


def test_what_is_asked_for() -> None:
    assert Recipe(ratio=0.3).goal() == {"pruning_ratio": 0.3}
    assert Recipe(ratio=None, macs=0.6).goal() == {"budget": fxprune.Budget(macs=0.6)}
    both = Recipe(ratio=0.25, kv_cache=100).goal()
    assert both == {"budget": fxprune.Budget(params=0.75, kv_cache=100)}
    # No parameters to remove is no limit on them.
    assert Recipe(ratio=0.0, macs=0.6).goal() == {"budget": fxprune.Budget(macs=0.6)}
    units = Recipe(ratio=None, units=0.3)
    assert units.goal() == {"budget": fxprune.Budget(units=0.3)}
    assert units.selection()["ranking"] == "local"


def test_options_of_the_selection() -> None:
    recipe = Recipe(kinds=("mlp",), multiple_of=8, keep_first=2, layer_ratios={"*.3.*": 0.5})
    assert recipe.selection() == {
        "kinds": ("mlp",),
        "ranking": "global",
        "keep_first": 2,
        "keep_last": 0,
        "multiple_of": 8,
        "overrides": {"*.3.*": 0.5},
    }
