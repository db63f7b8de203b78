"""Calls in turns."""

from __future__ import annotations

from typing import Any

import pytest

from benches import turns
from benches.turns import Turns, in_turns


def test_who_goes_first_changes_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def call(name: str) -> str:
        order.append(name)
        return name.upper()

    found = in_turns({"a": call, "b": call}, rounds=2, warm_up=1, prepare=lambda name: (name,))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(spent) for name, spent in found.seconds.items()} == {"a": 2, "b": 2}
    assert found.results == {"a": "A", "b": "B"}


def test_preparation_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def pass_by(seconds: float) -> Any:
        clock[0] += seconds
        return ()

    found = in_turns({"a": lambda: pass_by(2)}, 1, prepare=lambda name: pass_by(100))
    assert found.seconds == {"a": [2.0]}


def test_ratios_are_of_the_same_round() -> None:
    found = Turns({"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 100.0]}, {})
    assert found.median("a") == 10
    assert found.ratio("b", "a") == 2
