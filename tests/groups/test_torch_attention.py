"""torch's own attention layers: heads are heads, whatever masks they are given."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.plan import Plan
from tests.marks import but_slow

PADDING = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
CAUSAL = torch.ones(7, 7).triu(1).bool()
HEADS = 4


class Attentions(nn.Module):
    """One attention layer for each way to call it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
            "plain": ({}, lambda a, y, p, z: a(y, y, y)),
            "fused": ({}, lambda a, y, p, z: a(y, y, y, need_weights=False)),
            "padding": ({}, lambda a, y, p, z: a(y, y, y, p)),
            "padding_fused": ({}, lambda a, y, p, z: a(y, y, y, p, need_weights=False)),
            "numbers": ({}, lambda a, y, p, z: a(y, y, y, p.float() * -9, need_weights=False)),
            "mask": ({}, lambda a, y, p, z: a(y, y, y, attn_mask=CAUSAL)),
            "both": ({}, lambda a, y, p, z: a(y, y, y, p, need_weights=False, attn_mask=CAUSAL)),
            "three": (
                {},
                lambda a, y, p, z: a(y, y, y, attn_mask=CAUSAL.expand(HEADS * len(y), 7, 7)),
            ),
            "extra": ({"add_bias_kv": True, "bias": False}, lambda a, y, p, z: a(y, y, y, p)),
            "zeros": ({"add_zero_attn": True}, lambda a, y, p, z: a(y, y, y, need_weights=False)),
            "sizes": ({"kdim": 5, "vdim": 7}, lambda a, y, p, z: a(y, z[..., :5], z[..., 5:])),
            "cross": ({}, lambda a, y, p, z: a(y, z, z, need_weights=False)),
        }
        self.up = nn.Linear(6, 12)
        self.layers = nn.ModuleDict(
            {
                name: nn.MultiheadAttention(12, HEADS, batch_first=True, **options)
                for name, (options, _) in self.calls.items()
            }
        )

    def forward(self, x: Tensor, padding: Tensor, memory: Tensor) -> Any:
        y = self.up(x)
        return [
            call(self.layers[name], y, padding, memory)[0] for name, (_, call) in self.calls.items()
        ]


def pruned(model: nn.Module, *example: Tensor) -> tuple[fxprune.DependencyGraph, fxprune.Traced]:
    """Groups and trace of a model that is proven without every third unit."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)  # a constant mask fixes sizes
        traced = fxprune.trace(model.eval(), example)
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {g.name: [u for u in range(g.size) if u % 3 != 1] for g in graph.groups})
    fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)
    return graph, traced


def heads(graph: fxprune.DependencyGraph) -> list[tuple[str, int]]:
    return [(g.kind, g.size) for g in graph.groups if g.kind in ("attention", "query")]


def test_heads_of_every_call_are_heads() -> None:
    model = Attentions()
    graph, _ = pruned(model, torch.randn(2, 7, 6), PADDING, torch.randn(2, 7, 12))
    assert heads(graph) == [("attention", HEADS)] * len(model.calls)
    assert not [g for g in graph.frozen if g.size not in (2, 3, 4, 5, 6, 7, 12)]


def test_queries_that_share_keys_are_queries_though_a_mask_is_expanded() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv, self.o = nn.Linear(6, 24), nn.Linear(6, 16), nn.Linear(24, 4)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            q = self.q(x).unflatten(-1, (6, 4)).transpose(1, 2)
            k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.kv(x).chunk(2, -1))
            k, v = (y[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for y in (k, v))
            mask = torch.zeros(padding.shape).masked_fill(padding, -9.0)
            mask = mask[:, None, None].expand(-1, 6, -1, -1)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask)
            return self.o(mixed.transpose(1, 2).flatten(2))

    graph, _ = pruned(Grouped(), torch.randn(2, 7, 6), PADDING)
    assert sorted(heads(graph)) == [("attention", 2), ("query", 3)]


class Layered(nn.Module):
    """A stack of torch's layers between an embedding and a head."""

    def __init__(self, stack: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embed, self.stack, self.out = nn.Embedding(30, 12), stack, nn.Linear(12, 4)
        self.call = call

    def forward(self, ids: Tensor, *more: Tensor) -> Tensor:
        given = [self.embed(x) if x.dtype == torch.long else x for x in more]
        return self.out(self.call(self.stack, self.embed(ids), *given))


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, HEADS, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1, **options)


def subsequent(x: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1])


IDS, OTHERS = torch.arange(14).view(2, 7), torch.arange(10).view(2, 5)
STACKS: dict[
    str, tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[Tensor, ...], int]
] = {
    "encoder": (encoder, lambda s, x, p: s(x, src_key_padding_mask=p), (IDS, PADDING), 1),
    "causal encoder": (encoder, lambda s, x: s(x, subsequent(x)), (IDS,), 1),
    "causal encoder, told so": (
        encoder,
        lambda s, x: s(x, subsequent(x), is_causal=True),
        (IDS,),
        1,
    ),
    "decoder": (
        lambda: nn.TransformerDecoder(
            nn.TransformerDecoderLayer(12, HEADS, 16, batch_first=True), 1
        ),
        lambda s, x, y, p: s(y, x, subsequent(y), memory_key_padding_mask=p),
        (IDS, OTHERS, PADDING),
        2,
    ),
    "both": (
        lambda: nn.Transformer(12, HEADS, 1, 1, 16, batch_first=True),
        lambda s, x, y: s(x, y, tgt_mask=subsequent(y), tgt_is_causal=True),
        (IDS, OTHERS),
        3,
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch's fused layers:fxprune.errors.FxpruneWarning")
@pytest.mark.parametrize("name", but_slow(STACKS, "decoder", "encoder"))
def test_stacks_of_layers(name: str) -> None:
    make, call, example, count = STACKS[name]
    graph, traced = pruned(Layered(make(), call), *example)
    assert heads(graph) == [("attention", HEADS)] * count
    (stream,) = (g for g in graph.groups if g.kind == "channel")
    assert stream.size == 12
    with torch.enable_grad():  # else torch's fused path writes zeros at what is padded
        torch.testing.assert_close(traced.graph_module(*example), traced.module(*example))


def test_the_mask_is_applied_whether_or_not_it_is_causal() -> None:
    model = Layered(encoder(), lambda s, x, m: s(x, m)).eval()
    traced = fxprune.trace(model, (IDS, CAUSAL))
    assert torch.backends.mha.get_fastpath_enabled()
    for mask in (CAUSAL, CAUSAL.flip(0), torch.zeros(7, 7).bool()):
        torch.testing.assert_close(traced.graph_module(IDS, mask), model(IDS, mask))
