"""The one verb: trace, discover, estimate, select, rewrite, verify and compensate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import fx, nn

from fxprune.compensate import CompensationReport
from fxprune.compensate.compensate import Method, compensate
from fxprune.errors import CalibrationError, CriterionError, SelectionError
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
from fxprune.select import Budget, goals, select
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
    scores: Scores | None = None,
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
        scores: those of an earlier run on this model, such as :meth:`Scores.load` reads, instead
            of a criterion: nothing is estimated, and a plan at another ratio costs no time.
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
        selection: further options of :func:`fxprune.select`.

    Raises:
        FxpruneError: any of its kinds, from the stage that failed.
    """
    asked = goals(steps, pruning_ratio, budget)
    if scores is None:
        criterion = Taylor() if criterion is None else criterion
    _check_scores(criterion, scores, steps)
    if isinstance(calibration, Iterator):
        calibration = list(calibration)  # it may be read several times
    data = calibration if compensation_data is None else compensation_data
    _check_compensation(compensation, data)
    if compensation == "bias":
        selection = {"gain_bias": True, **selection}
    with step("tracing", progress):
        traced = trace(model, args, kwargs)
    with step("discovering groups", progress):
        graph = discover(traced)
    if scores is not None:
        plan = select(graph, scores, kinds=kinds, **asked[0], **selection)
    else:
        assert criterion is not None
        scores, plan = iterate(
            model,
            graph,
            criterion,
            calibration,
            asked=asked,
            kinds=kinds,
            selection=selection,
            loss_fn=loss_fn,
            batch_size=batch_size,
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


def _check_scores(criterion: object, scores: object, steps: int) -> None:
    """Scores come from a criterion or from an earlier run.

    Raises:
        CriterionError: from neither or both, or they are something else.
        SelectionError: scores of an earlier run in several steps.
    """
    if scores is None:
        if not isinstance(criterion, Criterion):
            raise CriterionError(
                f"not a criterion: {criterion!r}; give an instance, such as Taylor()"
            )
        return
    if not isinstance(scores, Scores):
        raise CriterionError(f"scores= takes fxprune.Scores, not {type(scores).__name__}")
    if criterion is not None:
        raise CriterionError("give either a criterion or scores=, which have theirs")
    if steps > 1:
        raise SelectionError(f"{steps} steps need new scores before each: leave out scores=")


def _check_compensation(method: str | None, data: Any) -> None:
    """Refuse now what would be refused once the model is pruned.

    Raises:
        CalibrationError: there is no such method, or no data for it.
    """
    if method is None:
        return
    if method not in get_args(Method):
        names = ", ".join(get_args(Method))
        raise CalibrationError(f"compensation={method!r}: choose from {names}")
    if data is None:
        raise CalibrationError(f"compensation={method!r} needs calibration data")
