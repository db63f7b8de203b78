"""The one verb: trace, shorten, discover, estimate, select, rewrite, verify and compensate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxprune.branches import bypass
from fxprune.compensate.compensate import Method, compensate
from fxprune.config import PruneConfig
from fxprune.data.calibrate import Calibration
from fxprune.data.draw import WRITTEN, Draw, as_text, lengths_for, samples
from fxprune.data.loss import GraphLoss
from fxprune.data.loss_function import LossFunction, check_loss
from fxprune.data.text import OWN, Text
from fxprune.data.written import writes
from fxprune.depth import DepthCriterion, Removal, choose_depth
from fxprune.depth.named import needs_data
from fxprune.errors import CalibrationError, CriterionError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.hf.folder.in_pieces import too_large, with_weights, without_weights
from fxprune.hf.folder.state import State, begun
from fxprune.hf.folder.weights import Weights, weights_of
from fxprune.hf.open.architecture import is_causal_model
from fxprune.hf.vocabulary.trim import check_alone, trim
from fxprune.importance.criterion import Criterion
from fxprune.importance.scores import Scores
from fxprune.measure.latency import measure_latency
from fxprune.measure.latency_report import latency_report, settled
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.proof import oracle
from fxprune.proof.examples import checked
from fxprune.result import PruneResult
from fxprune.rewrite import optimizer as optimizers
from fxprune.rewrite.history import loss_before, pruned_first
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.candidates import choose_groups, scorable
from fxprune.select.latency import LatencyTable
from fxprune.select.schedule import goals
from fxprune.select.select import select
from fxprune.serve.bound import check_depth, cost_of, limits_of
from fxprune.stream.iterate import iterate
from fxprune.trace import Traced, trace
from fxprune.trace.inputs import from_config
from fxprune.trace.program import opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prune(
    model: nn.Module | ExportedProgram | Weights | str | Path,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: PruneConfig | None = None,
    calibration: Calibration | Text | str | Path | Sequence[str] | None = None,
    compensation_data: Calibration | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scores: Scores | None = None,
    loss_fn: LossFunction | None = None,
    latency: LatencyTable | None = None,
    optimizer: Any = None,
    share: bool = False,
    consume: bool = False,
    progress: bool = False,
    state: str | Path | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a model to a smaller one and prove it right.

    Args:
        model: any module, transformers model, GraphModule or ``ExportedProgram``, with its weights;
            or the folder or hub name of a transformers model, which is pruned in pieces where
            ``stream=True`` or its weights exceed the memory that is free; or
            :class:`fxprune.Weights`, for that in any case.
        args: example positional inputs, or one tensor, see :func:`fxprune.trace`.
        kwargs: example keyword inputs.
        config: how to prune; the defaults if left out.
        calibration: data for the criterion and for compensation, see :func:`fxprune.estimate`; or
            text, of which crops are drawn: a list of strings, ``self`` (the model writes it), or
            what :func:`fxprune.data.sources.source` reads, such as a file or ``datasets:NAME``.
        compensation_data: data for compensation, if not that.
        tokenizer: of the model, for text. It is saved along.
        scores: those of an earlier run on this model, such as :meth:`Scores.load` reads, instead
            of a criterion: nothing is estimated, and a plan at another ratio costs no time.
        loss_fn: the loss of one calibration batch, if the model does not give its own, see
            :func:`fxprune.estimate`.
        latency: what :func:`fxprune.measure_latency` measured, for a budget of latency; without it
            this model is measured first.
        optimizer: one that trains ``model``: it goes on with the parameters of the result, in
            place, its state cut along, see :func:`fxprune.rewrite.optimizer.carry`.
        share: share tensors that lose nothing with ``model``, which saves their memory. Training
            the result then changes ``model`` too. By default it has tensors of its own.
        consume: free the original weights while rewriting; ``model`` cannot be used afterwards.
            Compensation needs them, so with it they are kept.
        progress: show the stages.
        state: of a model in pieces, a folder for what is found on the way: the same call goes on
            there after a kill. ``result.state.end()`` removes it.
        options: fields of :class:`fxprune.PruneConfig`, in place of those of ``config``, such as
            ``pruning_ratio="20%"``.

    Raises:
        FxpruneError: any of its kinds, from the stage that failed.
    """
    config = PruneConfig.of(config, **options)
    check_loss(loss_fn)
    source, config, given, tokenizer = _opened(model, config, tokenizer)
    if source is not None and not args:
        kwargs = kwargs or from_config(given, torch.device("cpu"))
    model, args, kwargs = opened(given, args, kwargs)
    optimizers.check(optimizer, model)
    cut = None
    if config.tokens:
        check_alone(compensation_data=compensation_data, optimizer=optimizer)
        with step("leaving out tokens", progress):
            cut = trim(
                model,
                tokenizer,
                as_text(calibration),
                config.vocabulary,
                args,
                kwargs,
                goal=config.goal(),
                verify=config.verify,
            )
        model, args, kwargs, tokenizer = cut.model, cut.args, cut.kwargs, cut.tokenizer
    causal = is_causal_model(pruned_first(model))
    criterion = config.make_criterion(causal) if scores is None else None
    of_blocks = config.make_depth_criterion()
    _check_scores(config, scores)
    calibration = list(calibration) if isinstance(calibration, Iterator) else calibration
    data, more = draw_calibration(model, config, criterion, calibration, tokenizer, progress)
    more = more if compensation_data is None else compensation_data
    method = _method(config, causal, more)
    _check_data(config, criterion, of_blocks, data)
    width = config.width
    goal = config.goal(None if cut is None else cut.plan)
    asked: Sequence[Mapping[str, Any]] = goals(config.steps, **goal) if width else ()
    selection = config.selection() | {"latency": latency}
    with step("tracing", progress):
        traced = trace(model, args, kwargs)
    kept = begun(source, traced, config, criterion, state, (data, more))
    loss_fn = loss_before(model) if loss_fn is None else loss_fn
    estimation: dict[str, Any] = {"loss_fn": loss_fn, "batch_size": config.batch_size}
    estimation |= {"progress": progress} | ({} if source is None else {"stream": source})
    with step("comparing the trace with the model", progress and config.verify):
        examples = checked(traced) if config.verify else None
    removal = _removed(traced, config, of_blocks, data, kept, estimation)
    if removal is not None:
        traced = bypass(traced, removal.removed)
        if width:  # it shares the original's tensors
            model = rewrite(traced, Plan.of(discover(traced), {}))
        estimation["loss_fn"] = loss_fn or GraphLoss(traced)
    with step("discovering groups", progress):
        graph = discover(traced)
    kinds = config.kinds
    selection |= _measured(graph, config, selection, progress)
    options = {"kinds": kinds, **selection}
    selection |= limits_of(graph, config.target, options, asked, progress)
    scores = kept.scores() if scores is None and width else scores
    if not width:
        scores = Scores({}) if removal is None else removal.scores
        plan = Plan.of(graph, {}, criterion=getattr(removal, "criterion", None))
    elif scores is not None:
        plan = select(graph, scores, kinds=kinds, **asked[0], **selection)
    else:
        assert criterion is not None
        how = {name: getattr(config, name) for name in ("search", "branches", "seed")}
        scores, plan = iterate(
            model,
            graph,
            _able(model, graph, config, criterion),
            data,
            asked=asked,
            kinds=kinds,
            selection=selection,
            **how,
            **estimation,
        )
        graph = discover(bypass(traced, plan.removed))
        kept.scores(scores)
    traced = traced.original or traced
    plan = settled(graph, scores, plan, kinds, asked, selection)
    cost = cost_of(graph, config.target, scores, plan, {"kinds": kinds, **selection}, asked)
    expected, options = None, {"examples": examples, "stream": source}
    if config.verify:
        # The reference comes first: with ``consume`` the original is gone afterwards.
        with step("running the original with the removed units zeroed", progress):
            expected = oracle.reference(traced, plan, **options)
    carried = None if optimizer is None else optimizers.Cut.of(traced, plan)
    with step("rewriting", progress):
        free = consume and method is None and source is None
        small = rewrite(traced, plan, share=(share or consume) and source is None, consume=free)
    report = None
    if expected is not None:
        with step("verifying", progress):
            report = oracle.compare(expected, small, traced)
    mended, store = None, None if source is None else kept.mended()
    table, asking = selection["latency"], getattr(config.budget, "latency", None)
    met = latency_report(table, asking, plan, traced, None if free else small)
    if method is not None:
        assert more is not None
        mended = compensate(
            traced,
            small,
            plan,
            more,
            method=method,
            scope=config.compensation_scope,
            ignore=config.ignore,
            only=config.only,
            progress=progress,
            stream=source,
            mended=store,
        )
    optimizers.carry(optimizer, traced.module, small, carried)
    return PruneResult(
        small, plan, report, traced, graph, scores, mended, removal, met, config, tokenizer, cost,
        weights_of(traced, plan, small, source, store), kept, cut,
    )  # fmt: skip


