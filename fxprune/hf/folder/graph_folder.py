"""Pruned graphs in a folder.

A graph is not stored. The folder holds what is needed to make it again: the config, the shapes of
the example inputs, the plan and the tensors. Loading builds the original architecture on ``meta``,
traces it, rewrites it by the plan and puts the tensors in.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CheckpointError, FxpruneError
from fxprune.hf.folder import example
from fxprune.hf.folder.tensors import Tensors, assign, read, tensors_of, write
from fxprune.hf.open import architecture, guard
from fxprune.hf.shrink.fill import named_tensors
from fxprune.plan import Plan
from fxprune.rewrite.compose import compose
from fxprune.rewrite.history import history_of
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace
from fxprune.trace import guards as trace_guards

PLAN, TENSORS, CONFIG = "plan.json", "model.safetensors", "config.json"


def write_graph(
    folder: Path,
    graph_module: fx.GraphModule,
    plan: Plan,
    traced: Traced,
    tensors: Tensors | None = None,
) -> dict[str, Any]:
    """Write a graph's files into a folder.

    What was pruned several times is written as one pruning of the model that was pruned first.

    Args:
        folder: where.
        graph_module: the graph.
        plan: what made it.
        traced: the original.
        tensors: gives each tensor by its name in the graph, where that has no weights.

    Returns:
        What :func:`read_graph` needs to know besides.

    Raises:
        CheckpointError: the tensors are on ``meta``; an example input is of a type that JSON
            cannot hold; or several prunings cannot be said as one.
    """
    blank = [name for name, t in tensors_of(graph_module).items() if t.is_meta]
    if blank and tensors is None:
        raise CheckpointError(f"{blank[0]!r} is on meta: a graph without weights cannot be saved")
    traced, plan = _whole(graph_module, plan, traced)
    facts: dict[str, Any] = {
        "holds": "graph",
        "model": _describe(traced.module),
        "inputs": example.describe(traced.args, traced.kwargs),
        "guards": traced.guards.to_json(),
    }
    plan.save(folder / PLAN)
    facts["aliases"] = write(graph_module, folder / TENSORS, tensors)
    # safetensors makes the file private to its user; it should be as the others are.
    shutil.copymode(folder / PLAN, folder / TENSORS)
    if architecture.is_transformers(traced.module):
        config: Any = traced.module.config
        config.save_pretrained(folder)
    return facts


def read_graph(
    path: Path, facts: dict[str, Any], model: nn.Module | None, device: str | torch.device
) -> fx.GraphModule:
    """Make the graph again.

    Args:
        path: the folder.
        facts: what :func:`write_graph` gave.
        model: the original architecture, if it is not of transformers.
        device: where the tensors go.

    Raises:
        CheckpointError: a file is damaged or of another model.
    """
    tensors = read(path / TENSORS, device)
    try:
        plan = Plan.load(path / PLAN)
        small = rewrite(original(path, facts, plan, model, tensors), plan)
    except CheckpointError:
        raise
    except FxpruneError as error:
        hint = ""
        if model is not None and history_of(model) is not None:
            hint = "; give the model that was pruned first, not a graph that a pruning made of it"
        raise CheckpointError(f"{path} cannot be rebuilt: {error}{hint}") from error
    aliases: dict[str, str] = facts["aliases"]
    tensors |= {name: tensors[same] for name, same in aliases.items() if same in tensors}
    assign(small, tensors, path / TENSORS)
    return small.eval()


def original(
    path: Path,
    facts: dict[str, Any],
    plan: Plan,
    model: nn.Module | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Traced:
    """The original that a saved graph was made of, traced again, without weights.

    Args:
        path: the folder.
        facts: what :func:`write_graph` gave.
        plan: the plan in the folder.
        model: the original architecture, if it is not of transformers.
        tensors: those of the folder, whose dtypes the original then has.

    Raises:
        CheckpointError: it is not of transformers, and ``model`` is not given.
    """
    if model is None:
        model = _rebuild(path, facts["model"], plan, tensors or {})
    args, kwargs = _numbered(example.make(facts["inputs"], model), facts.get("guards"))
    return _with_ones(trace(model, args, kwargs), facts.get("guards"))


def _numbered(inputs: Any, saved: dict[str, Any] | None) -> Any:
    """Example inputs with the numbers that the model reads, where the saved graph holds some."""
    leaves, spec = pytree.tree_flatten(inputs)
    for place, (_, dtype, _, numbers) in enumerate(() if saved is None else saved["inputs"]):
        if dtype is not None and numbers is not None:
            leaves[place] = torch.tensor(numbers, dtype=leaves[place].dtype, device="cpu")
    return pytree.tree_unflatten(leaves, spec)


def _with_ones(traced: Traced, saved: dict[str, Any] | None) -> Traced:
    """Let a graph take sizes of 1 again where the saved one did: without weights nobody can tell.

    Folders of earlier versions say nothing about it.
    """
    found, guards = None if saved is None else trace_guards.Guards.from_json(saved), traced.guards
    if found is None or found.inputs != guards.inputs:
        return traced
    for name in guards.ranges:
        at = {**guards.example, name: 1}
        if found.allow(at) and not guards.allow(at):
            guards = guards.admitting(name)
    trace_guards.guard(traced.graph_module, guards)
    traced.guards = guards
    return traced


def _whole(graph_module: fx.GraphModule, plan: Plan, traced: Traced) -> tuple[Traced, Plan]:
    """The model that was pruned first and the plan for it, proven to make this graph's tensors.

    Raises:
        CheckpointError: there is no such plan.
    """
    try:
        first, whole = compose(traced, plan)
        if first is traced:
            return traced, plan
        made = tensors_of(rewrite(first, replace(whole, biases=())))
    except FxpruneError as error:
        raise CheckpointError(
            f"{error}. Prune the original once, or save it without the last pruning"
        ) from error
    own = named_tensors(first.module).keys() | set(whole.biases)
    expected = {first.canonical(n): tuple(t.shape) for n, t in made.items()}
    found = {
        # The second call of a shared module stands under "path@1".
        first.canonical(re.sub(r"@\d+", "", name)): tuple(tensor.shape)
        for name, tensor in tensors_of(graph_module).items()
    }
    for name in sorted(expected.keys() | found.keys()):
        # Modules come back with buffers that nothing reads.
        shape = expected.get(name, found.get(name) if name in own else None)
        if found.get(name) != shape:
            raise CheckpointError(
                f"{name} has shape {found.get(name)} in this graph and {shape} in what its "
                f"prunings make of {type(first.module).__name__}: save the graph as it was pruned"
            )
    return first, whole


def _describe(module: nn.Module) -> dict[str, Any]:
    if not (architecture.is_transformers(module) and architecture.has_class(module)):
        return {"library": None, "class": type(module).__qualname__}
    config: Any = module.config
    return {
        "library": "transformers",
        "class": type(module).__name__,
        "attn_implementation": config._attn_implementation,
    }


def _rebuild(
    path: Path, facts: dict[str, Any], plan: Plan, tensors: Mapping[str, torch.Tensor]
) -> nn.Module:
    """The original architecture on ``meta``, in the dtypes that the tensors have."""
    if facts.get("library") != "transformers":
        raise CheckpointError(
            f"{path} holds a pruned {facts.get('class')}, which is no class of transformers: build "
            "the original (on meta is enough) and pass it, load(path, model=...)"
        )
    guard.check_config(path / CONFIG, len(plan.shapes) or len(tensors))
    model = architecture.build(
        architecture.read_config(path / CONFIG),
        architecture=facts.get("class"),
        attn_implementation=facts.get("attn_implementation"),
    )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
    return model
