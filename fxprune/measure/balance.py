"""How much predicted costs of one kind of units count against another's, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from fxprune.compensate.compensate import compensate
from fxprune.data.calibrate import Batch, Calibration, batches
from fxprune.data.loss import logits_of
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace.modes import evaluation
from fxprune.trace.traced import Traced

STEPS = (1.0, 4.0, 16.0, 64.0)  # what scores of a kind are multiplied by
TOKENS = 8192  # to refit on, and as many at most to measure on


@dataclass(frozen=True)
class Trial:
    """One plan that was tried.

    Attributes:
        factors: what the scores were multiplied by, by kind; a kind that is left out by 1.
        divergence: of the refitted model from the dense one, nats per token.
    """

    factors: Mapping[str, float]
    divergence: float


@dataclass(frozen=True)
class Balance:
    """What :func:`balance` found.

    Attributes:
        factors: of the best plan.
        trials: every plan that was tried, in order.
    """

    factors: Mapping[str, float]
    trials: tuple[Trial, ...]

    def apply(self, graph: DependencyGraph, scores: Scores) -> Scores:
        """The scores, multiplied."""
        found = {n: v * self.factors.get(graph[n].kind, 1.0) for n, v in scores.items()}
        return Scores(found, criterion=scores.criterion, ranking=scores.ranking)

    def __str__(self) -> str:
        parts = [f"{kind} x {factor:g}" for kind, factor in self.factors.items()]
        least = min(trial.divergence for trial in self.trials)
        first = self.trials[0].divergence
        said = ", ".join(parts) or "as they are"
        return (
            f"scores balanced by {len(self.trials)} measured plans: {said}; divergence from the"
            f" original {first:.4f} -> {least:.4f} nats per token"
        )


def balance(
    graph: DependencyGraph,
    scores: Scores,
    choose: Callable[[Scores], Plan],
    data: Calibration,
    *,
    progress: bool = False,
) -> Balance:
    """Find what to multiply the scores of each kind by, from whole plans that are refitted.

    Predicted costs of units of one kind compare well; between kinds they are off by factors, since
    what a refit can mend and how errors add up differ. The kind with most units is the measure; the
    scores of every other are multiplied by 4, 16, 64 as long as the plan that follows diverges less
    from the dense model, on crops that it was not refitted to. (Costs that are measured instead of
    predicted are the idea of Puzzle, Bercovich et al., arXiv 2411.19146; here they are of plans.)

    Args:
        graph: the groups of the model.
        scores: of every group that may be pruned.
        choose: the plan that follows from scores.
        data: calibration data; every fourth batch measures.
        progress: show the stages.

    Raises:
        FxpruneError: whatever a plan meets on its way.
    """
    traced = graph.traced
    known = batches(traced.module, data, 8)
    held = known[3::4]
    fit = _few([batch for place, batch in enumerate(known) if place % 4 != 3])
    if not held:
        raise CalibrationError("balancing kinds needs at least four batches of calibration data")
    held = _few(held)
    found: dict[str, float] = {}
    trials: list[Trial] = []
    seen: dict[str, float] = {}

    def tried(factors: Mapping[str, float]) -> float:
        plan = choose(Balance(factors, ()).apply(graph, scores))
        key = str(sorted(plan.kept.items()))
        if key not in seen:
            small = rewrite(traced, plan)
            compensate(traced, small, plan, fit, temperature=False)
            seen[key] = _divergence(traced, small, held)
        trials.append(Trial(dict(factors), seen[key]))
        return seen[key]

    with step("balancing kinds", progress):
        best = tried({})
        for kind in _kinds(graph, scores)[1:]:
            for factor in STEPS[1:]:
                now = tried({**found, kind: factor})
                if now >= best:
                    break
                best, found = now, {**found, kind: factor}
    return Balance(found, tuple(trials))


def _kinds(graph: DependencyGraph, scores: Scores) -> list[str]:
    """Kinds of the groups that have scores, those with most units first."""
    units: dict[str, int] = {}
    for name in scores:
        units[graph[name].kind] = units.get(graph[name].kind, 0) + graph[name].size
    return sorted(units, key=lambda kind: -units[kind])


def _few(data: Sequence[Batch]) -> list[Batch]:
    """The first and the last of the data in turns, so that crops of all lengths are there."""
    found: list[Batch] = []
    left, tokens = list(data), 0
    while left and tokens < TOKENS:
        found.append(left.pop(0 if len(found) % 2 else -1))
        tokens += next(iter(found[-1].values())).numel()
    return found


@torch.no_grad()
def _divergence(traced: Traced, small: fx.GraphModule, data: Sequence[Batch]) -> float:
    """Mean over tokens of the divergence from the dense model (Kullback-Leibler)."""
    total, tokens = 0.0, 0
    with evaluation(traced.graph_module), evaluation(small):
        for batch in data:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            dense, pruned = (
                logits_of(traced.module, each(**inputs)).float().flatten(0, -2).log_softmax(-1)
                for each in (traced.graph_module, small)
            )
            total += float(functional.kl_div(pruned, dense, reduction="sum", log_target=True))
            tokens += len(dense)
    return total / tokens
