"""LLM-Pruner's count of multiply-accumulates against its formula."""

from __future__ import annotations

import pytest

import fxprune
from benches.published import published_macs
from fxprune.errors import CostError
from fxprune.groups.dependency import DependencyGraph
from tests.llama import tiny_llama
from tests.marks import but_slow
from tests.test_conformance import discovered
from tests.zoo import BY_NAME


def published(width: int, heads: int, inner: int) -> int:
    """LLM-Pruner's numbers term by term; its hook takes key/value heads for query heads."""
    size, vocabulary, tokens, layers = 6, 90, 64, 2
    attention = 4 * tokens * width * heads * size
    attention += heads * (2 * tokens * tokens * size + tokens * tokens)
    rotary = 2 * (tokens * heads * size) * 2
    mlp = 3 * tokens * width * inner + tokens * inner
    norms = 2 * (2 * tokens * width)
    ends = 2 * tokens * width + tokens * width * vocabulary
    return layers * (attention + rotary + mlp + norms) + ends


@pytest.mark.parametrize("kv", but_slow([6, 3, 1], 1))
def test_published_convention(kv: int) -> None:
    graph = llama(kv)
    assert published_macs(graph) == published(36, 6, 40)


def llama(kv: int) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama(num_key_value_heads=kv)))


def test_published_convention_of_a_pruned_model() -> None:
    graph = llama(3)
    by_kind = {"attention": 2, "query": 1, "mlp": 33, "channel": 25}
    counts = {g.dim: by_kind[g.kind] for g in graph.groups if g.kind in by_kind}
    assert published_macs(graph, counts) == published(25, 2, 33)
    in_a_batch = published_macs(graph, counts, batch=5)
    assert in_a_batch == 5 * published_macs(graph, counts)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "keys and values are not projections of their own"),
        ("gemma3", "aten.gelu.default"),
        ("stablelm", "aten.layer_norm"),
        ("qwen2", "biases"),
        ("phi3", "queries and grouped keys come out of one projection"),
        ("mixtral", "cannot be counted"),
        ("resnet", "cannot be counted"),
    ],
)
def test_published_convention_refuses_what_it_has_no_formula_for(name: str, why: str) -> None:
    with pytest.raises(CostError, match=why):
        published_macs(discovered(name, BY_NAME[name].backends[-1]))


def test_eager_and_fused_attention_cost_the_same() -> None:
    assert published_macs(discovered("llama", "eager")) == published_macs(
        discovered("llama", "sdpa")
    )
