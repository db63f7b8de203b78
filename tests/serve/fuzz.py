"""Random plans for an engine that gives checkpoints of transformers: none may be silently wrong."""

from __future__ import annotations

import functools
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.plan import Plan
from fxprune.serve.engine import Engine, Pruned
from tests.zoo import BY_NAME, disturb

NAMES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mixtral")


@functools.cache
def made(name: str) -> tuple[Any, fxprune.Traced]:
    """A small model and its trace."""
    torch.manual_seed(0)
    model: Any = BY_NAME[name].make("sdpa").eval()
    disturb(model)
    return model, fxprune.trace(model)


@functools.cache
def without(name: str, removed: tuple[str, ...]) -> fxprune.DependencyGraph:
    """Its groups, without some blocks and branches."""
    traced = made(name)[1]
    return fxprune.discover(fxprune.bypass(traced, removed) if removed else traced)


def random_plan(name: str, draw: random.Random) -> tuple[fxprune.DependencyGraph, Plan]:
    """Kinds lose units, evenly or not, and blocks or branches may go."""
    units = [*fxprune.find_branches(made(name)[1]).units.values()]
    if draw.random() < 0.7:
        units = [unit for unit in units if unit.kind == "block"]
    removed = [draw.choice(units).name] if units and draw.random() < 0.3 else []
    graph = without(name, tuple(removed))
    there = sorted({group.kind for group in graph.groups})
    usual = [kind for kind in there if kind in ("mlp", "attention", "query")]
    kinds = draw.sample(*draw.choice(((usual, 1), (usual, len(usual)), (there, 1))))
    even = draw.random() < 0.6
    lost: dict[tuple[str, int], float] = {}
    kept = {}
    for group in graph.groups:
        if group.kind not in kinds or (not even and draw.random() < 0.4):
            continue
        share = lost.setdefault((group.kind, group.size), draw.random()) if even else draw.random()
        most = (group.size - group.least) // group.multiple
        stay = group.size - round(share * most) * group.multiple
        kept[group.name] = sorted(draw.sample(range(group.size), stay))
    return graph, Plan.of(graph, kept)


def tried(engine: Engine, name: str, seed: int) -> list[str]:
    """One plan, checked, and written and loaded if the engine takes it; why it refuses it."""
    draw = random.Random(seed)
    graph, plan = random_plan(name, draw)
    reasons = engine.check(plan, graph)
    if reasons:
        assert all(reasons)
        return reasons
    model, traced = made(name)
    small = fxprune.rewrite(traced, plan)
    ids = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a config that is saved as one of another class
        path = Path(folder) / f"small{seed}"
        how = engine.write(Pruned(small, model.config, plan), path)
        remote = "trust_remote_code=True" in how
        assert not remote or engine.name == "transformers-remote"
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=remote)
        with torch.no_grad():
            expected, found = (each(input_ids=ids).logits for each in (small, loaded.eval()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    return []
