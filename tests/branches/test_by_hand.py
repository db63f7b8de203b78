"""Independent proof: transformers modules with a branch or a layer taken out by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.zoo import BY_NAME, LAYERS, OTHER, built, traced

# Of each model: its list of layers, and in a layer what a branch ends with.
MODELS = {
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "bert": ("bert.encoder.layer", "attention.output.dense", "output.dense"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def logits(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model(**BY_NAME[name].example(*OTHER)[1]).logits


def without(name: str, *units: str) -> nn.Module:
    return fxprune.bypass(traced(name, "sdpa"), units).graph_module


def original(name: str) -> Any:
    return copy.deepcopy(built(name, "sdpa"))


@every_model
@pytest.mark.parametrize(("kind", "place"), [("attention", 1), ("mlp", 2)])
def test_a_branch_that_gives_zeros(name: str, kind: str, place: int) -> None:
    stack, *_ = MODELS[name]
    by_hand = original(name)
    projection = by_hand.get_submodule(f"{stack}.1.{MODELS[name][place]}")
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.zero_()
    found = logits(without(name, f"{stack}.1:{kind}"), name)
    torch.testing.assert_close(found, logits(by_hand, name))
    assert not torch.allclose(found, logits(original(name), name), atol=1e-2)


@every_model
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_is_deleted(name: str, layer: int) -> None:
    stack, *_ = MODELS[name]
    by_hand = original(name)
    layers = by_hand.get_submodule(stack)
    del layers[layer]
    for number, left in enumerate(layers):
        for module in left.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    by_hand.config.num_hidden_layers -= 1
    found = without(name, f"{stack}.{layer}:block")
    torch.testing.assert_close(logits(found, name), logits(by_hand, name))
    left = sum(p.numel() for p in by_hand.parameters())
    assert sum(p.numel() for p in found.parameters()) == left


def test_all_layers_deleted() -> None:
    by_hand = original("llama")
    by_hand.model.layers = nn.ModuleList()
    by_hand.config.num_hidden_layers = 0
    found = without("llama", *(f"model.layers.{i}:block" for i in range(LAYERS)))
    torch.testing.assert_close(logits(found, "llama"), logits(by_hand, "llama"))
