"""All costs at once."""

from __future__ import annotations

import warnings

import torch

import fxprune
from fxprune import costs
from fxprune.groups.parameters import count_parameters
from tests.costs.test_macs import Op
from tests.test_conformance import discovered


def test_facts() -> None:
    graph = discovered("llama", "sdpa")
    counts = {group.dim: 2 for group in graph.groups if group.kind == "attention"}
    assert costs.facts(graph, counts) == {
        "parameters": count_parameters(graph, counts),
        "active": count_parameters(graph, counts),
        "macs": costs.macs(graph, counts),
        "kv_cache": 2 * 2 * (8 + 8),
    }


def test_what_cannot_be_counted_is_none() -> None:
    assert costs.facts(discovered("gpt2", "eager"))["kv_cache"] == 2 * 2 * 48
    model = Op(lambda x, w: torch.cdist(x, w), 7, 6).eval()
    with warnings.catch_warnings(action="ignore"):
        graph = fxprune.discover(fxprune.trace(model, (torch.zeros(4, 9, 6),)))
    assert costs.facts(graph) == {
        "parameters": 7 * 6, "active": 7 * 6, "macs": None, "kv_cache": 0,
    }  # fmt: skip
