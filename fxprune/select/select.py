"""Selection: scores and a budget become a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fxprune.axes.dims import find
from fxprune.branches import bypass
from fxprune.errors import SelectionError
from fxprune.groups.dependency import discover
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.plan import Plan
from fxprune.select.biases import gainable, gained
from fxprune.select.blocks import choose_units
from fxprune.select.budget import Budget, fraction
from fxprune.select.candidates import Candidate, at_step, kept_counts
from fxprune.select.density import NORMALISE, Normalise, Values, densities, unit_costs
from fxprune.select.depth import Depth
from fxprune.select.latency import LatencyTable
from fxprune.select.limits import Limit, binding, check_possible, limits_of
from fxprune.select.options import at_most
from fxprune.select.pool import Pool, pool_of
from fxprune.select.rank import (
    Steps,
    alone,
    equal_share,
    global_ranking,
    local_ranking,
    refusals,
)
from fxprune.select.uniform import bundles, evened, level, uniform_ranking

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.select.target import Target

Ranking = Literal["local", "global", "uniform"]
RANKINGS: dict[str, Callable[[list[Candidate], list[Limit], list[Values]], Steps]] = {
    "local": local_ranking,
    "global": global_ranking,
    "uniform": uniform_ranking,
}


def select(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    pruning_ratio: float | str | None = None,
    kinds: Collection[str] = DEFAULT_KINDS,
    *,
    budget: Budget | None = None,
    ranking: Ranking | None = None,
    normalise: Normalise | None = None,
    cost_aware: bool | None = None,
    keep_first: int = 0,
    keep_last: int = 0,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    layers: str | int | Collection[int] | None = None,
    groups: Collection[str] | None = None,
    min_kept: int | Mapping[str, int] = 1,
    max_ratio: float | str | Mapping[str, float | str] | None = None,
    overrides: Mapping[str, float] | None = None,
    multiple_of: int | Mapping[str, int] = 1,
    gain_bias: bool = False,
    start: Plan | None = None,
    depth: Depth | None = None,
    latency: LatencyTable | None = None,
    target: Target | None = None,
) -> Plan:
    """Choose the units that stay.

    A budget is met to within one unit from below: no limit is exceeded, and putting back any one
    removed unit would exceed one. (With ``multiple_of``: any one block of units; for ``uniform``:
    one of every group of a kind and size.) Units that ``overrides`` or ``start`` took are not put
    back.

    Args:
        graph: the groups of the model.
        scores: group name to scores of shape (size,); the lowest go first, equal ones by position.
        pruning_ratio: fraction of the parameters of the whole model to remove, in [0, 1), or a
            percentage such as ``"20%"``.
        kinds: kinds of groups to prune: ``mlp``, ``attention``, ``query``, ``head_dim``,
            ``channel``, ``expert``, ``state``, ``conv``, ``latent``, ``other``.
        budget: instead of ``pruning_ratio``: what may stay, or the share of units that goes.
        ranking: ``local`` removes the same fraction of units from every group; ``global`` ranks the
            units of all groups together by their density, score per cost; ``uniform`` lets all
            groups of a kind and size keep equally many, each its best, and ranks such steps
            likewise (a group with an override is not counted in). None is ``global``, but
            ``local`` for a budget of units, and ``uniform`` for a target that wants equal sizes.
        normalise: what makes densities of different groups comparable: ``kind``, ``group``,
            ``standardise`` or ``none``, see :func:`fxprune.select.density.densities`. None takes
            what belongs to the scores (``scores.ranking``, with the weights of kinds that are
            there), else ``kind``.
        cost_aware: rank by score per cost; else by score alone. None likewise, else true. The
            cost of a unit is what it frees; under several limits, the sum of ``cost / excess``.
        keep_first: leave this many layers at the start of every stack alone.
        keep_last: leave this many layers at the end of every stack alone.
        ignore: names of modules, or :mod:`fnmatch` patterns of them, such as ``lm_head`` or
            ``model.layers.0``, whose tensors are left as they are: a group with a site inside one
            keeps all its units.
        only: likewise names of modules, such as ``model.language_model``: a group with a site
            outside of all these keeps all its units.
        layers: numbers of the layers, of every stack, whose groups may lose units, such as
            ``"4-20,25"`` or ``range(4, 21)``; a group that lies in no one layer keeps all.
        groups: prune these groups, by name, whatever their kind.
        min_kept: units that stay in every group at least: one number; or a kind of groups, such
            as ``attention`` (of which units are heads), or an :mod:`fnmatch` pattern of their
            names, to the number; of several keys that match a group, the last one counts.
        max_ratio: the share of its units that any group loses at most, in [0, 1], likewise one
            number or by kind or pattern. None for no limit.
        overrides: kind or pattern, likewise, to the fraction of the units of each such group that
            goes, rounded up as in LLM-Pruner; 0 protects. It is fixed before the budget is shared
            among the other groups.
        multiple_of: in a group that loses units, the number that stays is a multiple of this; by
            kind if a mapping. A group no larger than that keeps all.
        gain_bias: every Linear without a bias whose input loses units gains one, so that
            compensation has room. It counts as parameters.
        latency: what :func:`fxprune.measure_latency` measured, for a budget of latency.
        depth: instead of all these: remove whole blocks or branches, ``scores`` being those of
            :func:`fxprune.score_units`. To remove units of groups from what is left, give
            ``discover(bypass(traced, plan.removed))`` as graph.
        start: an earlier plan to go on from: what it removed stays removed, whatever its scores.
            Budgets count from the original model all the same.
        target: the limits of an engine, see :meth:`fxprune.serve.engine.Engine.target`: kinds that
            it takes whole lose nothing, and the numbers of units that stay are such as it takes.

    Raises:
        SelectionError: for a ratio outside [0, 1), a budget beyond what the chosen groups can give
            (says the least that is possible, and what holds groups back), no group to prune (says
            why), a pattern that matches nothing, an override or share above ``max_ratio``, scores
            that do not fit, or another goal or option beside ``depth``; or the target leaves
            nothing to prune, or cannot say what options ask for.
        ServeError: the target cannot leave out what ``depth`` is about.
        DepthError: see :func:`fxprune.select.depth.choose_units`.
        GroupError: for a name in ``groups`` that no group has or whose group is frozen.
        PlanError: if ``start`` is for another model.
    """
    if depth is not None:
        others = (budget, start, groups, overrides, keep_first, keep_last, ignore, gain_bias, only)
        if pruning_ratio is not None or any(others) or (max_ratio, layers) != (None, None):
            raise SelectionError(
                "depth= has scores and options of its own: select units of groups in a second step"
            )
        return _without_blocks(graph, scores, depth, target)
    if pruning_ratio is not None:
        pruning_ratio = fraction("pruning_ratio", pruning_ratio)
    ranking = _ranking(ranking, budget, target, gain_bias)
    own = getattr(scores, "ranking", {})
    weights = own.get("weights", {}) if normalise is None else {}
    normalise = own.get("normalise", "kind") if normalise is None else normalise
    cost_aware = own.get("cost_aware", True) if cost_aware is None else cost_aware
    _check(pruning_ratio, budget, ranking, normalise, max_ratio)
    if start is not None:
        start.check(graph)
    pool = pool_of(
        graph,
        scores,
        kinds,
        groups=groups,
        keep_first=keep_first,
        keep_last=keep_last,
        ignore=ignore,
        only=only,
        layers=layers,
        overrides=overrides,
        multiple_of=multiple_of,
        min_kept=min_kept,
        max_ratio=max_ratio,
        start=start,
        target=target,
    )
    if ranking == "uniform":
        pool = replace(pool, candidates=evened(pool.candidates, _apart(pool, target)))
    biases = gainable(graph, (graph[c.name] for c in pool.candidates)) if gain_bias else {}
    if start is not None:
        lost = frozenset(find(graph[name].dim) for name in start.kept)
        biases.update(dict.fromkeys(start.biases, lost))
    result: _Result
    if budget is not None and budget.removed is not None:
        steps = equal_share(pool.candidates, budget.removed, budget.rounding)
        steps = level(pool.candidates, steps) if ranking == "uniform" else steps
        result = _Result(steps, ["units"] * len(steps), "units" if any(steps) else None)
    else:
        asked = pruning_ratio if budget is None else budget
        assert asked is not None
        limits = limits_of(graph, asked, [c.dim for c in pool.candidates], biases, latency)
        least = kept_counts(pool.candidates, [c.last for c in pool.candidates])
        check_possible(limits, least, pool.bounds())
        result = _meet(pool.candidates, limits, ranking, normalise, cost_aware, weights)
    pairs = list(zip(pool.candidates, result.steps, strict=True))
    plan = Plan.of(
        graph,
        {group.name: group.kept(step) for group, step in pairs if group.lost(step)},
        pruning_ratio=pruning_ratio,
        criterion=getattr(scores, "criterion", None),
        biases=gained(biases, kept_counts(pool.candidates, result.steps)),
        limits={**pool.protected, **pool.reasons(result.steps, result.causes)},
        bound=result.bound,
    )
    wrong = [] if target is None else target.reasons(graph, plan)
    if wrong:
        raise SelectionError("; ".join(wrong))
    return plan


def _without_blocks(
    graph: DependencyGraph, scores: Mapping[str, Any], depth: Depth, target: Target | None
) -> Plan:
    if target is not None:
        target.check_depth(depth.unit)
    shorter = bypass(graph.traced, choose_units(graph.traced, scores, depth))
    return Plan.of(discover(shorter), {}, criterion=getattr(scores, "criterion", None))


@dataclass(frozen=True)
class _Result:
    """How far each candidate goes, why it keeps all if it does, and which limit bound the whole."""

    steps: Steps
    causes: list[str]
    bound: str | None


def _meet(
    groups: list[Candidate],
    limits: list[Limit],
    ranking: str,
    normalise: Normalise,
    cost_aware: bool,
    weights: Mapping[str, float],
) -> _Result:
    """Meet the limits, which can be met."""
    first = [0] * len(groups)
    if all(limit.met(kept_counts(groups, first)) for limit in limits):
        return _Result(first, [""] * len(groups), None)
    costs = unit_costs(groups, limits)
    together = bundles(groups) if ranking == "uniform" else alone(groups)
    for bundle in together:  # a unit of each costs what they cost together
        mean = sum(costs[i] for i in bundle) / len(bundle)
        for i in bundle:
            costs[i] = mean
    # Where a unit frees nothing of what is short, it stays.
    useful = [g if cost > 0 else at_step(g, 0) for g, cost in zip(groups, costs, strict=True)]
    density = densities(useful, costs, normalise, cost_aware, weights)
    steps = RANKINGS[ranking](useful, limits, density)
    cause = "rounding" if ranking == "local" else "scores"
    causes = [cause if cost > 0 else "frees nothing that is short" for cost in costs]
    return _Result(steps, causes, binding(limits, refusals(useful, limits, steps, together)))


def _ranking(
    ranking: Ranking | None, budget: Budget | None, target: Target | None, gain_bias: bool
) -> Ranking:
    """The ranking, or the default.

    Raises:
        SelectionError: the target wants another, or has no place for new biases.
    """
    if target is not None and gain_bias and not target.biases:
        raise SelectionError(f"{target.name} has no place for new biases: compensate without")
    if target is not None and target.even:
        if ranking not in (None, "uniform"):
            raise SelectionError(
                f"{target.name} has one number of units for all layers, and ranking={ranking!r} "
                "gives each its own: take ranking='uniform' or leave it out"
            )
        return "uniform"
    if ranking is None:
        return "global" if budget is None or budget.removed is None else "local"
    return ranking


def _apart(pool: Pool, target: Target | None) -> Collection[str]:
    """Who goes as far as was said, whatever the others do; nobody, where all must be alike."""
    return () if target is not None and target.even else pool.settled


def _check(
    pruning_ratio: float | None,
    budget: Budget | None,
    ranking: str,
    normalise: str,
    max_ratio: float | str | Mapping[str, float | str] | None,
) -> None:
    if (pruning_ratio is None) == (budget is None):
        raise SelectionError("give either pruning_ratio or budget")
    if ranking not in RANKINGS:
        raise SelectionError(f"unknown ranking {ranking!r}: choose from {', '.join(RANKINGS)}")
    if normalise not in NORMALISE:
        raise SelectionError(f"unknown normalise {normalise!r}: choose from {', '.join(NORMALISE)}")
    if budget is not None and budget.removed is not None and ranking == "global":
        raise SelectionError("units= removes a share of every group: ranking='local' only")
    most = at_most(max_ratio)
    if budget is not None and isinstance(most, float) and (budget.removed or 0.0) > most:
        raise SelectionError(f"units={budget.removed:g} of every group go, and max_ratio={most:g}")
