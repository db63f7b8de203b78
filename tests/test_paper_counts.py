"""LLM-Pruner's published sizes of LLaMA-7B, to the integer, from the config alone.

arXiv 2305.11627, table 3: 20 % channel-wise is 5.39B parameters, 20 % block-wise 5.42B.
"""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan

pytestmark = pytest.mark.xdist_group("llama7b")


@functools.cache
def llama7b() -> DependencyGraph:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return fxprune.discover(fxprune.trace(model.eval()))


def channels() -> Plan:
    (stream,) = (g for g in llama7b().groups if g.kind == "channel")
    return Plan.of(llama7b(), {stream.name: tuple(range(3276))})


def blocks() -> Plan:
    kept = {"attention": tuple(range(24)), "mlp": tuple(range(8256))}
    chosen = (g for g in llama7b().groups if g.kind in kept and g.layer and 4 <= g.layer[1] <= 29)
    return Plan.of(llama7b(), {g.name: kept[g.kind] for g in chosen})


@pytest.mark.parametrize(("make", "expected"), [(channels, 5_389_416_396), (blocks, 5_422_977_024)])
def test_counts(make, expected: int) -> None:
    plan = make()
    assert plan.parameters_before == 6_738_415_616
    assert plan.parameters_after == expected
    small = fxprune.rewrite(llama7b().traced, plan)
    assert sum(p.numel() for p in small.parameters()) == expected


def test_groups_of_a_real_size() -> None:
    kinds = [g.kind for g in llama7b().groups]
    assert kinds.count("mlp") == kinds.count("attention") == 32
    assert kinds.count("channel") == 1
    assert all(g.size == 32 for g in llama7b().groups if g.kind == "attention")
