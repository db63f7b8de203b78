"""Discovery: from a module to its groups, and what rewriting costs in the graph alone.

``pytest benches/bench_pipeline.py``. Against ``torch.export`` alone, which tracing cannot do
without, and against Torch-Pruning (the extra ``[bench]``), by depth.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.export import Dim

import fxprune
from benches import apart
from benches.models import MODELS, THIN, llama
from benches.peer import OURS, PEER, needs_peer
from benches.sizes import pick
from fxprune.plan import Plan

DEPTHS = pick(quick=(2, 4), cpu=(4, 8, 16, 32, 64))
ROUNDS = pick(quick=1, cpu=5)
LINEAR = pick(quick=(2, 4), cpu=(32, 64))
# Seconds after which Torch-Pruning is left alone.
PATIENCE = pick(quick=60, cpu=120, full=600)
EXPORT, TRACE = "torch.export alone", "trace + discover"


@functools.cache
def model(layers: int) -> Any:
    return llama(THIN, num_hidden_layers=layers)


def ids() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones(2, 11, dtype=torch.long)}


def exported(layers: int) -> torch.export.ExportedProgram:
    shapes = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}}
    return torch.export.export(model(layers), (), ids(), dynamic_shapes=shapes, strict=False)


def discovered(layers: int) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model(layers), (), ids()))


@functools.cache
def traced_once(layers: int) -> fxprune.Traced:
    return fxprune.trace(model(layers), (), ids())


def discover_again(graph: fxprune.Traced) -> fxprune.DependencyGraph:
    graph.cache.clear()
    return fxprune.discover(graph)


def halved(graph: fxprune.DependencyGraph) -> Plan:
    """Half of every MLP and one of three KV heads go."""
    keep = {"mlp": range(20), "attention": range(2)}
    return Plan.of(graph, {g.name: tuple(keep[g.kind]) for g in graph.groups if g.kind in keep})


def mlps(graph: fxprune.DependencyGraph) -> int:
    return sum(group.kind == "mlp" for group in graph.groups)


@pytest.mark.parametrize("layers", DEPTHS)
def test_against_export(bench: Any, layers: int) -> None:
    calls = {EXPORT: lambda: exported(layers), TRACE: lambda: discovered(layers)}
    times = bench.turns(calls, ROUNDS)
    assert mlps(times.results[TRACE]) == layers
    assert len(list(times.results[EXPORT].parameters())) == 9 * layers + 3
    ratio = times.ratio(TRACE, EXPORT)
    bench.row(
        "A thin Llama against torch.export",
        {
            "layers": layers,
            f"{EXPORT}, s": times.median(EXPORT),
            f"{TRACE}, s": times.median(TRACE),
            "ratio": ratio,
        },
    )
    if layers == max(d for d in DEPTHS if d <= 32):
        bench.at_most(f"{TRACE} / {EXPORT}, {layers} layers", ratio, 1.2)


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("name", MODELS)
@needs_peer
def test_against_torch_pruning(bench: Any, name: str, layers: int) -> None:
    """A model that it did not finish, or failed on, is not tried on it at more layers."""
    given_up = name in GIVEN_UP
    found = None
    if not given_up:
        found = bench.run(
            apart.run, "benches.peer:discovery", name, layers, ROUNDS, True, seconds=PATIENCE
        )
    theirs = {"failed": f"not finished in {PATIENCE} s"} if found is None else found[PEER]
    if found is None:
        found = bench.run(apart.run, "benches.peer:discovery", name, layers, ROUNDS, False)
    ours = found[OURS]
    assert ours["groups"] >= layers
    failed = theirs.get("failed")
    if given_up:
        failed = f"not tried: at {GIVEN_UP[name]} layers {theirs['failed']}"
    elif failed:
        GIVEN_UP[name] = layers
    bench.row(
        "Module to groups against Torch-Pruning",
        {
            "model": name,
            "layers": layers,
            "fxprune, s": ours["seconds"],
            "Torch-Pruning, s": failed or theirs["seconds"],
            "ratio": None if failed else ours["seconds"] / theirs["seconds"],
            "groups": ours["groups"],
            "Torch-Pruning's groups": theirs.get("groups"),
        },
    )


GIVEN_UP: dict[str, int] = {}


@pytest.mark.parametrize("layers", DEPTHS)
def test_rewrite(benchmark: Any, layers: int) -> None:
    graph = fxprune.discover(traced_once(layers))
    plan = halved(graph)
    small = benchmark.pedantic(fxprune.rewrite, args=(graph.traced, plan), rounds=ROUNDS)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


def test_discovery_is_linear(bench: Any) -> None:
    """64 layers cost at most 2.3 times what 32 cost, in turns, by the median."""
    graphs = {f"{layers} layers": traced_once(layers) for layers in LINEAR}
    times = bench.turns(
        {name: functools.partial(discover_again, graph) for name, graph in graphs.items()},
        pick(quick=1, cpu=7),
    )
    assert [mlps(times.results[name]) for name in graphs] == list(LINEAR)
    shallow, deep = graphs
    bench.row("discover alone, a thin Llama", {f"{name}, s": times.median(name) for name in graphs})
    bench.at_most(f"discover, {shallow}, s", times.median(shallow), 1)
    bench.at_most(f"discover, {deep} / {shallow}", times.ratio(deep, shallow), 2.3)