def _check_scores(config: PruneConfig, scores: Scores | None) -> None:
    """Refuse scores that are none or have no use.

    Raises:
        FxpruneError: they are.
    """
    if scores is None:
        return
    config.check_scores()
    if not isinstance(scores, Scores):
        raise CriterionError(f"scores= takes fxprune.Scores, not {type(scores).__name__}")


def _able(
    model: nn.Module, graph: DependencyGraph, config: PruneConfig, criterion: Criterion
) -> Criterion:
    """The criterion; of the default, what can score all groups."""
    if config.criterion is not None:
        return criterion
    groups, _ = choose_groups(graph, config.kinds, names=config.groups)
    return scorable(model, graph, criterion, groups)


def _removed(
    traced: Traced,
    config: PruneConfig,
    criterion: Criterion | DepthCriterion | None,
    data: Calibration | None,
    kept: State,
    estimation: Mapping[str, Any],
) -> Removal | None:
    """The blocks or branches that go; None if none are to."""
    depth = config.blocks()
    if depth is None:
        return None
    check_depth(traced, config.target, depth.unit)
    known = kept.removal()
    if known is not None:
        return known
    return kept.removal(choose_depth(traced, depth, criterion, data, **estimation))


def _opened(
    model: Any, config: PruneConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Weights | None, PruneConfig, Any, PreTrainedTokenizerBase | None]:
    """The model, and where its weights are if it is to be pruned in pieces.

    Raises:
        FxpruneError: it cannot be found, or not be pruned so.
    """
    if isinstance(model, str | Path) and not config.stream and not too_large(model):
        loaded = with_weights(model)
        return None, config, loaded.model, tokenizer or loaded.tokenizer
    if isinstance(model, str | Path) or (isinstance(model, nn.Module) and config.stream):
        model = Weights(model)
    if not isinstance(model, Weights):
        return None, config, model, tokenizer
    config = replace(config, stream=True, written_samples=0)
    loaded = without_weights(model)
    return model, config, loaded.model, tokenizer or loaded.tokenizer


