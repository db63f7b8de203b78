"""Random plans for an engine: what it takes it computes, what it refuses it says why.

Half of the plans keep to the limits of the engine, so that many are taken; the others do not.
"""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.errors import FxpruneError
from fxprune.plan import Plan
from fxprune.select.biases import gainable, gained
from fxprune.select.target import Target
from fxprune.serve.engine import Engine, Pruned
from tests.serve.models import ENTRIES
from tests.zoo import Inputs

# Fails if what is in a file is not what a graph computes. How to run it, the file, the graph, and
# inputs for it.
Right = Callable[[str, Path, fx.GraphModule, Inputs], None]


@functools.cache
def made(name: str) -> fxprune.Traced:
    """A small model, traced; not to be changed."""
    entry = ENTRIES[name]
    return fxprune.trace(entry.build(entry.backends[-1]), *entry.example())


@functools.cache
def without(name: str, removed: tuple[str, ...]) -> fxprune.DependencyGraph:
    """Its groups, without some blocks and branches."""
    traced = made(name)
    return fxprune.discover(fxprune.bypass(traced, removed) if removed else traced)


def random_plan(
    name: str, draw: random.Random, target: Target | None = None
) -> tuple[fxprune.DependencyGraph, Plan]:
    """Kinds lose units, evenly or not, blocks or branches may go, and Linears gain biases.

    Args:
        name: of the model.
        draw: what is drawn from.
        target: limits that the plan keeps to, if there are any.
    """
    units = [*fxprune.find_branches(made(name)).units.values()]
    if target is not None:
        units = [unit for unit in units if unit.kind in target.depth]
    elif draw.random() < 0.7:
        units = [unit for unit in units if unit.kind == "block"]
    removed = [draw.choice(units).name] if units and draw.random() < 0.3 else []
    graph = without(name, tuple(removed))
    there = sorted({g.kind for g in graph.groups if target is None or g.kind in target.kinds})
    usual = [kind for kind in there if kind in ("mlp", "attention", "query")]
    choices = [(kinds, n) for kinds, n in ((usual, 1), (usual, len(usual)), (there, 1)) if kinds]
    kinds = draw.sample(*draw.choice(choices)) if choices else []
    even = draw.random() < 0.6 or (target is not None and target.even)
    lost: dict[tuple[str, int], float] = {}
    kept = {}
    for group in graph.groups:
        if group.kind not in kinds or (not even and draw.random() < 0.4):
            continue
        share = lost.setdefault((group.kind, group.size), draw.random()) if even else draw.random()
        most = (group.size - group.least) // group.multiple
        stay = group.size - round(share * most) * group.multiple
        while target is not None and not target.allows(group.kind, group.size, stay):
            stay += group.multiple
        kept[group.name] = sorted(draw.sample(range(group.size), stay))
    biases: list[str] = []
    if draw.random() < 0.2 and (target is None or target.biases):
        there = gainable(graph, (graph[each] for each in kept))
        biases = gained(there, Plan.of(graph, kept).kept_counts(graph))
    return graph, Plan.of(graph, kept, biases=biases)


def smaller(name: str, plan: Plan) -> fx.GraphModule:
    """What a plan leaves of a model; biases that it gains have values."""
    small = fxprune.rewrite(made(name), plan)
    with torch.no_grad():
        for bias in plan.biases:
            small.get_parameter(bias).normal_(std=0.3)
    return small


def drawn(
    engine: Engine, name: str, draw: random.Random
) -> tuple[Plan, list[str], fx.GraphModule, Inputs]:
    """A random plan for an engine, what it says of it, what is left, and inputs for that."""
    target = None
    if draw.random() < 0.6:
        with contextlib.suppress(FxpruneError):  # the check says so, too
            target = engine.target(without(name, ()))
    graph, plan = random_plan(name, draw, target)
    example = ENTRIES[name].example(draw.randint(1, 4), draw.randint(7, 19))
    return plan, engine.check(plan, graph), smaller(name, plan), example


def tried(engine: Engine, name: str, seed: int, right: Right, file: str = "small") -> list[str]:
    """One plan, checked, and written and run if the engine takes it.

    Args:
        engine: the engine.
        name: of the model.
        seed: of what is drawn.
        right: what tells whether it is right.
        file: name of the file or folder.

    Returns:
        Why it is refused. What is refused is not written, or right after all.
    """
    plan, reasons, small, example = drawn(engine, name, random.Random(seed))
    config: Any = getattr(made(name).module, "config", None)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a config that is saved as one of another class
        path = Path(folder) / file
        how, why = "", ""
        try:
            how = engine.write(Pruned(small, config, plan), path)
        except FxpruneError as error:
            why = str(error)
        if why:
            assert reasons, f"{name} from {seed} is taken, and not written: {why}"
            assert not path.exists()
        else:
            right(how, path, small, example)
    assert all(len(reason) > 20 for reason in (*reasons, why) if reason)
    return reasons


def in_transformers(
    code: bool, how: str, path: Path, small: fx.GraphModule, example: Inputs
) -> None:
    """A folder that transformers loads; with code of the folder, if it may, where that is said."""
    remote = "trust_remote_code=True" in how
    assert code or not remote
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=remote)
    with torch.no_grad():
        expected, found = (each(**example[1]).logits for each in (small, loaded.eval()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
