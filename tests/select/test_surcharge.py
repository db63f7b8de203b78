"""What the limits of an engine cost: the scores that two plans lose, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxprune.importance import Scores
from fxprune.plan import Plan
from fxprune.select.select import select
from fxprune.select.surcharge import Surcharge, surcharge
from fxprune.select.target import Target
from tests.toys import ToyLM, toy_graph

GRAPH: Any = toy_graph(ToyLM(layers=2))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_by_hand(scale: float) -> None:
    """The first layer has the five lowest scores; evenly, three of each have to go."""
    first = [0.0, 1, 2, 3, 4, 20, 20, 20, 20, 20]
    scores = Scores(
        {
            "layers.0.mlp:units": scale * torch.tensor(first),
            "layers.1.mlp:units": scale * torch.arange(5.0, 15),
        }
    )
    before = Plan.of(GRAPH, {}).parameters_before
    given: dict[str, Any] = {
        "pruning_ratio": (5 * 24 - 1) / before,
        "kinds": ("mlp",),
        "target": Target("box", even=True),
    }
    plan = select(GRAPH, scores, **given)
    assert [len(kept) for kept in plan.kept.values()] == [7, 7]
    found = surcharge(GRAPH, scores, plan, given)
    assert found.free.kept == {"layers.0.mlp:units": (5, 6, 7, 8, 9)}
    mean = (110 + 95) / 20
    assert found.freely == pytest.approx((0 + 1 + 2 + 3 + 4) / mean)
    assert found.lost == pytest.approx((0 + 1 + 2 + 5 + 6 + 7) / mean)
    assert found.more == pytest.approx(21 / 10 - 1)
    assert str(found).startswith("for box: 110.0% more of the score is lost than freely")
    common = surcharge(GRAPH, scores, plan, {**given, "normalise": "none"})
    assert common.lost == pytest.approx(21 * scale)
    assert common.to_dict()["more"] == pytest.approx(1.1)


def test_words() -> None:
    free = Plan.of(GRAPH, {})
    assert str(Surcharge("box", 2.0, 0.0, free)) == (
        "for box: 2 of the score is lost, freely nothing"
    )
    assert "25.0% less" in str(Surcharge("box", 1.5, 2.0, free))
