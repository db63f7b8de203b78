"""Zeroing for a while: the model then is the pruned one, and afterwards what it was."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import PlanError
from fxprune.plan import Plan
from fxprune.proof.zeroed import zeroed
from tests.llama import tiny_llama

IDS = torch.arange(44).view(4, 11) % 90
MLP, HEADS = "model.layers.1.mlp:units", "model.layers.0.self_attn:heads"


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().view(torch.uint8) for name, p in model.named_parameters()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = bits(model)
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def graph_and_plan(model: nn.Module, *kinds: str) -> tuple[fxprune.DependencyGraph, Plan]:
    graph = fxprune.discover(fxprune.trace(model))
    kept = {g.name: range(1, g.size, 2) for g in graph.groups if g.kind in kinds}
    return graph, Plan.of(graph, kept)


@torch.no_grad()
def test_the_slices_by_hand() -> None:
    """Neurons of one layer, a key/value head of the other and channels: down_proj on both axes."""
    model = tiny_llama()
    graph = fxprune.discover(fxprune.trace(model))
    (channels,) = (g.name for g in graph.groups if g.kind == "channel")
    neurons, positions = [0, 7, 39], [2, 3, 35]
    keep = {
        MLP: [u for u in range(40) if u not in neurons],
        HEADS: [0, 2],
        channels: [c for c in range(36) if c not in positions],
    }
    expected = copy.deepcopy(model)
    mlp, attention = expected.model.layers[1].mlp, expected.model.layers[0].self_attn
    mlp.gate_proj.weight[neurons] = 0
    mlp.up_proj.weight[neurons] = 0
    mlp.down_proj.weight[:, neurons] = 0
    # Head size 6, two query heads per key/value head.
    attention.q_proj.weight[12:24] = 0
    attention.k_proj.weight[6:12] = 0
    attention.v_proj.weight[6:12] = 0
    attention.o_proj.weight[:, 12:24] = 0
    expected.model.embed_tokens.weight[:, positions] = 0
    expected.lm_head.weight[:, positions] = 0
    expected.model.norm.weight[positions] = 0
    for layer in expected.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[positions] = 0
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.self_attn.get_submodule(name).weight[:, positions] = 0
        layer.mlp.gate_proj.weight[:, positions] = 0
        layer.mlp.up_proj.weight[:, positions] = 0
        layer.self_attn.o_proj.weight[positions] = 0
        layer.mlp.down_proj.weight[positions] = 0
    before = bits(model)
    with zeroed(graph, Plan.of(graph, keep)):
        for (name, mine), theirs in zip(
            model.named_parameters(), expected.parameters(), strict=True
        ):
            assert torch.equal(mine, theirs), name
    assert same(model, before)


def test_it_computes_what_the_pruned_model_does() -> None:
    model = tiny_llama()
    graph, plan = graph_and_plan(model, "mlp", "attention", "query")
    small = fxprune.rewrite(graph.traced, plan)
    with torch.no_grad(), zeroed(graph, plan):
        torch.testing.assert_close(model(input_ids=IDS).logits, small(input_ids=IDS).logits)


def test_tied_weights_are_zeroed_once_and_stay_tied() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    graph, plan = graph_and_plan(model, "channel", "mlp")
    before = bits(model)
    with zeroed(graph, plan):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not model.lm_head.weight[:, ::2].any()
        assert model.lm_head.weight[:, 1::2].all()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert same(model, before)


def test_values_that_compare_unequal_come_back_bit_by_bit() -> None:
    model = tiny_llama().to(torch.bfloat16)
    graph, plan = graph_and_plan(model, "channel", "mlp", "attention")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, :3] = torch.tensor([-0.0, torch.nan, 1e-40])
    before = bits(model)
    with zeroed(graph, plan):
        assert not model.model.layers[0].mlp.down_proj.weight[0].any()
    assert same(model, before)


def test_an_error_inside_puts_everything_back() -> None:
    model = tiny_llama()
    graph, plan = graph_and_plan(model, "channel", "mlp")
    before = bits(model)
    changed = []
    with contextlib.suppress(KeyError), zeroed(graph, plan):
        changed.append(not same(model, before))
        raise KeyError
    assert changed == [True]
    assert same(model, before)


def test_gradients_and_flags_are_left_alone() -> None:
    model = tiny_llama()
    graph, plan = graph_and_plan(model, "mlp")
    weight, frozen = model.model.layers[0].mlp.up_proj.weight, model.lm_head.weight
    weight.grad = torch.ones_like(weight)
    frozen.requires_grad_(False)
    with zeroed(graph, plan):
        assert torch.is_grad_enabled()
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert weight.requires_grad
        assert not frozen.requires_grad
        assert weight.grad is not None
        # ``d loss / d row`` of a removed neuron is zero: its column of down_proj is.
        assert torch.equal(weight.grad[::2], torch.ones_like(weight[::2]))
        assert not torch.equal(weight.grad[1::2], torch.ones_like(weight[1::2]))


def test_a_plan_of_another_model_changes_nothing() -> None:
    model = tiny_llama()
    graph, _ = graph_and_plan(model)
    _, other = graph_and_plan(tiny_llama(intermediate_size=44), "mlp")
    before = bits(model)
    with pytest.raises(PlanError, match="another model"), zeroed(graph, other):
        pytest.fail("it was accepted")
    assert same(model, before)
