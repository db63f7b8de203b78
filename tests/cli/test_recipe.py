"""Options are refused before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest

import fxprune
from fxprune.cli.recipe import Recipe
from fxprune.errors import CriterionError, DepthError, SelectionError


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
        ({"compensation_scope": ""}, "no compensation-scope '': take pruned, all"),
        ({"compensation_scope": "some"}, "no compensation-scope 'some': take pruned, all"),
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
    # No parameters to remove is not a limit on them.
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


# Depth

ALONE: dict[str, Any] = {"ratio": None, "criterion": None}


def test_blocks_alone() -> None:
    recipe = Recipe(**ALONE, remove=3)
    recipe.check()
    assert not recipe.width
    assert recipe.depth() == fxprune.Depth(remove=3)
    assert recipe.goal() == {}
    assert recipe.make_criterion() is None
    assert recipe.make_depth_criterion() == fxprune.PPL()
    assert recipe.samples == 10


def test_blocks_and_units() -> None:
    recipe = Recipe(ratio=0.3, remove_ratio=0.1, keep_first=1, keep_last=0, schedule="greedy")
    recipe.check()
    assert recipe.width
    assert recipe.depth() == fxprune.Depth(ratio=0.1, schedule="greedy", keep_first=1, keep_last=0)
    assert recipe.goal() == {"pruning_ratio": 0.3}
    assert recipe.make_criterion() == fxprune.OBS()
    assert recipe.make_depth_criterion() == fxprune.PPL()
    assert (recipe.selection()["keep_first"], recipe.selection()["keep_last"]) == (1, 0)
    assert recipe.samples == 128
    # Of one option for both, each has a default of its own.
    both = Recipe(remove=1)
    assert both.depth() == fxprune.Depth(remove=1, keep_first=4, keep_last=2)
    assert (both.selection()["keep_first"], both.selection()["keep_last"]) == (0, 0)


def test_units_alone() -> None:
    assert Recipe().depth() is None
    assert Recipe().make_depth_criterion() is None


def test_criteria_of_blocks() -> None:
    for name, expected in (
        ("ppl", fxprune.PPL()),
        ("block-influence", fxprune.BlockInfluence()),
        ("angular-distance", fxprune.AngularDistance()),
        ("magnitude", fxprune.Magnitude(p=1)),
        ("taylor", fxprune.Taylor()),
        ("random", fxprune.Random(7)),
    ):
        alone = Recipe(ratio=None, criterion=name, remove=1, seed=7)
        beside = Recipe(depth_criterion=name, remove=1, seed=7)
        for recipe in (alone, beside, Recipe(**ALONE, depth_criterion=name, remove=1, seed=7)):
            recipe.check()
            assert recipe.make_depth_criterion() == expected
    fixed = Recipe(**ALONE, schedule="alternate")
    fixed.check()
    assert fixed.depth() == fxprune.Depth(schedule="alternate")
    assert fixed.make_depth_criterion() is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({**ALONE, "remove": 0}, DepthError, "remove=0: a whole number, at least 1"),
        ({**ALONE, "remove": 1, "remove_ratio": 0.1}, DepthError, "either remove"),
        ({**ALONE, "remove_ratio": 1.0}, SelectionError, r"ratio=1.0 is outside \[0, 1\)"),
        ({**ALONE, "remove": 1, "unit": "layer"}, DepthError, "no unit 'layer'"),
        ({**ALONE, "remove": 1, "schedule": "best"}, DepthError, "no schedule 'best'"),
        ({**ALONE, "remove": 1, "schedule": "alternate"}, DepthError, "leave out remove"),
        ({**ALONE, "remove": 1, "keep_last": -1}, DepthError, "keep_first and keep_last"),
        ({"schedule": "greedy"}, DepthError, "say how many blocks go: --remove-blocks or"),
        ({"depth_criterion": "ppl"}, DepthError, "say how many blocks go"),
        ({"unit": "attention"}, DepthError, "say how many blocks go"),
        (
            {"criterion": "ppl"},
            CriterionError,
            "ppl scores blocks, and units of groups are to go: say --depth-criterion ppl",
        ),
        ({"criterion": "ppl", "remove": 1}, CriterionError, "ppl scores blocks, and units"),
        (
            {**ALONE, "criterion": "obs", "remove": 1},
            CriterionError,
            "'obs' scores no blocks and branches: take ppl, block-influence",
        ),
        (
            {**ALONE, "criterion": "ppl", "depth_criterion": "magnitude", "remove": 1},
            CriterionError,
            "only blocks go, by one criterion",
        ),
        (
            {**ALONE, "schedule": "first", "remove": 1, "criterion": "magnitude"},
            CriterionError,
            "first looks at no scores: leave out magnitude",
        ),
        ({"schedule": "alternate", "depth_criterion": "ppl"}, CriterionError, "looks at no scores"),
        ({**ALONE, "remove": 1, "scores": "s"}, SelectionError, "scores is for units of groups"),
        ({**ALONE, "remove": 1, "steps": 2}, SelectionError, "steps is for units of groups"),
        ({**ALONE, "remove": 1, "multiple_of": 8}, SelectionError, "multiple-of is for units"),
        ({**ALONE, "remove": 1, "ranking": "local"}, SelectionError, "ranking is for units"),
        ({**ALONE, "remove": 1, "kinds": ("mlp",)}, SelectionError, "kinds is for units"),
        ({**ALONE, "remove": 1, "compensate": "bias"}, SelectionError, "compensate is for units"),
        (
            {**ALONE, "remove": 1, "layer_ratios": {"*": 0.1}},
            SelectionError,
            "layer-ratios is for units of groups, and only blocks are to go",
        ),
    ],
)
def test_refused_in_depth(changes: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe(**changes).check()


def test_compensation_may_be_declined_for_blocks() -> None:
    Recipe(**ALONE, remove=1, compensate="none").check()
