"""Iterative pruning: scores are estimated anew between the steps to the final size."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.importance.criterion import Criterion
from fxprune.importance.estimate import estimate
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.proof.zeroed import zeroed
from fxprune.select.candidates import choose_groups
from fxprune.select.select import select
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
            made of them, see :func:`fxprune.stream.options.measured`.
        estimation: further options of :func:`fxprune.estimate`.

    Returns:
        The first scores, which are those of the original model, and the last plan.

    Raises:
        FxpruneError: what the selection refuses whatever the scores, such as a budget that cannot
            be met, before anything is estimated; then what either stage refuses.
    """
    selection = dict(selection or {})
    alike = {group.name: torch.zeros(group.size) for group in graph.groups}
    select(graph, alike, kinds=kinds, **asked[-1], **selection)
    scored, _ = choose_groups(graph, kinds, names=selection.get("groups"))
    plan: Plan | None = None
    first: Scores | None = None
    for number, goal in enumerate(asked, start=1):
        with contextlib.ExitStack() as stack:
            if plan is not None:
                stack.enter_context(zeroed(graph, plan))
                stack.enter_context(step(f"step {number} of {len(asked)}", progress))
            scores = estimate(
                model, graph, criterion, calibration, groups=scored, progress=progress, **estimation
            )
        if search == "measured":
            size = estimation.get("batch_size") or 8
            _, scores = measured(graph, scores, calibration, batch_size=size, progress=progress)
        first = scores if first is None else first
        plan = select(graph, scores, kinds=kinds, **goal, **selection, start=plan)
    assert plan is not None
    assert first is not None
    return first, plan
