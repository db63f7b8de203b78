"""Modules that are left as they are, whatever would take something from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import Depth
from fxprune.errors import DepthError, SelectionError
from tests.llama import tiny_llama
from tests.zoo import BY_NAME

IDS = torch.arange(160).view(8, 20) % 90


def untouched(result: fxprune.PruneResult, model: nn.Module, module: str) -> None:
    small = dict(result.graph_module.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith(module):
            assert torch.equal(small[name], parameter), name


@pytest.mark.parametrize(
    "options", [{}, {"ranking": "local"}, {"budget": fxprune.Budget(units=0.3)}]
)
def test_a_layer_is_left_alone(options: dict[str, Any]) -> None:
    model = tiny_llama(num_hidden_layers=3)
    options = {"criterion": "magnitude", "ignore": ("model.layers.1",), **options}
    result = fxprune.prune(model, **options)
    assert result.plan.kept
    assert not [name for name in result.plan.kept if "layers.1." in name]
    assert result.plan.limits["model.layers.1.mlp:units"] == "ignore=model.layers.1"
    untouched(result, model, "model.layers.1.")


def test_what_is_mended_leaves_it_alone_too() -> None:
    model = tiny_llama()
    ignore = ("lm_head", "model.norm", "*.q_proj")
    result = fxprune.prune(
        model, calibration=IDS, ignore=ignore, kinds="mlp", compensation_scope="all"
    )
    assert result.compensation is not None
    skipped = {each.name: each.skipped for each in result.compensation.consumers if each.skipped}
    assert skipped["model.layers.0.self_attn.q_proj"] == "ignore=*.q_proj"
    assert result.compensation.no_temperature == "what scales its logits is in a module to ignore"
    for module in (
        "lm_head",
        "model.norm",
        *(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)),
    ):
        untouched(result, model, module)
    free = fxprune.prune(model, calibration=IDS, kinds="mlp")
    assert free.compensation is not None
    assert not torch.equal(
        free.graph_module.get_parameter("model.layers.1.self_attn.q_proj.weight"),
        model.get_parameter("model.layers.1.self_attn.q_proj.weight"),
    )


def test_the_stream_is_held_by_what_reads_it() -> None:
    model = tiny_llama()
    with pytest.raises(SelectionError, match=r"every one chosen is protected \(ignore=lm_head\)"):
        fxprune.prune(
            model, criterion="magnitude", kinds="channel", ignore="lm_head", pruning_ratio=0.1
        )
    result = fxprune.prune(model, criterion="magnitude", ignore="lm_head")
    assert result.plan.kept


def test_stages_of_a_network_of_convolutions() -> None:
    model: Any = BY_NAME["resnet"].build("eager")
    args, kwargs = BY_NAME["resnet"].example()
    first = next(name for name, each in model.named_modules() if isinstance(each, nn.Conv2d))
    options: dict[str, Any] = {"criterion": "magnitude", "kinds": "channel", "pruning_ratio": 0.2}
    result = fxprune.prune(model, args, kwargs, ignore=first, **options)
    untouched(result, model, f"{first}.")
    plain = fxprune.prune(model, args, kwargs, **options)
    assert plain.plan != result.plan


@pytest.mark.parametrize("schedule", ["one-shot", "greedy", "run"])
def test_blocks_are_left_alone(schedule: Any) -> None:
    model = tiny_llama(num_hidden_layers=4)
    depth = Depth(remove=2, schedule=schedule, keep_first=0, keep_last=0)
    ignore = ("model.layers.0.mlp", "model.layers.3")
    result = fxprune.prune(model, depth=depth, ignore=ignore, calibration=IDS)
    assert result.plan.removed == ("model.layers.1:block", "model.layers.2:block")
    with pytest.raises(DepthError, match="2 may, 2 more are protected"):
        fxprune.prune(
            model, depth=Depth(remove=3, keep_first=0, keep_last=0), ignore=ignore, calibration=IDS
        )


def test_tied_tensors_are_the_same() -> None:
    model: Any = BY_NAME["gpt2"].build("eager")  # its head is its embedding
    with pytest.raises(SelectionError, match=r"protected \(ignore=transformer.wte\)"):
        fxprune.prune(model, criterion="magnitude", kinds="channel", ignore="transformer.wte")


def test_only_some_modules() -> None:
    model = tiny_llama(num_hidden_layers=3)
    only = ("model.layers.1", "model.layers.2.mlp")
    result = fxprune.prune(model, calibration=IDS, only=only, compensation_scope="all")
    layers = {name.rpartition(":")[0] for name in result.plan.kept}
    assert layers <= {"model.layers.1.mlp", "model.layers.1.attention", "model.layers.2.mlp"}
    held = "only=model.layers.1,model.layers.2.mlp"
    assert result.plan.limits["model.layers.0.mlp:units"] == held
    assert result.compensation is not None
    skipped = {each.name: each.skipped for each in result.compensation.consumers if each.skipped}
    assert skipped["model.layers.2.self_attn.o_proj"] == held
    for module in ("model.layers.0.", "model.layers.2.self_attn.", "lm_head", "model.embed"):
        untouched(result, model, module)


def test_what_is_shared_with_the_outside_is_outside() -> None:
    """The head is the embedding, and not among the modules that may change."""
    model = tiny_llama(tie_word_embeddings=True)
    with pytest.raises(SelectionError, match=r"every one chosen is protected \(only=model\)"):
        fxprune.prune(model, criterion="magnitude", kinds="channel", only="model")
    whole = fxprune.prune(
        model, criterion="magnitude", kinds="channel", only=("model", "lm_head"), pruning_ratio=0.1
    )
    assert "channel" in str(whole.plan.kept)


@pytest.mark.parametrize("schedule", ["one-shot", "run", "first"])
def test_blocks_of_some_layers(schedule: Any) -> None:
    model = tiny_llama(num_hidden_layers=4)
    depth = Depth(remove=2, schedule=schedule, keep_first=0, keep_last=0)
    for options in ({"layers": "1-2"}, {"only": ("model.layers.[12]",)}):
        result = fxprune.prune(model, depth=depth, calibration=IDS, compensation=None, **options)
        assert sorted(result.plan.removed) == ["model.layers.1:block", "model.layers.2:block"]
    with pytest.raises(DepthError, match="1 may, 3 more are protected"):
        fxprune.prune(model, depth=depth, calibration=IDS, layers="3")


def test_an_unknown_module() -> None:
    with pytest.raises(SelectionError, match=r"no such module; close: model.layers.1"):
        fxprune.prune(tiny_llama(), criterion="magnitude", ignore="model.layer.1")
