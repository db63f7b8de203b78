"""Every combination of some options."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from fxprune.config import PruneConfig
from fxprune.errors import CalibrationError, CriterionError, SelectionError
from fxprune.importance.named import by_name


def grid(
    axes: dict[str, Sequence[Any]],
    aggregates: Sequence[str] = (),
    seeds: int = 1,
    **options: Any,
) -> list[PruneConfig]:
    """Every combination; the first field changes slowest and the seed fastest.

    A criterion that has no aggregate gets one row, and ``compensation_samples`` are of rows with
    compensation only.

    Args:
        axes: fields of :class:`fxprune.PruneConfig` to the values that each takes.
        aggregates: how criteria reduce the members of a group; none for their defaults.
        seeds: number of draws, seeds 0, 1, ...
        options: the other fields.

    Raises:
        FxpruneError: for what a configuration refuses, or if nothing is asked for.
    """
    if seeds < 1:
        raise CalibrationError(f"seeds is {seeds}: at least 1 draw")
    if not all(axes.values()):
        raise SelectionError("nothing to compare: give at least one criterion and one ratio")
    if aggregates:
        criteria = [spec for name in axes["criterion"] for spec in _aggregated(name, aggregates)]
        if all(isinstance(each, str) for each in criteria):
            raise CriterionError("none of the criteria has an aggregate: leave it out")
        axes = axes | {"criterion": criteria}
    found: dict[PruneConfig, None] = {}
    for values in itertools.product(*axes.values()):
        each = PruneConfig(**options, **dict(zip(axes, values, strict=True)))
        if each.compensation is None:
            each = replace(each, compensation_samples=PruneConfig.compensation_samples)
        found.update((replace(each, seed=seed), None) for seed in range(seeds))
    return list(found)


def _aggregated(name: str, aggregates: Sequence[str]) -> list[Any]:
    if not any(each.name == "aggregate" for each in fields(by_name(name))):
        return [name]
    return [{"name": name, "aggregate": each} for each in aggregates]
