"""All costs at once."""

from __future__ import annotations

from fxprune import costs
from fxprune.groups.parameters import count_parameters
from tests.test_conformance import discovered


def test_facts() -> None:
    graph = discovered("llama", "sdpa")
    counts = {group.dim: 2 for group in graph.groups if group.kind == "attention"}
    assert costs.facts(graph, counts) == {
        "parameters": count_parameters(graph, counts),
        "macs": costs.macs(graph, counts),
        "macs_paper": costs.macs(graph, counts, convention="paper"),
        "kv_cache": 2 * 2 * (8 + 8),
        "memory": costs.memory_estimate(graph, counts),
    }


def test_what_cannot_be_counted_is_none() -> None:
    facts = costs.facts(discovered("gpt2", "eager"))
    assert facts["macs_paper"] is None
    assert facts["macs"]
    assert facts["kv_cache"] == 2 * 2 * 48
