"""The smaller GraphModule as users meet it: modules, training, compilation, memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import PlanError
from fxprune.plan import Plan
from tests.llama import tiny_llama

IDS = torch.arange(44).view(4, 11) % 90


def tiny_gpt2() -> nn.Module:
    sizes = {"vocab_size": 90, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def half(graph: fxprune.DependencyGraph, *kinds: str) -> Plan:
    """Keep every second unit of every group of these kinds."""
    return Plan.of(
        graph, {g.name: tuple(range(0, g.size, 2)) for g in graph.groups if g.kind in kinds}
    )


def rewritten(model: nn.Module, *kinds: str) -> tuple[fx.GraphModule, Plan, fxprune.Traced]:
    traced = fxprune.trace(model)
    plan = half(fxprune.discover(traced), *(kinds or ("mlp", "attention")))
    return fxprune.rewrite(traced, plan), plan, traced


@pytest.mark.usefixtures("with_lines")
def test_leaf_modules_are_back_under_their_own_names() -> None:
    small, _, _ = rewritten(tiny_llama(), "mlp", "attention", "channel")
    gate = small.get_submodule("model.layers.0.mlp.gate_proj")
    assert isinstance(gate, nn.Linear)
    assert (gate.in_features, gate.out_features) == gate.weight.shape[::-1] == (18, 20)
    assert isinstance(small.get_submodule("model.embed_tokens"), nn.Embedding)
    assert small.get_submodule("model.embed_tokens").embedding_dim == 18
    assert type(small.get_submodule("model.norm")).__name__ == "LlamaRMSNorm"
    called = {n.target for n in small.graph.nodes if n.op == "call_module"}
    assert "lm_head" in called
    assert "model.layers.1.self_attn.q_proj" in called
    kept = next(n for n in small.graph.nodes if n.target == "model.layers.0.mlp.gate_proj")
    assert "modeling_llama.py" in kept.meta["stack_trace"]
    assert kept.meta["nn_module_stack"]


def test_a_hook_on_a_leaf_of_the_original_stays_there() -> None:
    model = tiny_llama()
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    small, _, _ = rewritten(model)
    calls.clear()
    small(input_ids=IDS)
    assert not calls


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("mlp.up_proj", lambda x, n: n * x),
        ("input_layernorm", lambda x, n: torch.add(x, x, alpha=n - 1)),
    ],
    ids=["mul", "alpha"],
)
def test_what_a_hook_on_a_leaf_adds_stays_in_the_graph(name: str, times: Any) -> None:
    """Also where the same hook changes nothing in another layer."""
    model = tiny_llama()
    for layer, factor in enumerate((1.0, 2.0)):
        leaf = model.get_submodule(f"model.layers.{layer}.{name}")
        leaf.register_forward_hook(lambda _, __, output, factor=factor: times(output, factor))
    small, plan, traced = rewritten(model)
    fxprune.verify(traced, small, plan)
    called = {n.target for n in small.graph.nodes if n.op == "call_module"}
    assert f"model.layers.1.{name}" not in called
    assert "model.layers.1.post_attention_layernorm" in called


def test_conv1d_comes_back_as_itself() -> None:
    model = tiny_gpt2()
    small, plan, traced = rewritten(model, "mlp", "attention", "head_dim", "channel")
    fxprune.verify(traced, small, plan)
    layer = small.get_submodule("transformer.h.0.attn.c_attn")
    assert type(layer).__name__ == "Conv1D"
    assert (layer.nx, layer.nf) == tuple(layer.weight.shape)


def test_tied_weights_stay_tied() -> None:
    small, plan, traced = rewritten(tiny_llama(tie_word_embeddings=True), "mlp", "channel")
    fxprune.verify(traced, small, plan)
    embedding = small.get_submodule("model.embed_tokens")
    assert small.get_submodule("lm_head").weight is embedding.weight
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


def test_peft_injects_trains_and_merges_by_module_name() -> None:
    small, _, _ = rewritten(tiny_llama())
    dense = small(input_ids=IDS).logits
    tuned = get_peft_model(small, LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
    logits = tuned(input_ids=IDS).logits
    torch.testing.assert_close(logits, dense)
    F.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    lora = [p for n, p in tuned.named_parameters() if "lora_B" in n]
    assert len(lora) == 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora)
    with torch.no_grad():
        for p in lora:
            p.add_(0.1)
    expected = tuned(input_ids=IDS).logits
    torch.testing.assert_close(tuned.merge_and_unload()(input_ids=IDS).logits, expected)


def test_it_compiles() -> None:
    small, _, _ = rewritten(tiny_llama())
    compiled = torch.compile(small, backend="aot_eager", dynamic=True)
    for shape in ((4, 11), (2, 7)):
        ids = torch.randint(0, 90, shape)
        with torch.no_grad():
            torch.testing.assert_close(compiled(input_ids=ids).logits, small(input_ids=ids).logits)


def test_dropout_works_in_training_only() -> None:
    small, _, _ = rewritten(tiny_gpt2())
    assert not small.training
    assert torch.equal(small(input_ids=IDS).logits, small(input_ids=IDS).logits)
    small.train()
    assert not torch.equal(small(input_ids=IDS).logits, small(input_ids=IDS).logits)


def test_the_mode_is_the_originals() -> None:
    small, _, _ = rewritten(tiny_llama().train())
    assert small.training
    assert small.get_submodule("model.norm").training


def test_frozen_parameters_stay_frozen() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    small, _, _ = rewritten(model)
    assert not small.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad
    assert small.get_parameter("model.layers.0.mlp.gate_proj.weight").requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    small, plan, traced = rewritten(tiny_llama().to(dtype), "mlp", "attention", "channel")
    assert small(input_ids=IDS).logits.dtype == dtype
    fxprune.verify(traced, small, plan, {"input_ids": IDS})


def test_it_can_be_pruned_again() -> None:
    small, _, _ = rewritten(tiny_llama())
    traced = fxprune.trace(small, kwargs={"input_ids": IDS})
    graph = fxprune.discover(traced)
    assert graph["model.layers.0.mlp:units"].size == 20
    plan = half(graph, "mlp", "channel")
    again = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, again, plan)
    assert again.get_submodule("model.layers.0.mlp.gate_proj").out_features == 10


def test_recorded_values_have_the_new_shapes() -> None:
    small, _, _ = rewritten(tiny_llama())
    node = next(n for n in small.graph.nodes if n.target == "model.layers.0.mlp.gate_proj")
    batch, length, width = node.meta["val"].shape
    assert width == 20
    assert not isinstance(batch, int)
    assert not isinstance(length, int)


def test_unpruned_tensors_are_shared_and_the_rest_copied() -> None:
    model = tiny_llama()
    small, _, _ = rewritten(model, "mlp")
    theirs, mine = dict(model.named_parameters()), dict(small.named_parameters())
    for name, parameter in mine.items():
        assert (parameter is theirs[name]) == ("mlp" not in name)


def test_consume_frees_what_it_slices() -> None:
    model = tiny_llama()
    reference = copy.deepcopy(model)
    traced = fxprune.trace(model)
    plan = half(fxprune.discover(traced), "mlp", "attention")
    small = fxprune.rewrite(traced, plan, consume=True)
    assert model.model.layers[0].mlp.gate_proj.weight.numel() == 0
    assert model.lm_head.weight is small.get_parameter("lm_head.weight")
    fxprune.verify(fxprune.trace(reference), small, plan)


def test_a_bad_plan_is_refused_before_consuming_anything() -> None:
    model = tiny_llama()
    traced = fxprune.trace(model)
    other = tiny_llama(intermediate_size=44)
    plan = half(fxprune.discover(fxprune.trace(other)), "mlp")
    with pytest.raises(PlanError, match=r"mlp"):
        fxprune.rewrite(traced, plan, consume=True)
    assert model.model.layers[0].mlp.gate_proj.weight.numel() == 36 * 40
