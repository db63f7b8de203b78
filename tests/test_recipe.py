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
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Recipe(**changes).check()


def test_unknown_criterion() -> None:
    with pytest.raises(CriterionError, match="no criterion 'tailor'; did you mean taylor"):
        Recipe(criterion="tailor").check()


def test_criteria() -> None:
    assert Recipe().make_criterion() == fxprune.Taylor()
    assert Recipe(criterion="magnitude").make_criterion() == fxprune.Magnitude()
    assert Recipe(criterion="random", seed=5).make_criterion() == fxprune.Random(5)
