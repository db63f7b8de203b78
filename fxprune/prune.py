"""The one verb: trace, shorten, discover, estimate, select, rewrite, verify and compensate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import fx, nn

from fxprune.branches import bypass
from fxprune.compensate import CompensationReport
from fxprune.compensate.compensate import Method, Scope, check_options, compensate
from fxprune.data.calibrate import Calibration
from fxprune.data.loss import GraphLoss
from fxprune.data.loss_function import LossFunction, check_loss
from fxprune.depth import DepthCriterion, Removal, choose_depth
from fxprune.errors import CalibrationError, CriterionError, SelectionError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.importance.criterion import Criterion
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor
from fxprune.measure.latency import measure_latency
from fxprune.measure.latency_report import LatencyReport, corrected, latency_report
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.proof import oracle
from fxprune.proof.examples import Examples, checked
from fxprune.proof.oracle import VerifyReport
from fxprune.rewrite.rewrite import rewrite
from fxprune.select import Budget, Depth, goals, select
from fxprune.select.latency import LatencyTable
from fxprune.stream.iterate import iterate
from fxprune.trace import Traced, trace


@dataclass(frozen=True, eq=False)
class PruneResult:
    """What :func:`prune` gives.

    Attributes:
        graph_module: the smaller model.
        plan: what was kept.
        report: what the oracle measured, before compensation; None if ``verify=False``.
        traced: the traced original.
        graph: its groups, without removed blocks and branches.
        scores: importance of every unit in the original, to plan again at another ratio.
        compensation: what compensation did; None if there was none.
        removal: which blocks or branches went, and their scores; None if only units of groups.
        latency: how a budget of latency was met; None if there was none.
    """

    graph_module: fx.GraphModule
    plan: Plan
    report: VerifyReport | None
    traced: Traced
    graph: DependencyGraph
    scores: Scores
    compensation: CompensationReport | None = None
    removal: Removal | None = None
    latency: LatencyReport | None = None


def prune(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    pruning_ratio: float | None = None,
    budget: Budget | None = None,
    criterion: Criterion | DepthCriterion | None = None,
    depth: Depth | None = None,
    depth_criterion: Criterion | DepthCriterion | None = None,
    calibration: Calibration | None = None,
    scores: Scores | None = None,
    kinds: tuple[str, ...] = ("mlp", "attention"),
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    steps: int = 1,
    compensation: Method | None = None,
    compensation_scope: Scope | None = None,
    compensation_data: Calibration | None = None,
    verify: bool = True,
    share: bool = False,
    consume: bool = False,
    progress: bool = False,
    **selection: Any,
) -> PruneResult:
    """Prune a model to a smaller GraphModule and prove it right.

    Args:
        model: any module, transformers model or GraphModule, with its weights.
        args: example positional inputs, or one tensor, see :func:`fxprune.trace`.
        kwargs: example keyword inputs.
        pruning_ratio: fraction of the parameters of the whole model to remove, in [0, 1).
        budget: instead of ``pruning_ratio``, see :class:`fxprune.Budget`. For one of latency this
            model is measured first, see :func:`fxprune.measure_latency`, unless ``latency=`` among
            the further options is such a table.
        criterion: how units are scored; ``Taylor()`` if left out. For depth alone, how blocks are.
        depth: remove whole blocks or branches first. Without ``pruning_ratio`` and ``budget`` that
            is all; with them, units of groups go from what is left until the model meets them.
        depth_criterion: how blocks and branches are scored; ``PPL()`` if left out.
        calibration: data for the criterion, see :func:`fxprune.estimate`.
        scores: those of an earlier run on this model, such as :meth:`Scores.load` reads, instead
            of a criterion: nothing is estimated, and a plan at another ratio costs no time.
        kinds: kinds of groups to prune.
        loss_fn: the loss of one calibration batch, if the model does not give its own, see
            :func:`fxprune.estimate`.
        batch_size: sequences per forward pass of the calibration.
        steps: reach the goal in so many steps, with new scores before each.
        compensation: ``bias`` or ``least-squares``, see :func:`fxprune.compensate.compensate`; it
            runs after the proof. For ``bias`` the consumers gain one.
        compensation_scope: ``pruned``, to refit by least squares only what reads pruned units.
        compensation_data: data for compensation, if not that of the criterion.
        verify: run the oracle on the example inputs.
        share: share tensors that lose nothing with ``model``, which saves their memory. Training
            the result then changes ``model`` too. By default it has tensors of its own.
        consume: free the original weights while rewriting; ``model`` cannot be used afterwards.
            Compensation needs them, so with it they are kept.
        progress: show the stages.
        selection: further options of :func:`fxprune.select`.

    Raises:
        FxpruneError: any of its kinds, from the stage that failed.
    """
    check_loss(loss_fn)
    width = depth is None or pruning_ratio is not None or budget is not None
    asked = goals(steps, pruning_ratio, budget) if width else ()
    if width:
        criterion = criterion or (Taylor() if scores is None else None)
        _check_scores(criterion, scores, steps)
        _check_depth(depth, depth_criterion)
    else:
        _check_only_depth(steps, selection)
        depth_criterion = _only_for_depth(criterion, depth_criterion, scores)
    if isinstance(calibration, Iterator):
        calibration = list(calibration)  # it may be read several times
    data = calibration if compensation_data is None else compensation_data
    _check_compensation(compensation, compensation_scope, data)
    if compensation == "bias":
        selection = {"gain_bias": True, **selection}
    with step("tracing", progress):
        traced = trace(model, args, kwargs)
    options: dict[str, Any] = {"loss_fn": loss_fn, "batch_size": batch_size, "progress": progress}
    examples = _checked(traced, progress) if verify else None
    removal = None
    if depth is not None:
        removal = choose_depth(traced, depth, depth_criterion, calibration, **options)
        traced, model = _shortened(traced, model, removal, width)
        options["loss_fn"] = loss_fn or GraphLoss(traced)
    with step("discovering groups", progress):
        graph = discover(traced)
    selection |= _measured(graph, budget, kinds, selection, progress)
    if removal is not None and not width:
        scores, plan = removal.scores, Plan.of(graph, {}, criterion=removal.criterion)
    elif scores is not None:
        plan = select(graph, scores, kinds=kinds, **asked[0], **selection)
    else:
        assert isinstance(criterion, Criterion)
        scores, plan = iterate(
            model,
            graph,
            criterion,
            calibration,
            asked=asked,
            kinds=kinds,
            selection=selection,
            **options,
        )
    traced = traced.original or traced
    plan = _settled(graph, scores, plan, kinds, asked, selection)
    expected = None
    if verify:
        # The reference comes first: with ``consume`` the original is gone afterwards.
        with step("running the original with the removed units zeroed", progress):
            expected = oracle.reference(traced, plan, examples=examples)
    with step("rewriting", progress):
        free = consume and compensation is None
        small = rewrite(traced, plan, share=share or consume, consume=free)
    report = None
    if expected is not None:
        with step("verifying", progress):
            report = oracle.compare(expected, small, traced)
    there = None if free else small
    latency = _latency(selection.get("latency"), budget, plan, traced, there)
    result = PruneResult(small, plan, report, traced, graph, scores, None, removal, latency)
    if compensation is None:
        return result
    assert data is not None
    mended = compensate(
        traced,
        small,
        plan,
        data,
        method=compensation,
        scope=compensation_scope,
        progress=progress,
    )
    return replace(result, compensation=mended)


def _checked(traced: Traced, progress: bool) -> Examples:
    """The inputs of the proof, on which the trace must be the model before anything is scored."""
    with step("comparing the trace with the model", progress):
        return checked(traced)


def _measured(
    graph: DependencyGraph,
    budget: Budget | None,
    kinds: tuple[str, ...],
    selection: Mapping[str, Any],
    progress: bool,
) -> dict[str, LatencyTable]:
    """The latency table that a budget needs, if it needs one and none is given."""
    if budget is None or budget.latency is None or selection.get("latency") is not None:
        return {}
    groups = selection.get("groups")
    table = measure_latency(graph, budget.shape, kinds=kinds, groups=groups, progress=progress)
    return {"latency": table}


def _settled(
    graph: DependencyGraph,
    scores: Scores,
    plan: Plan,
    kinds: tuple[str, ...],
    asked: Sequence[Mapping[str, Any]],
    selection: dict[str, Any],
) -> Plan:
    """The plan; under a budget of latency, chosen again once the first one was measured.

    The curves of the table are of groups alone. What they save together is measured here, and the
    corrected table takes the other's place in ``selection``.
    """
    budget = asked[0].get("budget") if len(asked) == 1 else None
    if budget is None or budget.latency is None or not plan.kept:
        return plan
    traced = graph.traced.original or graph.traced
    selection["latency"] = corrected(selection["latency"], plan, traced)
    return select(graph, scores, kinds=kinds, **asked[0], **selection)


def _latency(
    table: LatencyTable | None,
    budget: Budget | None,
    plan: Plan,
    traced: Traced,
    small: nn.Module | None,
) -> LatencyReport | None:
    """How a budget of latency was met; measured if the original is still there to compare with."""
    if table is None or budget is None or budget.latency is None:
        return None
    return latency_report(table, budget.latency, plan, traced, small)


def _shortened(
    traced: Traced, model: nn.Module, removal: Removal, width: bool
) -> tuple[Traced, nn.Module]:
    """The model without the removed units; as a module that can be watched, if it is needed."""
    shorter = bypass(traced, removal.removed)
    if not width:
        return shorter, model
    # It shares the original's tensors.
    return shorter, rewrite(traced, Plan.of(discover(shorter), {}))


def _check_depth(depth: Depth | None, depth_criterion: object) -> None:
    """Refuse a criterion for blocks where none are to go.

    Raises:
        CriterionError: there is one.
    """
    if depth is None and depth_criterion is not None:
        raise CriterionError("depth_criterion= scores blocks and branches: give depth= too")


def _check_only_depth(steps: int, selection: Mapping[str, Any]) -> None:
    """Refuse options that are of units of groups, where nothing of those goes.

    Raises:
        SelectionError: there is one.
    """
    given = [*selection, *(["steps"] if steps != 1 else [])]
    if given:
        raise SelectionError(
            f"{given[0]}= is for units of groups, and only blocks or branches are to go: leave it "
            "out, or give pruning_ratio or budget too"
        )


def _only_for_depth(criterion: Any, depth_criterion: Any, scores: object) -> Any:
    """The criterion of the blocks, where nothing else is removed.

    Raises:
        CriterionError: two are given, or scores of units.
    """
    if scores is not None:
        raise CriterionError("scores= are of units of groups: depth alone takes a criterion")
    if criterion is not None and depth_criterion is not None:
        raise CriterionError("depth alone has one criterion: give criterion or depth_criterion")
    return criterion if depth_criterion is None else depth_criterion


def _check_scores(criterion: object, scores: object, steps: int) -> None:
    """Scores come from a criterion or from an earlier run.

    Raises:
        CriterionError: from neither or both, or they are something else.
        SelectionError: scores of an earlier run in several steps.
    """
    if scores is None:
        if isinstance(criterion, DepthCriterion):
            raise CriterionError(
                f"{criterion!r} scores blocks and branches, and units of groups are to go: give it "
                "as depth_criterion, with depth="
            )
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


def _check_compensation(method: str | None, scope: str | None, data: Any) -> None:
    """Refuse now what would be refused once the model is pruned.

    Raises:
        CalibrationError: there is no such method or scope, or no data for it.
    """
    if method is None:
        return
    if method not in get_args(Method):
        names = ", ".join(get_args(Method))
        raise CalibrationError(f"compensation={method!r}: choose from {names}")
    check_options(method, scope=scope)
    if data is None:
        raise CalibrationError(f"compensation={method!r} needs calibration data")
