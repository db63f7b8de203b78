"""Pruned decoders whose blocks differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

import fxprune
from fxprune.branches.bypass import bypass
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned
from tests.hf import tiny
from tests.llama import tiny_llama

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": tiny.VOCABULARY,
    "initializer_range": 0.2,  # so that logits are of the size of real ones
}


def llama(**options: Any) -> nn.Module:
    """Three layers, MLPs of 1024 units, 4 query and 2 key/value heads of 16 channels."""
    return tiny_llama(**{**SIZES, "num_key_value_heads": 2, **options})


def of(kind: Any, **options: Any) -> nn.Module:
    """The like of another type, with biases and norms that are not 0 and 1.

    Args:
        kind: the classes of its config and its model.
        options: of the config.
    """
    torch.manual_seed(0)
    config, model = kind
    made: nn.Module = model(config(**{**SIZES, "num_key_value_heads": 2, **options})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@dataclass(frozen=True)
class Case:
    """A plan for a model and what it leaves."""

    graph: DependencyGraph
    plan: Plan
    small: fx.GraphModule

    @property
    def pruned(self) -> Pruned:
        return Pruned(self.small, self.graph.traced.module.config, self.plan, tiny.tokenizer())


def case(
    model: nn.Module, kept: Mapping[str, Sequence[int]], removed: Collection[str] = ()
) -> Case:
    """Prune a model.

    Args:
        model: of transformers.
        kept: units that stay, by the name of their group; of groups that are gone nothing.
        removed: names of branches and blocks.
    """
    graph = fxprune.discover(bypass(fxprune.trace(model), tuple(removed)))
    plan = Plan.of(graph, {name: units for name, units in kept.items() if name in graph})
    return Case(graph, plan, fxprune.rewrite(graph.traced, plan))


def widths(*counts: int) -> dict[str, range]:
    """The last units of the MLPs of the first layers stay."""
    return {
        f"model.layers.{number}.mlp:units": range(1024 - count, 1024)
        for number, count in enumerate(counts)
        if count
    }
