"""The one verb, end to end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CriterionError, SelectionError
from tests.llama import tiny_llama

IDS = torch.arange(160).view(8, 20) % 90


def test_prune() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.2, calibration=IDS)
    total = sum(p.numel() for p in model.parameters())
    assert result.plan.parameters_before == total
    assert result.plan.parameters_after <= 0.8 * total
    assert sum(p.numel() for p in result.graph_module.parameters()) == result.plan.parameters_after
    assert result.report is not None
    assert result.graph_module(input_ids=IDS[:3, :7]).logits.shape == (3, 7, 90)
    again = fxprune.select(result.graph, result.scores, 0.3)
    assert again.parameters_after <= 0.7 * total


def test_the_same_command_gives_the_same_plan() -> None:
    one, two = (
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion=fxprune.Random(3), verify=False)
        for _ in range(2)
    )
    assert one.plan == two.plan
    assert one.report is None


def test_consume_is_verified_against_the_original() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.3, criterion=fxprune.Magnitude(), consume=True)
    assert result.report is not None
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0


def test_any_module_with_its_own_loss() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    x = torch.randn(16, 6)
    result = fxprune.prune(
        model,
        (x,),
        pruning_ratio=0.5,
        calibration={"input": x},
        loss_fn=lambda m, batch: m(batch["input"]).square().mean(),
    )
    assert result.plan.parameters_after <= 0.5 * result.plan.parameters_before


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_the_range_is_refused_at_once(ratio: float) -> None:
    with pytest.raises(SelectionError, match=r"outside \[0, 1\)"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=ratio)


def test_taylor_needs_data() -> None:
    with pytest.raises(CriterionError, match="calibration"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2)


def test_ratio_zero_changes_nothing() -> None:
    result = fxprune.prune(tiny_llama(), pruning_ratio=0, criterion=fxprune.Magnitude())
    assert not result.plan.kept
