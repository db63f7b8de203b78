"""Every combination of some options."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from fxprune.cli.compare.configuration import Configuration, takes_aggregate
from fxprune.errors import CalibrationError, CriterionError, SelectionError

# The first changes slowest.
ORDER = (
    "ratio", "kinds", "ranking", "normalise", "samples", "length", "criterion", "aggregate",
    "compensate",
)  # fmt: skip


def grid(*, seeds: int = 1, **options: Any) -> list[Configuration]:
    """Every combination, checked; the ratio changes slowest and the seed fastest.

    A criterion that has no aggregate gets one row, and ``compensation_samples`` are of rows with
    compensation only.

    Args:
        seeds: number of draws, seeds 0, 1, ...
        options: fields of :class:`Configuration`: sequences of values for those in :data:`ORDER`,
            one value for the others.

    Raises:
        FxpruneError: for what :meth:`Configuration.check` refuses, or if nothing is asked for.
    """
    if seeds < 1:
        raise CalibrationError(f"seeds is {seeds}: at least 1 draw")
    axes: dict[str, Sequence[Any]] = {each: options.pop(each) for each in ORDER if each in options}
    found: dict[Configuration, None] = {}
    for values in itertools.product(*axes.values()):
        each = Configuration(**options, **dict(zip(axes, values, strict=True)))
        if not takes_aggregate(each.criterion):
            each = dataclasses.replace(each, aggregate=None)
        if each.compensate is None:
            each = dataclasses.replace(each, compensation_samples=None)
        each.check()
        found.update((dataclasses.replace(each, seed=seed), None) for seed in range(seeds))
    if not found:
        raise SelectionError("nothing to compare: give at least one criterion and one ratio")
    if any(axes.get("aggregate", ())) and not any(c.aggregate for c in found):
        raise CriterionError("none of the criteria has an aggregate: leave it out")
    return list(found)
