"""Pruning and recovery in turns, for ratios that one step does not survive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxprune.config import PruneConfig
from fxprune.errors import SelectionError
from fxprune.plan import Plan
from fxprune.prune import prune
from fxprune.recover.data import Data
from fxprune.recover.methods import Method
from fxprune.recover.recover import Recovery, recover
from fxprune.result import PruneResult
from fxprune.rewrite.compose import together
from fxprune.select.budget import fraction
from fxprune.trace import Traced


@dataclass(frozen=True, eq=False)
class PrunedAndRecovered:
    """What :func:`prune_and_recover` gives.

    Attributes:
        graph_module: the smaller, retrained model. :func:`fxprune.shrink` makes a model of
            transformers of it, with ``plan``.
        plan: what stays of the original.
        traced: the traced original.
        recoveries: the course of each recovery.
    """

    graph_module: fx.GraphModule
    plan: Plan
    traced: Traced
    recoveries: tuple[Recovery, ...]


def prune_and_recover(
    model: nn.Module,
    data: Data,
    method: Method | None = None,
    *,
    pruning_ratio: float | str,
    config: PruneConfig | None = None,
    steps: int = 2,
    recovery: dict[str, Any] | None = None,
    **pruning: Any,
) -> PrunedAndRecovered:
    """Prune a part, recover, prune the next part of what was recovered, and so on.

    Each step removes an equal share of the parameters of the original.

    Args:
        model: the original; it does not change.
        data: to recover on.
        method: see :func:`recover`, in every step.
        pruning_ratio: fraction of the original's parameters to remove in all, in [0, 1).
        config: how to prune in every step, but for the ratio.
        steps: how often to prune and recover.
        recovery: further options of :func:`recover`; with ``out``, each step has a folder in it.
        pruning: further options of :func:`fxprune.prune`, such as ``criterion`` and
            ``calibration``; not ``depth``.

    Returns:
        The last graph, and the plan from the original to it.

    Raises:
        FxpruneError: what either refuses.
    """
    goal = fraction("pruning_ratio", pruning_ratio)
    if steps < 1:
        raise SelectionError(f"steps is {steps}: at least 1")
    alone = {"depth", "budget", "steps", "scores", "consume", "vocabulary", "stream"}
    if refused := alone & pruning.keys():
        raise SelectionError(f"{sorted(refused)[0]} is not for pruning and recovery in turns")
    if config is not None and (
        config.depth or config.budget or config.steps > 1 or config.tokens or config.stream
    ):
        raise SelectionError(
            "depth, budget, steps, tokens and stream are not for pruning and recovery in turns"
        )
    options, out = dict(recovery or {}), (recovery or {}).get("out")
    module, kept = model, dict[str, tuple[int, ...]]()
    first: PruneResult | None = None
    done: list[Recovery] = []
    for number in range(1, steps + 1):
        before, after = (1 - goal * n / steps for n in (number - 1, number))
        if first is not None:
            pruning |= {"args": first.traced.args, "kwargs": first.traced.kwargs}
        result = prune(module, config=config, pruning_ratio=1 - after / before, **pruning)
        first = first or result
        kept = together(kept, result.plan.kept)
        if out is not None:
            options["out"] = Path(out) / f"step-{number}"
        found = recover(result.graph_module, data, method, **options)
        done.append(found)
        module = result.graph_module
    assert first is not None
    assert isinstance(module, fx.GraphModule)
    plan = Plan.of(
        first.graph,
        kept,
        pruning_ratio=goal,
        criterion=first.plan.criterion,
        biases=result.plan.biases,
    )
    return PrunedAndRecovered(module, plan, first.traced, tuple(done))
