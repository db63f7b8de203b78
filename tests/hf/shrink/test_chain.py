"""Two plans, the second for what the first leaves, are one for the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune import Depth, Plan
from fxprune.errors import PlanError
from fxprune.hf.folder.tensors import tensors_of
from tests.hf import tiny
from tests.zoo import BY_NAME

PLAIN: dict[str, Any] = {"criterion": "magnitude", "compensation": None, "verify": False}
FAMILIES = [
    "llama", "t5", "perceptron",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "qwen3", "gemma3", "phi3", "opt", "bloom", "falcon_grouped", "bert", "resnet", "gpt2",
            "mixtral",
        )
    ),
]  # fmt: skip


def pruned(model: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
    return fxprune.prune(model, args, kwargs, **{**PLAIN, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_twice_is_once_by_the_plan_of_both(name: str, tmp_path: Path) -> None:
    model: Any = BY_NAME[name].build("eager")
    args, kwargs = BY_NAME[name].example()
    traced = fxprune.trace(model, args, kwargs)
    kinds = {"kinds": "channel"} if name == "resnet" else {}
    first = pruned(model, args, kwargs, pruning_ratio=0.15, **kinds)
    second = pruned(first.graph_module, args, kwargs, pruning_ratio=0.15, **kinds)
    first.plan.save(tmp_path / "a.json")
    second.plan.save(tmp_path / "b.json")
    plan = Plan.load(tmp_path / "a.json").then(Plan.load(tmp_path / "b.json"), traced)
    once, twice = (
        tensors_of(each) for each in (fxprune.rewrite(traced, plan), second.graph_module)
    )
    assert once.keys() == twice.keys()
    for where, tensor in once.items():
        assert torch.equal(tensor, twice[where]), where
    assert plan.parameters_before == first.plan.parameters_before
    assert plan.parameters_after == second.plan.parameters_after


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param(Depth(remove=1, schedule="first"), marks=pytest.mark.slow),
        Depth(schedule="alternate"),
    ],
)
def test_models_of_transformers_and_their_folders(depth: Depth | None, tmp_path: Path) -> None:
    """A removed block gives the layers behind it other numbers; branches of those may go too."""
    model: Any = tiny.llama(num_hidden_layers=4, intermediate_size=64)
    model.save_pretrained(tmp_path / "MODEL")
    ratio = 0.15 if depth is None else 0.5
    first = pruned(model, pruning_ratio=ratio, depth=depth)
    assert bool(first.plan.removed) == (depth is not None)
    first.save(tmp_path / "first")
    again: Any = fxprune.load(tmp_path / "first")
    more = Depth(remove=1, keep_first=1, keep_last=0)
    second = pruned(again, pruning_ratio=0.3, depth=more, depth_criterion="magnitude")
    plan = first.plan.then(second.plan, fxprune.trace(model))
    assert len(plan.removed) == len(first.plan.removed) + 1
    # No group of a layer that is gone is spoken of.
    assert not [g for g in plan.kept for name in plan.removed if g.startswith(name[:-5])]
    small: Any = second.model
    for found in (fxprune.shrink(model, plan), fxprune.load(_applied(plan, tmp_path))):
        tensors = dict(found.named_parameters())
        assert tensors.keys() == dict(small.named_parameters()).keys()
        for where, tensor in small.named_parameters():
            assert torch.equal(tensor, tensors[where]), where


def _applied(plan: Plan, folder: Path) -> Path:
    plan.save(folder / "plan.json")
    return fxprune.apply(folder / "plan.json", folder / "MODEL", folder / "applied")


def test_what_is_trained_in_between_and_given_biases() -> None:
    model: Any = tiny.llama(intermediate_size=64)
    ids = torch.arange(48).view(4, 12)
    first = fxprune.prune(
        model, pruning_ratio=0.1, calibration=ids, compensation="bias", kinds="mlp"
    )
    assert first.plan.biases
    with torch.no_grad():
        for parameter in first.graph_module.parameters():
            parameter.mul_(1.5)
    second = pruned(first.graph_module, first.traced.args, first.traced.kwargs, pruning_ratio=0.1)
    plan = first.plan.then(second.plan, first.traced)
    assert plan.biases == first.plan.biases
    shapes = {n: p.shape for n, p in fxprune.rewrite(first.traced, plan).named_parameters()}
    assert shapes == {n: p.shape for n, p in second.graph_module.named_parameters()}


def test_plans_that_do_not_follow() -> None:
    model: Any = tiny.llama(intermediate_size=64)
    traced = fxprune.trace(model)
    first = pruned(model, pruning_ratio=0.1)
    other = pruned(tiny.llama(intermediate_size=48), pruning_ratio=0.1)
    with pytest.raises(PlanError, match="the plan is for another model"):
        first.plan.then(other.plan, traced)
    with pytest.raises(PlanError, match="the plan is for another model"):
        other.plan.then(first.plan, traced)
    with pytest.raises(PlanError, match="the plan is for another model"):
        first.plan.then(first.plan, traced)
