"""One configuration: selected, rewritten, compensated and measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.cli.compare.labels import label
from fxprune.cli.compare.results import Result
from fxprune.cli.workflow import is_static
from fxprune.compensate import compensate
from fxprune.config import PruneConfig
from fxprune.errors import FxpruneError, ModelError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.hf.open.models import LoadedModel
from fxprune.importance import Criterion, Random, Scores, estimate
from fxprune.measure.perplexity import Score, Window, perplexity
from fxprune.measure.report import parameters
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.schedule import goals
from fxprune.select.select import select
from fxprune.serve.engine import engine
from fxprune.stream.iterate import iterate
from fxprune.trace import Traced, trace
from fxprune.trace.inputs import from_config

Scored = dict[Criterion, tuple[Scores, float]]  # scores, and seconds of their pass

BATCH = 16  # sequences of a calibration pass, unless there are fewer


@dataclass(frozen=True, eq=False)
class Bench:
    """What all configurations share.

    Attributes:
        loaded: the model, which no configuration changes.
        traced: the model as a graph.
        graph: its groups.
        columns: windows to measure on by column.
        progress: show the stages.
        measured: perplexity by the units that stay, of models whose weights were only sliced:
            draws and criteria that choose the same units need one measurement.
    """

    loaded: LoadedModel
    traced: Traced
    graph: DependencyGraph
    columns: dict[str, list[Window]]
    progress: bool
    measured: dict[Any, dict[str, Score]] = field(default_factory=dict)


def prepare(loaded: LoadedModel, columns: dict[str, list[Window]], progress: bool) -> Bench:
    """Trace the model and find its groups.

    Raises:
        ModelError: its graph takes only inputs of one size.
        TraceError: it cannot be traced.
    """
    with step("tracing", progress):
        traced = trace(loaded.model, (), from_config(loaded.model))
    if is_static(traced.graph_module):
        raise ModelError(
            f"{type(loaded.model).__name__} is captured with fixed sizes only, so perplexity "
            "cannot be measured on windows of text"
        )
    with step("discovering groups", progress):
        graph = discover(traced)
    return Bench(loaded, traced, graph, columns, progress)


def dense(bench: Bench, key: str) -> Result:
    """The model as it is."""
    seconds: dict[str, float] = {}
    with step("measuring the model as it is", bench.progress), _timed(seconds, "measure"):
        found = _scores(bench, bench.loaded.model)
    return _result(key, None, parameters(bench.loaded.model), found, seconds)


def try_selections(bench: Bench, configurations: Sequence[PruneConfig]) -> None:
    """Select by random scores, to learn of budgets that cannot be met before the work begins.

    Raises:
        FxpruneError: a configuration cannot be met; the message begins with its label.
    """
    kinds = sorted({kind for each in configurations for kind in each.kinds})
    scores = estimate(bench.loaded.model, bench.graph, Random(0), kinds=kinds)
    tried: set[str] = set()
    for each in configurations:
        asked = str((each.goal(), each.kinds, each.target, each.selection()))
        if asked in tried:
            continue
        tried.add(asked)
        try:
            _plan(bench, each, scores)
        except FxpruneError as error:
            raise type(error)(f"{label(each)}: {error}") from error


def score(
    bench: Bench, configurations: Sequence[PruneConfig], crops: Sequence[torch.Tensor]
) -> Scored:
    """Scores of all criteria, in one pass over one draw.

    Args:
        bench: the model.
        configurations: those that see this draw.
        crops: int64 tensors of shape (batch, length).
    """
    kinds = {kind for each in configurations for kind in each.kinds}
    criteria = list(dict.fromkeys(criterion_of(each) for each in configurations))
    began = time.perf_counter()
    found = estimate(
        bench.loaded.model,
        bench.graph,
        criteria,
        crops,
        batch_size=BATCH,
        kinds=sorted(kinds),
        progress=bench.progress,
    )
    seconds = round(time.perf_counter() - began, 3)
    return {each: (scores, seconds) for each, scores in zip(criteria, found, strict=True)}


def measure(
    bench: Bench,
    config: PruneConfig,
    scored: Scored,
    crops: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    key: str,
    title: str,
) -> Result:
    """Prune a copy of the model by one configuration and measure it.

    Args:
        bench: the model, which is not changed.
        config: what to do.
        scored: from :func:`score`, for the draw of the configuration.
        crops: what the criterion and what compensation sees, int64 tensors (batch, length).
        key: of the result.
        title: what to show while it runs.
    """
    seconds: dict[str, float] = {}
    with step(title, bench.progress):
        scores, seconds["estimate"] = scored[criterion_of(config)]
        with _timed(seconds, "select"):
            plan = _plan(bench, config, scores, crops[0])
        with _timed(seconds, "rewrite"):
            small = rewrite(bench.traced, plan)
        plain = config.compensation is None
        if config.compensation is not None:
            with _timed(seconds, "compensate"):
                compensate(
                    bench.traced,
                    small,
                    plan,
                    crops[1],
                    method=config.compensation,
                    scope=config.compensation_scope,
                    ignore=config.ignore,
                    only=config.only,
                )
        sliced = (tuple(sorted(plan.kept.items())), plan.removed)
        found = bench.measured.get(sliced) if plain else None
        if found is None:
            with _timed(seconds, "measure"):
                found = _scores(bench, small)
            if plain:
                bench.measured[sliced] = found
    return _result(key, config, parameters(small), found, seconds)


def criterion_of(config: PruneConfig) -> Criterion:
    """The criterion of a configuration, which has one: it removes units."""
    found = config.make_criterion()
    assert found is not None
    return found


def _plan(
    bench: Bench, config: PruneConfig, scores: Scores, crops: Sequence[torch.Tensor] | None = None
) -> Plan:
    """The plan, by ``search`` and ``steps`` too if there is what the criterion sees."""
    serving = None if config.target is None else engine(config.target)
    selection = config.selection()
    if serving is not None:
        selection["target"] = serving.target(bench.graph)
    if crops is None:
        plan = select(bench.graph, scores, kinds=config.kinds, **config.goal(), **selection)
    else:
        how = {name: getattr(config, name) for name in ("kinds", "search", "branches", "seed")}
        _, plan = iterate(
            bench.loaded.model,
            bench.graph,
            criterion_of(config),
            crops,
            asked=goals(config.steps, **config.goal()),
            selection=selection,
            scores=scores,
            batch_size=BATCH,
            progress=bench.progress,
            **how,
        )
    if serving is not None:
        serving.require(plan, bench.graph)
    return plan


def _scores(bench: Bench, module: nn.Module) -> dict[str, Score]:
    return {column: perplexity(module, cut) for column, cut in bench.columns.items()}


def _result(
    key: str,
    config: PruneConfig | None,
    parameters: int,
    scores: dict[str, Score],
    seconds: dict[str, float],
) -> Result:
    perplexities = {column: score.perplexity for column, score in scores.items()}
    losses = {column: list(score.losses) for column, score in scores.items()}
    return Result(key, config, parameters, perplexities, seconds, losses)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - began, 3)
