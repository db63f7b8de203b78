"""A model to look at: whatever a user types, pruned folders too, traced without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fxprune.errors import CheckpointError
from fxprune.groups.kinds import layer_of
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import PLAN, original
from fxprune.hf.folder.module_folder import blank_module
from fxprune.hf.open import models
from fxprune.hf.shrink.stacks import Names, Stack, at
from fxprune.plan import Plan
from fxprune.recover.runs import FACTS, MODEL
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace


@dataclass(frozen=True, eq=False)
class Blank:
    """A traced model without weights.

    Attributes:
        name: short name of the model.
        architecture: name of its class.
        traced: the model as it is in the folder: the smaller one, if it is pruned.
        plan: the plan by which it was pruned, if there is one.
        folder: the pruned folder, None for anything else.
        original: the name that a module or group of ``traced`` has in the model before pruning,
            where numbers of layers may differ.
    """

    name: str
    architecture: str
    traced: Traced
    plan: Plan | None = None
    folder: Path | None = None
    original: Callable[[str], str] = str


def open_blank(spec: str | Path) -> Blank:
    """Open a model without its weights.

    Args:
        spec: what :func:`fxprune.hf.open.models.resolve` takes; a folder that :func:`fxprune.save`
            wrote; or the folder of a run of recovery, whose model is then taken.

    Raises:
        ModelError: the model cannot be found, read or built.
        CheckpointError: a file of the folder is damaged, or it holds a graph of a model that is not
            of transformers.
    """
    folder = Path(spec).expanduser()
    if (folder / FACTS).is_file() and (folder / MODEL / checkpoint.FACTS).is_file():
        folder = folder / MODEL
    if not (folder / checkpoint.FACTS).is_file():
        loaded = models.load_model(spec, meta=True)
        return Blank(loaded.name, type(loaded.model).__name__, trace(loaded.model))
    facts = checkpoint.facts_of(folder)
    plan = Plan.load(folder / PLAN) if (folder / PLAN).is_file() else None
    where = folder.resolve()
    of_run = (where.parent / FACTS).is_file()
    name = f"{where.parent.name}/{where.name}" if of_run else where.name
    if facts.get("holds", "graph") == "module":
        model = blank_module(folder, facts)
        stacks = () if plan is None else _stacks(model, plan)
        kind, traced = type(model).__name__, trace(model)
        return Blank(name, kind, traced, plan, folder, lambda path: _renamed(path, stacks))
    traced, plan = _graph(folder, facts)
    return Blank(name, facts["model"]["class"], traced, plan, folder)


def _graph(folder: Path, facts: dict[str, object]) -> tuple[Traced, Plan]:
    """A graph without weights, traced again, and its plan."""
    described = facts["model"]
    assert isinstance(described, dict)
    if described.get("library") != "transformers":
        raise CheckpointError(
            f"{folder} holds a pruned {described.get('class')}, which is not a transformers model: "
            f"look at it in Python, fxprune.discover(fxprune.trace(fxprune.load({str(folder)!r}, "
            "model=...), ...)), with the original architecture"
        )
    plan = Plan.load(folder / PLAN)
    whole = original(folder, facts, plan)
    return trace(rewrite(whole, plan), whole.args, whole.kwargs), plan


def _stacks(model: nn.Module, plan: Plan) -> list[Stack]:
    """The lists of layers that have lost some, as they were."""
    gone: dict[str, set[int]] = {}
    for name in plan.removed:
        layer = layer_of(name.partition(":")[0])
        if layer is not None:
            gone.setdefault(layer[0], set()).add(layer[1])
    found = []
    for path, numbers in gone.items():
        layers = at(model, path)
        if isinstance(layers, nn.ModuleList):
            size = len(layers) + len(numbers)
            found.append(Stack(path, size, tuple(i for i in range(size) if i not in numbers)))
    return found


def _renamed(name: str, stacks: list[Stack] | tuple[()]) -> str:
    place, colon, unit = name.partition(":")
    return Names(stacks).original(place) + colon + unit
