"""One config for all layers: what it can say, and plans that are made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config, Mamba2ForCausalLM

import fxprune
from fxprune.errors import SelectionError
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from tests.serve.fuzz import made
from tests.serve.test_remote import llama


def test_what_it_takes() -> None:
    """Hidden 24, two key/value heads with two query heads each."""
    target = engine("transformers").target(llama())
    assert target.even
    assert set(target.kinds) == {"mlp", "attention", "query", "channel"}
    assert target.kept["channel", 24] == {4, 8, 12, 16, 20, 24}
    assert ("mlp", 40) not in target.kept  # any


def test_several_kinds_together_are_exact() -> None:
    """16 channels and three query heads would not do; two heads do, though alone 16 would too."""
    graph = llama()
    stream = next(g.name for g in graph.groups if g.kind == "channel")
    heads = {g.name: range(1) for g in graph.groups if g.kind == "attention"}
    assert engine("transformers").check(Plan.of(graph, {stream: range(18), **heads}), graph) == []
    (why,) = engine("transformers").check(Plan.of(graph, {stream: range(18)}), graph)
    assert why == "4 query heads do not divide hidden_size 18, which configs insist on"


def test_a_config_that_never_insisted() -> None:
    """Three heads of 5 and 16 channels: Qwen3 takes that."""
    model: Any = made("qwen3").module
    config = type(model.config)(
        vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=3, head_dim=6,
    )  # fmt: skip
    graph = fxprune.discover(fxprune.trace(type(model)(config).eval()))
    target = engine("transformers").target(graph)
    assert ("attention", 3) not in target.kept


def test_experts_and_what_has_no_heads() -> None:
    """An entry for the number of experts is found by trying; Mamba's sizes hang together."""
    graph = fxprune.discover(made("mixtral"))
    assert {"mlp", "expert"} <= {*engine("transformers").target(graph).kinds}
    config = Mamba2Config(
        vocab_size=31, hidden_size=16, num_heads=4, head_dim=8, state_size=6, n_groups=1,
        num_hidden_layers=2,
    )  # fmt: skip
    graph = fxprune.discover(fxprune.trace(Mamba2ForCausalLM(config).eval()))
    target = engine("transformers").target(graph)
    assert target.kinds == ()
    scores = {g.name: torch.rand(g.size) for g in graph.groups}
    with pytest.raises(SelectionError, match=r"transformers, which takes .* state groups whole"):
        fxprune.select(graph, scores, 0.05, target=target, kinds=("state",))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_plan_for_it_is_loaded_by_the_stock_class(name: str, tmp_path: Path) -> None:
    traced = made(name)
    model: Any = traced.module
    graph = fxprune.discover(traced)
    stock = engine("transformers")
    scores = {g.name: torch.rand(g.size) for g in graph.groups}
    plan = fxprune.select(graph, scores, 0.2, target=stock.target(graph))
    assert fxprune.check_plan(graph, plan) == []
    assert plan.parameters_after <= 0.8 * plan.parameters_before
    small = fxprune.rewrite(traced, plan)
    stock.write(Pruned(small, model.config, plan), tmp_path / "small")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    ids = torch.randint(101, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-4)
