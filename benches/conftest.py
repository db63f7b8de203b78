"""``bench``: pytest-benchmark's fixture with rows, limits and turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from benches import machine
from benches.record import Record
from benches.turns import Turns, in_turns


class Bench(Record):
    """A record that goes into the JSON of ``pytest --benchmark-json=FILE``."""

    def __init__(self, benchmark: Any, title: str) -> None:
        super().__init__(benchmark.extra_info, title)
        self._benchmark, self._used = benchmark, False

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call once; pytest-benchmark times the first of these."""
        if self._used:
            return call(*args, **kwargs)
        self._used = True
        return self._benchmark.pedantic(call, args=args, kwargs=kwargs, rounds=1, iterations=1)

    def turns(self, calls: Mapping[str, Callable[..., object]], rounds: int, **how: Any) -> Turns:
        """See :func:`benches.turns.in_turns`."""
        found: Turns = self.run(in_turns, calls, rounds, **how)
        return found


@pytest.fixture
def bench(benchmark: Any, request: pytest.FixtureRequest) -> Bench:
    return Bench(benchmark, (request.module.__doc__ or "").strip().splitlines()[0].rstrip("."))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.update(machine.facts())
