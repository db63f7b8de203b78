"""What is computed by a way that ``torch.export`` can follow, and the tries before one succeeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, masking_utils

import fxprune
from fxprune.errors import TraceError


class Grouped(nn.Module):
    """Tokens of one group see one another, which transformers asks by a rule of the caller's."""

    def __init__(self, rule: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__()
        self.config = LlamaConfig(hidden_size=8, num_attention_heads=2)
        self.config._attn_implementation = "sdpa"
        self.inner, self.outer = nn.Linear(8, 12), nn.Linear(12, 8)
        self.rule = rule or masking_utils.blockwise_overlay

    def forward(self, x: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        mask = masking_utils.create_causal_mask(
            self.config, x, None, None, or_mask_function=self.rule(groups)
        )
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=mask)
        return self.outer(F.relu(self.inner(x)))


def grouped(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    groups = torch.randint(-1, 2, (batch, length), generator=generator)
    return torch.randn(batch, length, 8, generator=generator), groups


def test_rules_of_masks_are_asked_at_once() -> None:
    model = Grouped().eval()
    traced = fxprune.trace(model, grouped(3, 7))
    for example in (grouped(3, 7), grouped(2, 12)):
        with torch.no_grad():
            assert torch.equal(traced.graph_module(*example), model(*example))
    group = next(g for g in fxprune.discover(traced).groups if g.kind == "mlp")
    plan = fxprune.Plan.of(fxprune.discover(traced), {group.name: range(5)})
    assert fxprune.verify(traced, fxprune.rewrite(traced, plan), plan).relative_error < 1e-5


def test_a_rule_that_means_something_else_at_once() -> None:
    """It sums over what it takes for one position."""

    def rule(groups: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda batch, head, query, key: (query - key).sum() > -3

    traced = fxprune.trace(Grouped(rule).eval(), grouped(3, 7))
    plan = fxprune.Plan.of(fxprune.discover(traced), {})
    with pytest.raises(TraceError, match="does not compute what the model does"):
        fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)


class Masked(nn.Module):
    """An axis of one that is broadcast against heads: as a symbol it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.project(x).unflatten(-1, (3, 4)).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return x.transpose(1, 2).flatten(-2)


def masked(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, 1, -1, -1)
    return torch.randn(batch, length, 12), mask.clone()


def test_a_try_that_fails_leaves_nothing_on_the_inputs() -> None:
    """It did, and the next tries then took every axis for a symbol, and failed too."""
    model, example = Masked().eval(), masked(2, 7)
    traced = fxprune.trace(model, example)
    assert not any(vars(tensor) for tensor in example)
    for other in (masked(2, 7), masked(4, 11), masked(1, 3)):
        with torch.no_grad():
            assert torch.equal(traced.graph_module(*other), model(*other))
