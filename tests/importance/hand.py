"""Slow recomputations on a small Llama, head by head and unit by unit, without the library."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

HEADS, KV, HEAD, UNITS = 6, 3, 6, 40  # of tests.llama.tiny_llama
Members = list[tuple[str, int, list[list[int]]]]


def query_channels(unit: int) -> list[int]:
    """Channels of the query heads of one key/value head: heads {0, 1}, {2, 3}, {4, 5}."""
    heads = [2 * unit, 2 * unit + 1]
    return [head * HEAD + i for head in heads for i in range(HEAD)]


def key_channels(unit: int) -> list[int]:
    return [unit * HEAD + i for i in range(HEAD)]


def members(layer: int, kind: str) -> Members:
    """Every weight of a group, the axis of its units, and each unit's positions there."""
    if kind == "mlp":
        each = [[unit] for unit in range(UNITS)]
        pre = f"model.layers.{layer}.mlp."
        sites = (("gate_proj", 0, each), ("up_proj", 0, each), ("down_proj", 1, each))
    else:
        query = [query_channels(unit) for unit in range(KV)]
        key = [key_channels(unit) for unit in range(KV)]
        pre = f"model.layers.{layer}.self_attn."
        sites = (("q_proj", 0, query), ("k_proj", 0, key), ("v_proj", 0, key), ("o_proj", 1, query))
    return [(f"{pre}{name}.weight", axis, units) for name, axis, units in sites]


def groups() -> Iterator[tuple[str, Members]]:
    for layer in range(2):
        yield f"model.layers.{layer}.mlp:units", members(layer, "mlp")
        yield f"model.layers.{layer}.self_attn:heads", members(layer, "attention")


def gradient(model: nn.Module, ids: Tensor) -> dict[str, np.ndarray]:
    """Gradient of the mean next-token loss of some sequences, in one call of autograd."""
    names, weights = zip(*model.named_parameters(), strict=True)
    logits = model(input_ids=ids).logits[:, :-1]
    loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    found = torch.autograd.grad(loss, weights)
    return {name: g.double().numpy() for name, g in zip(names, found, strict=True)}


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def inputs(model: LlamaForCausalLM, ids: Tensor, name: str) -> list[np.ndarray]:
    """The input of a module, (L, C) for every sequence, run one by one."""
    seen: list[np.ndarray] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: seen.append(args[0].detach()[0].double().numpy())
    )
    with torch.no_grad():
        for row in ids:
            model(input_ids=row[None])
    handle.remove()
    return seen
