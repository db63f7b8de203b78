"""Sizes of one, for graphs of models without weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputError
from fxprune.trace.ones import admit_ones
from tests.llama import tiny_llama

IDS = torch.randint(90, (1, 7), generator=torch.Generator().manual_seed(3))


class Alone(nn.Module):
    """Does something else for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x if x.shape[0] > 1 else -x


def test_what_is_the_model_at_a_batch_of_one_takes_it() -> None:
    with torch.device("meta"):
        blank = type(tiny_llama())(tiny_llama().config).eval()
    traced = fxprune.trace(blank, kwargs={"input_ids": torch.zeros(2, 5, dtype=torch.long)})
    assert not traced.guards.take([IDS])
    before = dict(blank.named_parameters())
    admit_ones(traced)
    assert traced.guards.take([IDS])
    assert dict(blank.named_parameters()) == before
    assert all(tensor.is_meta for tensor in traced.tensors.values())
    assert all(tensor.is_meta for tensor in traced.graph_module.parameters())
    whole = tiny_llama()
    with_weights = fxprune.trace(whole, kwargs={"input_ids": IDS.expand(2, 7)})
    assert traced.guards.ranges == with_weights.guards.ranges
    assert traced.guards.conditions == with_weights.guards.conditions


def test_what_is_not_does_not() -> None:
    with torch.device("meta"):
        blank = Alone().eval()
    traced = fxprune.trace(blank, torch.zeros(3, 6, device="meta"))
    admit_ones(traced)
    with pytest.raises(InputError, match="x"):
        traced.graph_module(torch.zeros(1, 6))