def draw_calibration(
    model: nn.Module,
    config: PruneConfig,
    criterion: Criterion | None,
    calibration: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    progress: bool = False,
) -> tuple[Calibration | None, Calibration | None]:
    """Data for the criterion and data for compensation.

    Args:
        model: the model; its config says how many positions it has.
        config: how many crops of text, how long, and their seed.
        criterion: whether it needs covariances decides the defaults.
        calibration: text, of which crops are drawn; any other data is both, as it is.
        tokenizer: of the model, for text.
        progress: show what the model writes.

    Raises:
        CalibrationError: the text cannot be read or is too short, or there is no tokenizer.
    """
    if not config.width and config.depth is None:
        return None, None
    text = as_text(calibration)
    if text is None and config.written_samples:
        raise CalibrationError("written_samples= joins text, and calibration= is none")
    if text is None:
        return calibration, calibration
    if text is OWN and config.stream:
        raise CalibrationError("a model in pieces does not write text: give calibration= a file")
    if tokenizer is None:
        raise CalibrationError(f"calibration is text ({text.name}): give its tokenizer= too")
    first, mends = draws(model, config, criterion)
    known: dict[Draw, list[Tensor]] = {}
    criteria = (criterion, config.make_depth_criterion())
    hungry = config.search != "predicted" or any(c is not None and needs_data(c) for c in criteria)
    found = first.of(model, tokenizer, text, known, progress) if hungry else None
    if config.compensation is None:
        return found, None
    return found, mends.of(model, tokenizer, text, known, progress)


def draws(model: nn.Module, config: PruneConfig, criterion: Criterion | None) -> tuple[Draw, Draw]:
    """What the criterion sees of a text, and what compensation sees."""
    covariances = criterion is not None and "moments" in criterion.needs
    first, lengths = (
        lengths_for(pruned_first(model), config.calibration_lengths, c) for c in (covariances, True)
    )
    count = samples(config.calibration_samples, covariances, config.effort)
    mends = samples(config.compensation_samples, True, config.effort)
    each = WRITTEN[config.effort] if is_causal_model(model) and writes(model) else 0

    def written(like: int) -> int:
        return each * like if config.written_samples is None else config.written_samples

    seen = Draw(config.seed, count, first, written(count if covariances else 0))
    return seen, Draw(config.seed, mends, lengths, written(mends))


def _method(config: PruneConfig, causal: bool, data: Calibration | None) -> Method | None:
    """How to compensate.

    Raises:
        CalibrationError: there is no data for it.
    """
    if config.compensation == "auto":
        return "auto" if causal and data is not None else None
    if config.compensation is not None and data is None:
        raise CalibrationError(f"compensation={config.compensation!r} needs calibration data")
    return config.compensation


def _check_data(
    config: PruneConfig,
    criterion: Criterion | None,
    of_blocks: Criterion | DepthCriterion | None,
    data: Calibration | None,
) -> None:
    """Refuse a criterion without the data that it needs, before any work.

    Raises:
        CriterionError: there is none. Says what scores without.
    """
    hungry = [each for each in (criterion, of_blocks) if each is not None and needs_data(each)]
    if data is None and hungry:
        field = "criterion" if hungry[0] is criterion or not config.width else "depth_criterion"
        raise CriterionError(
            f"{hungry[0]!r} needs calibration data: give calibration=, or score by the weights "
            f"alone with {field}='magnitude'"
        )


def _measured(
    graph: DependencyGraph, config: PruneConfig, selection: Mapping[str, Any], progress: bool
) -> dict[str, LatencyTable]:
    """The latency table that a budget needs, if it needs one and none is given."""
    budget = config.budget
    if budget is None or budget.latency is None or selection["latency"] is not None:
        return {}
    options: dict[str, Any] = {"kinds": config.kinds, "groups": config.groups}
    return {"latency": measure_latency(graph, budget.shape, **options, progress=progress)}
