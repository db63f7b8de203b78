"""The oracle catches what is wrong, and measures what is right."""

from __future__ import annotations

import pytest
import torch

import fxprune
from fxprune.errors import OracleError
from fxprune.plan import Plan
from tests.llama import tiny_llama

IDS = torch.arange(33).view(3, 11) % 90


def pruned(**options: int) -> tuple[fxprune.Traced, Plan, torch.fx.GraphModule]:
    traced = fxprune.trace(tiny_llama(**options))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {g.name: tuple(range(1, g.size)) for g in graph.groups})
    return traced, plan, fxprune.rewrite(traced, plan)


def test_report() -> None:
    traced, plan, small = pruned()
    report = fxprune.verify(traced, small, plan, {"input_ids": IDS})
    assert 0 <= report.relative_error < report.tolerance == 1e-4
    assert report.scale > 0.01
    assert report.normalised == ("residual:channels",)
    assert "allowed" in str(report)


@pytest.mark.parametrize("example", [None, {"input_ids": IDS}, (IDS,), IDS])
def test_examples_come_in_any_form(example: object) -> None:
    traced, plan, small = pruned()
    fxprune.verify(traced, small, plan, example)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.rotary_emb.inv_freq",
    ],
)
def test_a_wrong_tensor_is_caught(name: str) -> None:
    traced, plan, small = pruned()
    tensor = dict(small.state_dict(keep_vars=True), **dict(small.named_buffers()))[name]
    with torch.no_grad():
        tensor.copy_(tensor.roll(1, 0))
    with pytest.raises(OracleError, match="must not be used"):
        fxprune.verify(traced, small, plan, {"input_ids": IDS})


def test_the_plan_of_other_units_is_caught() -> None:
    traced, _, small = pruned()
    graph = fxprune.discover(traced)
    other = Plan.of(graph, {g.name: tuple(range(g.size - 1)) for g in graph.groups})
    with pytest.raises(OracleError):
        fxprune.verify(traced, small, other, {"input_ids": IDS})


def test_not_finite_is_caught() -> None:
    traced, plan, small = pruned()
    with torch.no_grad():
        small.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(OracleError, match="not finite"):
        fxprune.verify(traced, small, plan)


def test_meta_models_cannot_be_verified() -> None:
    with torch.device("meta"):
        model = tiny_llama()
    traced = fxprune.trace(model)
    plan = Plan.of(fxprune.discover(traced), {})
    with pytest.raises(OracleError, match="no weights"):
        fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)


def test_wrong_inputs_are_named() -> None:
    traced, plan, small = pruned()
    with pytest.raises(OracleError, match="input_ids"):
        fxprune.verify(traced, small, plan, {"tokens": IDS})
