"""fxprune and Torch-Pruning in turns on one model; run in a process of its own, as it may not end.

Torch-Pruning is the extra ``[bench]``.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from benches.models import MODELS, Called
from benches.turns import Turns, in_turns
from fxprune.plan import Plan

OURS, PEER = "fxprune", "Torch-Pruning"
needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None,
    reason="Torch-Pruning is not installed: pip install '.[bench]'",
)


def discovery(name: str, layers: int, rounds: int, peer: bool) -> dict[str, Any]:
    """Seconds from a module to all of its groups, and how many there are.

    Args:
        name: of :data:`benches.models.MODELS`.
        layers: how many.
        rounds: to take the median of.
        peer: Torch-Pruning too.
    """
    made = MODELS[name](layers)

    def ours() -> int:
        return len(fxprune.discover(fxprune.trace(*made)).groups)

    def theirs() -> int:
        return len(list(dependencies(made).get_all_groups()))

    return _told({OURS: ours, **({PEER: theirs} if peer else {})}, rounds)


def rewriting(name: str, layers: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds of removing the same half of the inner units of every layer, groups being known.

    Torch-Pruning prunes in place; the copy that it gets is not timed. Both must compute the same.
    """
    model, args, kwargs = made = MODELS[name](layers, width)
    traced, plan = half(made)

    def ours() -> nn.Module:
        return fxprune.rewrite(traced, plan)

    def prepare(who: str) -> tuple[Any, ...]:
        if who == OURS:
            return ()
        return (dependencies((copy.deepcopy(model), args, kwargs)),)

    times = in_turns({OURS: ours, PEER: halve}, rounds, prepare=prepare)
    with torch.no_grad():
        outputs = [times.results[who].eval()(*args, **kwargs) for who in (OURS, PEER)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    sizes = {sum(p.numel() for p in times.results[who].parameters()) for who in (OURS, PEER)}
    assert sizes == {plan.parameters_after}, sizes
    return {who: times.median(who) for who in (OURS, PEER)}


def half(made: Called) -> tuple[fxprune.Traced, Plan]:
    """The plan that takes half of the inner units of every layer."""
    traced = fxprune.trace(*made)
    graph = fxprune.discover(traced)
    inner = _inner(made[0])
    groups = [
        group
        for group in graph.groups
        if any(s.axis == 0 and s.tensor.removesuffix(".weight") in inner for s in group.sites)
    ]
    return traced, Plan.of(graph, {group.name: tuple(range(group.size // 2)) for group in groups})


def halve(found: Any) -> nn.Module:
    """Take the same units by Torch-Pruning's graph, in place."""
    for name in _inner(found.model):
        module = found.model.get_submodule(name)
        pruner = found.get_pruner_of_module(module)
        size = pruner.get_out_channels(module)
        gone = list(range(size // 2, size))
        found.get_pruning_group(module, pruner.prune_out_channels, gone).prune()
    model: nn.Module = found.model
    return model


def dependencies(made: Called) -> Any:
    """Torch-Pruning's dependency graph."""
    import torch_pruning

    model, args, kwargs = made
    return torch_pruning.DependencyGraph().build_dependency(
        model,
        kwargs or args,
        forward_fn=lambda module, given: module(**given).logits if kwargs else module(*given),
        verbose=False,
    )


def _inner(model: nn.Module) -> list[str]:
    """Of a plain MLP every hidden layer, of the CNN the first of each residual block."""

    def inside(name: str, module: nn.Module) -> bool:
        if isinstance(module, nn.Linear):
            return module.out_features != 10
        return isinstance(module, nn.Conv2d) and name.endswith("conv1")

    return [name for name, module in model.named_modules() if inside(name, module)]


def _told(calls: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians and results by name; what fails says why instead."""
    failed = {}
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:
            lines = str(error).splitlines() or [""]
            failed[name] = f"{type(error).__name__}: {lines[0][:120]}"
            del calls[name]
    times = in_turns(calls, rounds, warm_up=0) if calls else Turns({}, {})
    told: dict[str, Any] = {
        name: {"seconds": times.median(name), "groups": times.results[name]} for name in calls
    }
    return told | {name: {"failed": reason} for name, reason in failed.items()}
