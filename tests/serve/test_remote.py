"""Checkpoints of transformers, stock or with layers of their own sizes."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import fxprune
from fxprune.errors import ServeError
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from tests.hf import tiny
from tests.marks import but_slow
from tests.serve import fuzz


@functools.cache
def llama() -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny.llama(num_hidden_layers=3)))


def written(name: str, plan: Plan, path: Path) -> str:
    traced = llama().traced
    config: Any = traced.module.config
    pruned = Pruned(fxprune.rewrite(traced, plan), config, plan, tiny.tokenizer())
    return engine(name).write(pruned, path)


def test_what_it_takes() -> None:
    target = engine("transformers-remote").target(llama())
    assert set(target.kinds) == {"mlp", "attention", "query", "channel"}
    assert (target.even, target.depth, target.kept) == (False, ("block",), {})


def test_own_sizes_need_code_in_the_folder(tmp_path: Path) -> None:
    graph = llama()
    names = [g.name for g in graph.groups if g.kind == "mlp"]
    plan = Plan.of(graph, {names[1]: range(7), names[2]: range(9)})
    assert engine("transformers-remote").check(plan, graph) == []
    how = written("transformers-remote", plan, tmp_path / "own")
    assert how.endswith(f"from_pretrained({str(tmp_path / 'own')!r}, trust_remote_code=True)")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == [40, 7, 9]
    (why,) = engine("transformers").check(plan, graph)
    assert why.startswith("transformers has one number of mlp units of 40")
    with pytest.raises(ServeError, match="transformers: its layers have sizes of their own"):
        written("transformers", plan, tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


@pytest.mark.parametrize("name", ["transformers", "transformers-remote"])
def test_what_it_cannot_say(name: str, tmp_path: Path) -> None:
    graph = llama()
    traced = graph.traced
    for unit in ("model.layers.1:attention", "model.layers.1:mlp"):
        shorter = fxprune.discover(fxprune.bypass(traced, [unit]))
        (why,) = engine(name).check(Plan.of(shorter, {}), shorter)
        assert why == f"{name} cannot leave out {unit}: it can leave out block"
        with pytest.raises(ServeError):
            written(name, Plan.of(shorter, {}), tmp_path / "out")
    dims = {g.name: range(1) for g in graph.groups if g.kind == "head_dim"}
    found = engine(name).check(Plan.of(graph, dims), graph)
    assert len(found) == len(dims)
    assert all(f"{name} takes head_dim groups whole" in each for each in found)
    with pytest.raises(ServeError, match="cannot be said in a config"):
        written(name, Plan.of(graph, dims), tmp_path / "out")
    with pytest.raises(ServeError, match=f"{name} has no option 'like'"):
        engine(name).write(Pruned(traced.module), tmp_path / "out", like="x")
    with pytest.raises(ServeError, match="Linear is not a model of transformers"):
        engine(name).write(Pruned(nn.Linear(2, 2)), tmp_path / "out")
    plain = fxprune.discover(fxprune.trace(nn.Sequential(nn.Linear(3, 5)), (torch.randn(2, 3),)))
    with pytest.raises(ServeError, match="Sequential is not a class of transformers"):
        engine(name).target(plain)
    assert not (tmp_path / "out").exists()


def test_where_layers_cannot_have_their_own_sizes_all_must_be_alike() -> None:
    """The encoder and the decoder of T5 share one config."""
    config = T5Config(
        vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    graph = fxprune.discover(fxprune.trace(model))
    remote = engine("transformers-remote").target(graph)
    assert remote.even
    assert "mlp" in remote.kinds
    scores = {g.name: torch.rand(g.size) for g in graph.groups}
    plan = fxprune.select(graph, scores, 0.05, target=remote)
    assert engine("transformers-remote").check(plan, graph) == []


MODELS = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "mixtral", "mistral", "wide-tied")


@pytest.mark.parametrize("name", but_slow(["transformers", "transformers-remote"], "transformers"))
@pytest.mark.parametrize("count", but_slow([10, 200], 200))
def test_random_plans(name: str, count: int) -> None:
    draw = random.Random(1)
    models = MODELS[:1] if count == 10 else MODELS
    right = functools.partial(fuzz.in_transformers, name == "transformers-remote")
    found = [fuzz.tried(engine(name), draw.choice(models), seed, right) for seed in range(count)]
    taken = sum(not each for each in found)
    assert taken > count * 0.2
    assert count == 10 or taken < count
