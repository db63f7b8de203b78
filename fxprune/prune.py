"""The one verb: trace, discover, estimate, select, rewrite, verify and compensate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxprune.compensate import CompensationReport
from fxprune.compensate.compensate import Method, compensate
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.importance.calibrate import Calibration
from fxprune.importance.criterion import Criterion
from fxprune.importance.loss import LossFunction
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor
from fxprune.iterate import iterate
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.rewrite import oracle
from fxprune.rewrite.oracle import VerifyReport
from fxprune.rewrite.rewrite import rewrite
from fxprune.select import Budget, goals
from fxprune.trace import Traced, trace


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What :func:`prune` gives.

    Attributes:
        graph_module: the smaller model.
        plan: what was kept.
        report: what the oracle measured, before compensation; None if ``verify=False``.
        traced: the traced original.
        graph: its groups.
        scores: importance of every unit in the original, to plan again at another ratio.
        compensation: what compensation did; None if there was none.
    """

    graph_module: fx.GraphModule
    plan: Plan
    report: VerifyReport | None
    traced: Traced
    graph: DependencyGraph
    scores: Scores
    compensation: CompensationReport | None = None


def prune(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    pruning_ratio: float | None = None,
    budget: Budget | None = None,
    criterion: Criterion | None = None,
    calibration: Calibration | None = None,
    kinds: tuple[str, ...] = ("mlp", "attention"),
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    steps: int = 1,
    compensation: Method | None = None,
    compensation_data: Calibration | None = None,
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
        budget: instead of ``pruning_ratio``, see :class:`fxprune.Budget`.
        criterion: how units are scored; ``Taylor()`` if left out.
        calibration: data for the criterion, see :func:`fxprune.estimate`.
        kinds: kinds of groups to prune.
        loss_fn: the loss of one calibration batch, if the model does not give its own.
        batch_size: sequences per forward pass of the calibration.
        steps: reach the goal in so many steps, with new scores before each.
        compensation: ``bias`` or ``least-squares``, see :func:`fxprune.compensate.compensate`; it
            runs after the proof. For ``bias`` the consumers gain one.
        compensation_data: data for compensation, if not that of the criterion.
        verify: run the oracle on the example inputs.
        consume: free the original weights while rewriting; ``model`` cannot be used afterwards.
            Compensation needs them, so with it they are kept.
        progress: show the stages.
        selection: further options of :func:`fxprune.select`. With ``ranking="global"`` those that
            belong to the criterion are the default.

    Raises:
        FxpruneError: any of its kinds, from the stage that failed.
    """
    criterion = Taylor() if criterion is None else criterion
    asked = goals(steps, pruning_ratio, budget)
    data = calibration if compensation_data is None else compensation_data
    if compensation is not None and data is None:
        raise CalibrationError(f"compensation={compensation!r} needs calibration data")
    if compensation == "bias":
        selection = {"gain_bias": True, **selection}
    ranked = criterion.ranking if selection.get("ranking") == "global" else {}
    with step("tracing", progress):
        traced = trace(model, args, kwargs)
    with step("discovering groups", progress):
        graph = discover(traced)
    scores, plan = iterate(
        model,
        graph,
        criterion,
        calibration,
        asked=asked,
        selection={"kinds": kinds, **ranked, **selection},
        loss_fn=loss_fn,
        batch_size=batch_size,
        kinds=kinds,
        progress=progress,
    )
    expected = None
    if verify:
        # The reference comes first: with ``consume`` the original is gone afterwards.
        with step("running the original with the removed units zeroed", progress):
            expected = oracle.reference(traced, plan)
    with step("rewriting", progress):
        small = rewrite(traced, plan, consume=consume and compensation is None)
    report = None
    if expected is not None:
        with step("verifying", progress):
            report = oracle.compare(expected, small, traced)
    result = PruneResult(small, plan, report, traced, graph, scores)
    if compensation is None:
        return result
    assert data is not None
    mended = compensate(traced, small, plan, data, method=compensation, progress=progress)
    return replace(result, compensation=mended)
