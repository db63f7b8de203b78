"""Cached numbers against the caches that transformers fills."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.costs import CostError, KvCacheCount, kv_cache
from tests.llama import tiny_llama
from tests.test_conformance import discovered, one_backend
from tests.zoo import BY_NAME, built

NONE = ("bert", "distilbert", "vit", "resnet", "perceptron")
OWN = {"chatglm_block": 2 * 6 * (8 + 8)}  # no transformers model: it fills no cache
# transformers' Falcon repeats its three key/value heads for six query heads before it caches them.
REPEATED = {"falcon_grouped": 2}
LENGTH = 6


def cached(name: str, attention: str) -> int:
    """Numbers per token that a forward pass leaves in the cache."""
    _, kwargs = BY_NAME[name].example(2, LENGTH)
    if "decoder_input_ids" in kwargs:
        kwargs["decoder_input_ids"] = kwargs["input_ids"]
    with torch.no_grad():
        cache = built(name, attention)(**kwargs, use_cache=True).past_key_values
    cache = getattr(cache, "self_attention_cache", cache)
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert numbers % (2 * LENGTH) == 0
    return int(numbers // (2 * LENGTH))


@one_backend()
def test_the_whole_model(name: str, attention: str) -> None:
    counted = kv_cache(discovered(name, attention))
    # A mask of pairs that is an input is 1 here, which in this model hides every token alike.
    if name in NONE or (name, attention) == ("chatglm_block", "eager"):
        assert counted == 0
    else:
        expected = OWN[name] if name in OWN else cached(name, attention)
        assert counted * REPEATED.get(name, 1) == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_pruned_model(attention: str) -> None:
    """Two layers of key/value heads times a key (pairs of rotary dims) plus a value."""
    graph = discovered("llama", attention)
    sizes = {"attention": 2, "query": 1, "mlp": 7, "channel": 9}
    counts = {g.dim: sizes[g.kind] for g in graph.groups if g.kind in sizes}
    for group in graph.groups:
        if group.kind == "head_dim":
            counts[group.dim] = 3 if group.size == 4 else 5
    assert kv_cache(graph, counts) == 2 * (2 * 2 * 3 + 2 * 5)
    heads = graph["model.layers.0.self_attn:heads"].dim
    count = KvCacheCount(graph, counts)
    assert count.total({**counts, heads: 3}) - kv_cache(graph, counts) == 2 * 3 + 5
    assert count.unit_cost(heads, counts) == 2 * 3 + 5
    assert count.unit_cost(heads, counts, -1) == -(2 * 3 + 5)
    assert count.unit_cost(graph["model.layers.0.mlp:units"].dim, counts) == 0


def test_models_without_weights() -> None:
    with torch.device("meta"):
        model = tiny_llama()
    assert kv_cache(fxprune.discover(fxprune.trace(model))) == 2 * 3 * (6 + 6)


class Local(nn.Module):
    """Attention to at most one place to the left and ``ahead`` places to the right."""

    def __init__(self, ahead: int, *, shared: bool = False) -> None:
        super().__init__()
        self.ahead, self.shared = ahead, shared
        self.embed = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, dim=-1))
        place = torch.arange(ids.shape[1])
        distance = place[None, :] - place[:, None]
        mask = (distance <= self.ahead) & (distance >= -1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.shared:
            out = functional.scaled_dot_product_attention(q + out, k, v, is_causal=True)
        return out


@pytest.mark.parametrize(("model", "numbers"), [(Local(0), 16), (Local(1), 0)])
def test_windows(model: nn.Module, numbers: int) -> None:
    graph = fxprune.discover(fxprune.trace(model.eval(), (torch.ones(2, 7, dtype=torch.long),)))
    assert kv_cache(graph) == numbers


def test_keys_that_two_attentions_share_count_once() -> None:
    model = Local(0, shared=True).eval()
    graph = fxprune.discover(fxprune.trace(model, (torch.ones(2, 7, dtype=torch.long),)))
    assert kv_cache(graph) == 16


class Buffered(Local):
    """Its causal mask is a buffer."""

    def __init__(self) -> None:
        super().__init__(0)
        self.register_buffer("causal", torch.ones(16, 16, dtype=torch.bool).tril())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = (part[:, None] for part in self.qkv(self.embed(ids)).chunk(3, dim=-1))
        mask = self.causal[: ids.shape[1], : ids.shape[1]]
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def test_a_mask_without_values_is_refused() -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    assert kv_cache(fxprune.discover(fxprune.trace(Buffered().eval(), (ids,)))) == 16
    with torch.device("meta"):
        model = Buffered().eval()
    with pytest.raises(CostError, match="buffer causal"):
        kv_cache(fxprune.discover(fxprune.trace(model, (ids.to("meta"),))))


def test_fixed_sizes_are_refused() -> None:
    class Fixed(Local):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids + torch.zeros(2, 7, dtype=torch.long))

    with pytest.warns(fxprune.errors.FxpruneWarning):
        traced = fxprune.trace(Fixed(0).eval(), (torch.ones(2, 7, dtype=torch.long),))
    with pytest.raises(CostError, match="fixed batch or length"):
        kv_cache(fxprune.discover(traced))
