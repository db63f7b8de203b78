"""Speed of tracing, discovery and rewriting by depth: ``pytest benches/bench_pipeline.py``."""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.plan import Plan

DEPTHS = (4, 8, 16, 32)


@functools.cache
def model(layers: int) -> Any:
    """A thin Llama: time goes into the graph, not into the weights."""
    config = transformers.LlamaConfig(
        vocab_size=101,
        hidden_size=36,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM._from_config(config).eval()


def traced(layers: int) -> fxprune.Traced:
    return fxprune.trace(model(layers), (), {"input_ids": torch.ones(2, 11, dtype=torch.long)})


@functools.cache
def traced_once(layers: int) -> fxprune.Traced:
    return traced(layers)


def discover_again(graph: fxprune.Traced) -> fxprune.DependencyGraph:
    graph.cache.clear()
    return fxprune.discover(graph)


def halved(graph: fxprune.DependencyGraph) -> Plan:
    """Half of every MLP and one of three KV heads go."""
    keep = {"mlp": range(20), "attention": range(2)}
    return Plan.of(graph, {g.name: tuple(keep[g.kind]) for g in graph.groups if g.kind in keep})


@pytest.mark.parametrize("layers", DEPTHS)
def test_trace(benchmark: Any, layers: int) -> None:
    result = benchmark.pedantic(traced, args=(layers,), rounds=3)
    assert len(result.tensors) >= 9 * layers


@pytest.mark.parametrize("layers", DEPTHS)
def test_discover(benchmark: Any, layers: int) -> None:
    graph = benchmark.pedantic(discover_again, args=(traced_once(layers),), rounds=5)
    assert sum(group.kind == "mlp" for group in graph.groups) == layers


@pytest.mark.parametrize("layers", DEPTHS)
def test_rewrite(benchmark: Any, layers: int) -> None:
    graph = fxprune.discover(traced_once(layers))
    plan = halved(graph)
    small = benchmark.pedantic(fxprune.rewrite, args=(graph.traced, plan), rounds=3)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


def test_discovery_is_linear() -> None:
    """64 layers cost at most 2.3 times what 32 cost, in turns, by the median."""
    seconds: dict[int, list[float]] = {32: [], 64: []}
    for _ in range(7):
        for layers, spent in seconds.items():
            graph = traced_once(layers)
            start = time.perf_counter()
            discover_again(graph)
            spent.append(time.perf_counter() - start)
    shallow, deep = (statistics.median(spent) for spent in seconds.values())
    print(f"32 layers {shallow:.3f} s, 64 layers {deep:.3f} s, ratio {deep / shallow:.2f}")
    assert shallow < 1
    assert deep <= 2.3 * shallow
