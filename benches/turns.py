"""Times of several calls in turns, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Turns:
    """What :func:`in_turns` gives.

    Attributes:
        seconds: of each call in each round that counts.
        results: what each call returned last.
    """

    seconds: dict[str, list[float]]
    results: dict[str, Any]

    def median(self, name: str) -> float:
        """Seconds of a call in the median round."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as long a call takes as another: the median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def in_turns(
    calls: Mapping[str, Callable[..., object]],
    rounds: int,
    warm_up: int = 1,
    prepare: Callable[[str], tuple[Any, ...]] | None = None,
) -> Turns:
    """Run every call once in each round.

    Which goes first changes from round to round: the second finds warmer caches.

    Args:
        calls: what to time, by name.
        rounds: that count, at least 1.
        warm_up: rounds before those, which do not.
        prepare: makes the arguments of a call, by its name; not timed.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results.pop(name, None)  # else the old and the new result exist together
            given = prepare(name) if prepare else ()
            _finish()
            start = time.perf_counter()
            results[name] = calls[name](*given)
            _finish()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return Turns(seconds, {name: results[name] for name in names})


def _finish() -> None:
    """Wait for what was started on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
