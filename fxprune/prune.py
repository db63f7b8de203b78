"""The one verb: trace, discover, estimate, select, rewrite and verify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.importance.calibrate import Calibration
from fxprune.importance.criterion import Criterion
from fxprune.importance.estimate import estimate
from fxprune.importance.loss import LossFunction
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.rewrite import oracle
from fxprune.rewrite.oracle import VerifyReport
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.select import check_ratio, select
from fxprune.trace import Traced, trace


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What :func:`prune` gives.

    Attributes:
        graph_module: the smaller model.
        plan: what was kept.
        report: what the oracle measured; None if ``verify=False``.
        traced: the traced original.
        graph: its groups.
        scores: importance of every unit, to plan again at another ratio.
    """

    graph_module: fx.GraphModule
    plan: Plan
    report: VerifyReport | None
    traced: Traced
    graph: DependencyGraph
    scores: Scores


def prune(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    pruning_ratio: float,
    criterion: Criterion | None = None,
    calibration: Calibration | None = None,
    kinds: tuple[str, ...] = ("mlp", "attention"),
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    verify: bool = True,
    consume: bool = False,
    progress: bool = False,
    **selection: Any,
) -> PruneResult:
    """Prune a model to a smaller GraphModule and prove it right.

    Args:
        model: any module, transformers model or GraphModule, with its weights.
        args: example positional inputs, see :func:`fxprune.trace`.
        kwargs: example keyword inputs.
        pruning_ratio: fraction of the parameters of the whole model to remove, in [0, 1).
        criterion: how units are scored; ``Taylor()`` if left out.
        calibration: data for the criterion, see :func:`fxprune.estimate`.
        kinds: kinds of groups to prune.
        loss_fn: the loss of one calibration batch, if the model does not give its own.
        batch_size: sequences per forward pass of the calibration.
        verify: run the oracle on the example inputs.
        consume: free the original weights while rewriting; ``model`` cannot be used afterwards.
        progress: show the stages.
        selection: further options of :func:`fxprune.select`.

    Raises:
        FxpruneError: any of its kinds, from the stage that failed.
    """
    check_ratio("pruning_ratio", pruning_ratio)
    criterion = Taylor() if criterion is None else criterion
    with step("tracing", progress):
        traced = trace(model, args, kwargs)
    with step("discovering groups", progress):
        graph = discover(traced)
    scores = estimate(
        model,
        graph,
        criterion,
        calibration,
        loss_fn=loss_fn,
        batch_size=batch_size,
        kinds=kinds,
        progress=progress,
    )
    plan = select(graph, scores, pruning_ratio, kinds=kinds, **selection)
    expected = None
    if verify:
        # The reference comes first: with ``consume`` the original is gone afterwards.
        with step("running the original with the removed units zeroed", progress):
            expected = oracle.reference(traced, plan)
    with step("rewriting", progress):
        small = rewrite(traced, plan, consume=consume)
    report = None
    if expected is not None:
        with step("verifying", progress):
            report = oracle.compare(expected, small, traced)
    return PruneResult(small, plan, report, traced, graph, scores)
