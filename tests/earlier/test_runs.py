"""Scores and plans are those that were recorded before, on any machine up to its arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.earlier.runs import COMMITTED, RUNS, recorded

EXACT = ("magnitude", "depth", "gpt2", "resnet", "t5")  # no data
EARLIER: dict[str, dict[str, Any]] = json.loads(COMMITTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_the_same_is_chosen(name: str) -> None:
    now, before = recorded(name), EARLIER[name]
    assert now["removed"] == before["removed"]
    assert now["parameters"] == pytest.approx(before["parameters"], rel=0.002)
    everything = [
        {(g, u) for g, units in run["kept"].items() for u in units} for run in (now, before)
    ]
    # A unit at the threshold may fall to either side.
    assert len(everything[0] ^ everything[1]) <= (0 if name in EXACT else 2)
    assert now["scores"].keys() == before["scores"].keys()
    for group, scores in now["scores"].items():
        assert scores == pytest.approx(before["scores"][group], rel=1e-3, abs=1e-9)


def _units(run: dict[str, Any]) -> set[tuple[str, int]]:
    return {(group, unit) for group, units in run["kept"].items() for unit in units}
