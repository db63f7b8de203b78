"""A model from one line of forward code, and one of blocks that are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxprune

WIDTH = 8
EXAMPLE, OTHER = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0)).split([3, 5])


class Small(nn.Module):
    """A stream between a first and a last matrix.

    Args:
        body: from the module, which has matrices ``a`` to ``d``, and the stream to the stream.
        modules: further modules, or others instead of the matrices.
    """

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name in ("first", "a", "b", "c", "d", "last"):
            self.add_module(name, modules.pop(name, None) or nn.Linear(WIDTH, WIDTH))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, self.first(x)))


class Block(nn.Module):
    """``x + down(relu(up(x)))``, perhaps in place."""

    def __init__(self, inner: int = 12, in_place: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        term = self.down(torch.relu(self.up(x)))
        if self.in_place:
            x += term
            return x
        return x + term


class Stack(nn.Module):
    """Blocks between an embedding and a head, both linear."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def small(body: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> fxprune.Traced:
    """A :class:`Small` model, traced, with what the body uses only."""
    found = traced(Small(body, **modules))
    used = {name.partition(".")[0] for name in found.tensors}
    for name, child in list(found.module.named_children()):
        if name not in used and any(True for _ in child.parameters()):
            delattr(found.module, name)
    return found


def traced(model: nn.Module) -> fxprune.Traced:
    return fxprune.trace(model.eval(), (EXAMPLE,))


def run(model: fxprune.Traced, x: Tensor = OTHER) -> Tensor:
    with torch.no_grad():
        return model.graph_module(x.clone())


def check(model: fxprune.Traced, *names: str) -> None:
    """The oracle, on the model without some units."""
    graph = fxprune.discover(fxprune.bypass(model, names))
    plan = fxprune.Plan.of(graph, {})
    rewritten = fxprune.rewrite(model, plan)
    fxprune.verify(model, rewritten, plan, (OTHER,))
    assert sum(p.numel() for p in rewritten.parameters()) == plan.parameters_after
