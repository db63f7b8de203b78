"""Scores from what the already pruned layers give, and the plan that is made on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from fxprune.axes.dims import find
from fxprune.axes.positions import Units
from fxprune.data.calibrate import Calibration
from fxprune.errors import CriterionError, SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.importance.criterion import Criterion
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import track
from fxprune.select.budget import Budget
from fxprune.select.candidates import candidate, choose_groups
from fxprune.select.select import select
from fxprune.stream.run import Run
from fxprune.stream.stops import stages_of
from fxprune.trace.modes import evaluation


def propagate(
    graph: DependencyGraph,
    criterion: Criterion,
    calibration: Calibration,
    pruning_ratio: float | None = None,
    kinds: Collection[str] = DEFAULT_KINDS,
    *,
    budget: Budget | None = None,
    by: Literal["layer", "group"] = "layer",
    keep_first: int = 0,
    keep_last: int = 0,
    groups: Collection[str] | None = None,
    batch_size: int | None = 8,
    progress: bool = False,
    **selection: Any,
) -> tuple[Scores, Plan]:
    """Score and choose layer by layer, each on what the already pruned layers before it give.

    As Wanda-sp does (the code of FLAP, An et al., arXiv 2312.11983): score a layer's units by its
    inputs, remove the lowest, and feed what the pruned layer puts out to the next. How many units
    each group loses is settled first, as ``ranking="local"`` does where all units are worth the
    same. Wanda-sp itself is ``WandaSP()`` with ``Budget(units=r, rounding="down")``.

    The inputs are read in the traced graph, so modules need no hooks and the model may be a
    GraphModule. Removed units are zeroed in the input of their consumer; no weight is changed.
    Memory: the values alive at one node, of all batches, twice with ``by="layer"``, which also
    runs every layer twice.

    Args:
        graph: the groups of a model that was traced with its weights.
        criterion: one that scores by the consumers' inputs, such as ``WandaSP()`` or ``FLAP()``.
        calibration: data as for :func:`fxprune.estimate`.
        pruning_ratio: fraction of the parameters of the whole model to remove, in [0, 1).
        kinds: kinds of groups to prune, as in :func:`fxprune.select`.
        budget: instead of ``pruning_ratio``.
        by: ``layer`` scores all groups of a layer, then removes their units, as Wanda-sp does;
            ``group`` removes those of each group before the next one in the layer is scored.
        keep_first: leave this many layers at the start of every stack alone.
        keep_last: leave this many layers at the end of every stack alone.
        groups: prune these groups, by name, whatever their kind.
        batch_size: sequences per forward pass.
        progress: show a progress bar.
        selection: further options of :func:`fxprune.select`, but ``ranking`` and ``start``.

    Returns:
        The scores of every group that was not protected, and the plan. The scores can be planned
        from again, but those of later layers belong to this plan's choices in earlier ones.

    Raises:
        CriterionError: the criterion needs more than weights and inputs; a group is normalised,
            or is not read by one product with a weight and nothing else; the model has no weights;
            or scores are not finite.
        CalibrationError: the data is empty or does not fit the graph.
        SelectionError: see :func:`fxprune.select`; or ``ranking`` or ``start`` is given.
    """
    _check(criterion, by, selection)
    protect: dict[str, Any] = {"keep_first": keep_first, "keep_last": keep_last}
    chosen, _ = choose_groups(graph, kinds, names=groups, **protect)
    alike = {group.name: torch.zeros(group.size) for group in chosen}
    selection = {"budget": budget, "groups": groups, **protect, **selection, "ranking": "local"}
    sizes = select(graph, alike, pruning_ratio, kinds, **selection)
    stages = stages_of(graph, criterion, chosen, by)
    run = Run(graph, criterion, calibration, batch_size, stages)
    kept: dict[str, Units] = {}
    with evaluation(graph.traced.graph_module), torch.no_grad():
        for stage in track(stages, "propagating", progress):
            run.score(stage)
            for group in (group for stop in stage for group in stop.groups):
                if group.name in sizes.kept:
                    units = candidate(group, run.scores).order[-len(sizes.kept[group.name]) :]
                    kept[group.name] = np.sort(units)
            run.remove(stage, {find(graph[name].dim): units for name, units in kept.items()})
    # In the order of the graph's groups, not in which they were scored.
    scores = Scores({g.name: run.scores[g.name] for g in chosen}, f"{criterion!r}, propagated")
    ordered = {name: tuple(kept[name].tolist()) for name in sizes.kept}
    return scores, replace(sizes, kept=ordered, criterion=scores.criterion)


def _check(criterion: Criterion, by: str, selection: Mapping[str, Any]) -> None:
    if by not in ("layer", "group"):
        raise CriterionError(f"by={by!r}: choose from layer, group")
    if not isinstance(criterion, Criterion) or "inputs" not in criterion.needs:
        raise CriterionError(
            f"{criterion!r} does not score by the inputs of consumers, as WandaSP, FLAP and "
            "ActivationNorm do, so nothing can be propagated: use estimate and select"
        )
    if more := criterion.needs - {"weights", "inputs"}:
        raise CriterionError(
            f"{criterion!r} also needs {', '.join(sorted(more))}, and propagation runs forward "
            "only: use estimate and select"
        )
    if name := next((name for name in ("ranking", "start") if name in selection), None):
        raise SelectionError(
            f"{name}= cannot be given: how many units each group loses is settled before any is "
            "scored, by ranking='local' and from the whole model"
        )
