"""LoRA: where it goes, how large it is, and what merging gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import RecoveryError
from fxprune.recover.adapters import attach, merge, targets
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.own import own_flags
from fxprune.recover.runs import ADAPTER
from tests import zoo
from tests.benches.test_published_sizes import plan_of
from tests.costs.published import graph_of
from tests.hf import tiny
from tests.models import PlaneModel
from tests.recover.cases import IDS, KINDS, assert_same, pruned, run, state_of

both_kinds = pytest.mark.parametrize("kind", KINDS)


def alone(kind: str, *which: str) -> Any:
    """A pruned model that can be frozen without freezing the original too."""
    module = pruned(kind, *which)
    own_flags(module)
    return module


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def logits(module: Any) -> torch.Tensor:
    found = module(input_ids=IDS[:3])
    return found if isinstance(found, torch.Tensor) else found.logits


# Sizes


@pytest.mark.slow
def test_published_sizes() -> None:
    """Of LLM-Pruner and Shortened LLaMA: rank 8, all linear layers but the output layer."""
    graph = graph_of("llama7b")
    model: Any = graph.traced.module
    block20 = plan_of("llama7b.block20")
    sizes = {layer: block20.kept[f"model.layers.{layer}.mlp:units"] for layer in (4, 29)}
    assert {len(units) for units in sizes.values()} == {8256}
    shorter = fxprune.bypass(graph.traced, [f"model.layers.{i}:block" for i in range(21, 27)])
    depth = fxprune.Plan.of(fxprune.discover(shorter), {})
    assert trainable(attach(fxprune.rewrite(graph.traced, block20), LoRA())) == 17_419_264
    assert trainable(attach(fxprune.shrink(model, depth), LoRA())) == 16_240_640
    # Last, as it is put into the model itself.
    whole = attach(model, LoRA())
    assert trainable(whole) == 19_988_480
    assert all(p.is_meta for p in whole.parameters())
    whole.unload()
    model.requires_grad_(True)


# Where


@both_kinds
@pytest.mark.parametrize("name", ["tiny", "gpt2", "opt", "phi3"])
def test_all_linear(name: str, kind: str) -> None:
    """Linear layers of the blocks, whether the output layer is tied or not."""
    layers = {"tiny": 3 * 7, "gpt2": 2 * 4, "opt": 2 * 6, "phi3": 2 * 4}[name]
    module = pruned(kind, "width", name)
    found = targets(module, LoRA())
    assert len(found) == layers
    assert not any("head" in each or "embed" in each for each in found)
    for each in found:
        assert type(module.get_submodule(each)).__name__ in ("Linear", "Conv1D")


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_left_out(tied: bool) -> None:
    model = tiny.llama(tie_word_embeddings=tied)
    # In a wrapper the output layer is not known, but that it is tied is.
    for module in (model, nn.ModuleDict({"inner": model}))[: 1 + tied]:
        found = targets(module, LoRA())
        assert len(found) == 14
        assert not any("lm_head" in each for each in found)
    if tied:
        with pytest.raises(RecoveryError, match="lm_head shares its weight with another layer"):
            targets(model, LoRA(targets=["q_proj", "lm_head"]))
    else:
        assert len(targets(model, LoRA(targets=["q_proj", "lm_head"]))) == 3


def test_by_name() -> None:
    model = tiny.llama()
    assert targets(model, LoRA(targets=["q_proj", "v_proj"])) == [
        f"model.layers.{layer}.self_attn.{each}_proj" for layer in (0, 1) for each in "qv"
    ]
    assert targets(model, LoRA(targets=("model.layers.1.mlp.up_proj",))) == [
        "model.layers.1.mlp.up_proj"
    ]
    assert targets(model, LoRA(targets=["1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"]


def test_names_that_fit_none() -> None:
    model = tiny.llama()
    with pytest.raises(RecoveryError, match=r"'query'; there are down_proj, gate_proj, k_proj"):
        targets(model, LoRA(targets=["q_proj", "query"]))
    with pytest.raises(RecoveryError, match="'proj'"):  # the end of a name, but no whole part
        targets(model, LoRA(targets=["proj"]))
    with pytest.raises(RecoveryError, match="'embed_tokens'"):
        targets(model, LoRA(targets=["embed_tokens"]))
    with pytest.raises(RecoveryError, match="Embedding has no linear layers"):
        targets(nn.Embedding(2, 2), LoRA())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "a rank of 0"),
        ({"dropout": 1.0}, r"a dropout of 1\.0"),
        ({"targets": "q_proj"}, "give 'all-linear' or a list"),
        ({"targets": []}, "give 'all-linear' or a list"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        LoRA(**options)


def test_a_name_that_ends_another() -> None:
    """PEFT takes "0" for "3.0" too, which is a convolution here."""
    module = nn.Sequential(
        nn.Linear(20, 40), nn.ReLU(), nn.Unflatten(1, (10, 4)), nn.Sequential(nn.Conv1d(10, 7, 1))
    )
    assert targets(module, LoRA()) == ["0"]
    adapted = attach(module, LoRA(rank=2))
    assert trainable(adapted) == 2 * (20 + 40)
    assert type(module[3][0]) is nn.Conv1d


# Starting values, merging and files


def test_starting_values() -> None:
    """The same in the graph and in the shrunk model, whose layers are renumbered."""
    found = []
    for kind in KINDS:
        torch.manual_seed(5)
        adapted = attach(alone(kind, "both"), LoRA(rank=2), seed=3)
        assert torch.initial_seed() == 5
        found.append({n: p for n, p in adapted.named_parameters() if "lora" in n})
    graph, shrunk = found
    assert next(iter(graph)).startswith("base_model.model.model.layers.0.")
    renamed = {name.replace("layers.2.", "layers.1."): p for name, p in graph.items()}
    assert renamed.keys() == shrunk.keys()
    for name, parameter in renamed.items():
        assert torch.equal(parameter, shrunk[name])
        assert parameter.any() == ("lora_A" in name)
    other = attach(alone("shrunk", "both"), LoRA(rank=2), seed=4)
    assert all(torch.equal(other.get_parameter(n), p) == ("lora_B" in n) for n, p in shrunk.items())


@both_kinds
@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_merging(name: str, kind: str) -> None:
    module = alone(kind, "width", name)
    before = logits(module)
    names = list(module.state_dict())
    adapted = attach(module, LoRA(rank=2, alpha=6))
    torch.testing.assert_close(logits(adapted), before, rtol=0, atol=0)
    with torch.no_grad():
        for each, parameter in adapted.named_parameters():
            if "lora_B" in each:
                parameter.normal_(std=0.05)
    expected = logits(adapted.eval())
    assert (expected - before).abs().max() > 0.05
    merged = merge(adapted)
    assert merged is module
    assert list(module.state_dict()) == names
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


def test_the_product_of_the_factors() -> None:
    layer = nn.Linear(5, 3)
    module = nn.Sequential(layer)
    weight = layer.weight.detach().clone()
    adapted = attach(module, LoRA(rank=2, alpha=6))
    factors = dict(adapted.named_parameters())
    a = factors["base_model.model.0.lora_A.default.weight"]
    b = factors["base_model.model.0.lora_B.default.weight"]
    with torch.no_grad():
        b.normal_()
    expected = weight + 3 * b @ a
    torch.testing.assert_close(merge(adapted).get_parameter("0.weight"), expected)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # PEFT's
@both_kinds
def test_the_adapter_in_the_folder(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged = run(pruned(kind), LoRA(rank=2), steps=3, out=out, learning_rate=3e-2).module
    fresh = alone("shrunk")
    before = logits(fresh)
    adapted = peft.PeftModel.from_pretrained(fresh, out / ADAPTER)
    torch.testing.assert_close(logits(adapted.eval()), logits(merged), rtol=0, atol=1e-5)
    assert (logits(merged) - before).abs().max() > 1e-3
    assert not list(out.rglob("*.bin"))


def test_full_training_has_no_adapter(tmp_path: Path) -> None:
    run(pruned("graph"), FullTraining(), steps=1, out=tmp_path / "out")
    assert not (tmp_path / "out" / ADAPTER).exists()


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name)
    )
    module = pruned("graph")
    before = state_of(module)
    with pytest.raises(RecoveryError, match=r"pip install 'fxprune\[recover\]'"):
        run(module, LoRA())
    assert_same(module, before)


def test_a_model_in_plain_torch() -> None:
    model = PlaneModel().eval()
    zoo.disturb(model)
    names = targets(model, LoRA())
    assert {name.rpartition(".")[2] for name in names} >= {"dense", "query_key_value"}
    traced = fxprune.trace(model, kwargs={"input_ids": IDS[:2]})
    graph = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    assert set(targets(graph, LoRA())) == set(names) - {"lm_head"}
