"""Iterative pruning: scores are estimated anew between the steps to the final size."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.branches import bypass, find_branches
from fxprune.errors import DepthError, SelectionError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.importance.criterion import Criterion
from fxprune.importance.estimate import estimate
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.proof.zeroed import zeroed
from fxprune.select.budget import fraction
from fxprune.select.candidates import choose_groups
from fxprune.select.options import check_search
from fxprune.select.pool import Pool, pool_of
from fxprune.select.select import select
from fxprune.select.target import Target
from fxprune.stream.knapsack import cheapest
from fxprune.stream.ladder import Ladder
from fxprune.stream.local import local_search
from fxprune.stream.options import measured


def iterate(
    model: nn.Module,
    graph: DependencyGraph,
    criterion: Criterion,
    calibration: Any = None,
    *,
    asked: Sequence[Mapping[str, Any]],
    kinds: Collection[str] = DEFAULT_KINDS,
    progress: bool = False,
    selection: Mapping[str, Any] | None = None,
    search: str = "predicted",
    branches: Collection[str] = (),
    seed: int = 0,
    scores: Scores | None = None,
    **estimation: Any,
) -> tuple[Scores, Plan]:
    """Prune in steps (LLM-Pruner's and Torch-Pruning's ``iterative_steps``).

    Before each step but the first the units removed so far are zeroed and the scores estimated
    again; what an earlier step removed stays removed. Scores that compare a unit with the mean of
    its layer (FLAP) then count the zeroed ones in that mean.

    Args:
        model: the model with its weights, the one that was traced; left as it was found.
        graph: its groups.
        criterion: what to score with.
        calibration: data for the criterion, read once per step.
        asked: what each step asks of :func:`fxprune.select`: its ``pruning_ratio`` or ``budget``,
            of the original model.
        kinds: kinds of groups to score and to prune.
        progress: show the stages.
        selection: further options of :func:`fxprune.select`.
        search: ``measured`` brings the scores to costs measured in the network before a plan is
            made of them, see :func:`fxprune.stream.options.measured`; ``local`` looks for better
            plans around theirs, see :func:`fxprune.stream.local.local_search`.
        branches: with measured costs, kinds of branches and blocks that may go as a whole, see
            :func:`fxprune.stream.knapsack.cheapest`.
        seed: of the moves of a local search.
        scores: those of the original model by this criterion, if they are known.
        estimation: further options of :func:`fxprune.estimate`.

    Returns:
        The first scores, which are those of the original model, and the last plan.

    Raises:
        FxpruneError: what the selection refuses whatever the scores, such as a budget that cannot
            be met, before anything is estimated; then what either stage refuses.
    """
    check_search(search, branches, len(asked))
    selection = dict(selection or {})
    alike = {group.name: torch.zeros(group.size) for group in graph.groups}
    select(graph, alike, kinds=kinds, **asked[-1], **selection)
    pool = pool_of(graph, alike, kinds, **selection)
    units = _units(graph, branches, asked[-1], pool, selection.get("target"))
    scored, _ = choose_groups(graph, kinds, names=selection.get("groups"))
    plan: Plan | None = None
    first: Scores | None = None
    for number, goal in enumerate(asked, start=1):
        with contextlib.ExitStack() as stack:
            if plan is not None:
                stack.enter_context(zeroed(graph, plan))
                stack.enter_context(step(f"step {number} of {len(asked)}", progress))
            if scores is None or number > 1:
                scores = estimate(
                    model,
                    graph,
                    criterion,
                    calibration,
                    groups=scored,
                    progress=progress,
                    **estimation,
                )
        size = estimation.get("batch_size") or 8
        if search == "measured":
            ladder, scores = measured(
                graph, scores, calibration, units=units, batch_size=size, progress=progress
            )
            if units:
                graph, scores = _shorter(graph, ladder.within(pool.most()), scores, goal)
        if search == "local":
            choose = functools.partial(select, graph, kinds=kinds, **goal, **selection)
            scores = local_search(
                graph, scores, calibration, choose, batch_size=size, seed=seed, progress=progress
            )
        first = scores if first is None else first
        plan = select(graph, scores, kinds=kinds, **goal, **selection, start=plan)
    assert plan is not None
    assert first is not None
    return first, plan


def _units(
    graph: DependencyGraph,
    branches: Collection[str],
    goal: Mapping[str, Any],
    pool: Pool,
    target: Target | None,
) -> list[str]:
    """Names of the branches and blocks that may go as a whole: no limit holds a group in one.

    Raises:
        SelectionError: an option does not go with them.
        DepthError: there is no such kind, or nothing of it.
    """
    if not branches:
        return []
    budget = goal.get("budget")
    if budget is not None and (budget.removed is not None or budget.latency is not None):
        raise SelectionError("branches= compete for parameters, MACs or the KV cache")
    for kind in branches if target is not None else ():
        target.check_depth(kind)  # type: ignore[union-attr]
    found = find_branches(graph.traced)
    units = [unit for kind in branches for unit in found.of(kind)]
    if not units:
        raise DepthError(f"{found.module} has no {' or '.join(branches)} that can be removed")
    held = [{site.tensor for site in graph[name].sites} for name in pool.whole]
    return [u.name for u in units if not any(each.issubset(u.parameters) for each in held)]


def _shorter(
    graph: DependencyGraph, ladder: Ladder, scores: Scores, goal: Mapping[str, Any]
) -> tuple[DependencyGraph, Scores]:
    """The groups and their scores without the branches and blocks that are best left out."""
    ratio, budget = goal.get("pruning_ratio"), goal.get("budget")
    asked = fraction("pruning_ratio", ratio) if budget is None else budget
    choice = cheapest(graph, ladder, asked)
    if not choice.units:
        return graph, scores
    shorter = discover(bypass(graph.traced, choice.units))
    names = {group.name for group in shorter.groups}
    left = {name: values for name, values in scores.items() if name in names}
    return shorter, Scores(left, criterion=scores.criterion, ranking=scores.ranking)
