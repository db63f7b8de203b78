"""Every combination of some options."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from fxprune.cli.compare.configuration import ABLATION, Configuration, scores_sites, takes_aggregate
from fxprune.errors import CalibrationError, CriterionError, SelectionError


def grid(
    *,
    criteria: Sequence[str] = ("taylor",),
    ratios: Sequence[float] = (0.2,),
    rankings: Sequence[str] = ("local",),
    normalise: Sequence[str | None] = (None,),
    kinds: Sequence[tuple[str, ...]] = (("mlp", "attention"),),
    aggregates: Sequence[str | None] = (None,),
    compensate: Sequence[str | None] = (None,),
    samples: Sequence[int] = (10,),
    lengths: Sequence[int] = (128,),
    compensation_samples: int | None = None,
    cost_aware: bool | None = None,
    seeds: int = 1,
    ablation: bool = False,
    keep_first: int = 0,
    keep_last: int = 0,
) -> list[Configuration]:
    """Every combination, checked; the ratio changes slowest and the seed fastest.

    Args:
        criteria: see :class:`Configuration` for this and the following.
        ratios: fractions of parameters to remove.
        rankings: ``local``, ``global``.
        normalise: of scores, None for the default.
        kinds: sets of kinds.
        aggregates: for the criteria that have one; those that have none get one row.
        compensate: methods, None for none.
        samples: numbers of calibration crops.
        lengths: tokens in a crop.
        compensation_samples: crops for compensation.
        cost_aware: rank by score per parameter, None for the default.
        seeds: number of draws, seeds 0, 1, ...
        ablation: add the no-dependency twin of every configuration without compensation whose
            criterion can score structures on their own.
        keep_first: protected layers at the start.
        keep_last: protected layers at the end.

    Raises:
        FxpruneError: for what :meth:`Configuration.check` refuses, or if nothing is asked for.
    """
    if seeds < 1:
        raise CalibrationError(f"seeds is {seeds}: at least 1 draw")
    found: dict[Configuration, None] = {}
    axes = (ratios, kinds, rankings, normalise, samples, lengths, criteria, aggregates, compensate)
    for ratio, kind, ranking, norm, count, length, name, aggregate, method in itertools.product(
        *axes
    ):
        configuration = Configuration(
            criterion=name,
            ratio=ratio,
            ranking=ranking,
            normalise=norm,
            cost_aware=cost_aware,
            kinds=kind,
            aggregate=aggregate if takes_aggregate(name) else None,
            compensate=method,
            samples=count,
            length=length,
            compensation_samples=compensation_samples if method else None,
            keep_first=keep_first,
            keep_last=keep_last,
        )
        configuration.check()
        twins = [configuration]
        if ablation and method is None and scores_sites(name):
            twins.append(dataclasses.replace(configuration, ablation=ABLATION))
        for twin in twins:
            found.update((dataclasses.replace(twin, seed=seed), None) for seed in range(seeds))
    if not found:
        raise SelectionError("nothing to compare: give at least one criterion and one ratio")
    if any(aggregates) and not any(c.aggregate for c in found):
        raise CriterionError("none of the criteria has an aggregate: leave it out")
    if ablation and not any(c.ablation for c in found):
        raise SelectionError(
            "no-dependency needs a criterion that scores structures on their own, such as taylor "
            "or magnitude, without compensation"
        )
    return list(found)
