"""Parameters that a token meets, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

import fxprune
from fxprune import costs
from tests import loops
from tests.marks import but_slow

_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2,
}  # fmt: skip
_MODELS = {
    "one choice": transformers.MixtralConfig(**_SIZES, num_local_experts=8),
    "biases of experts": transformers.GptOssConfig(
        **_SIZES, num_local_experts=8, layer_types=["full_attention"] * 2
    ),
    "groups first, and a correction": transformers.DeepseekV3Config(
        **(_SIZES | {"head_dim": 4}), n_routed_experts=8, n_group=4, topk_group=2,
        moe_intermediate_size=24, first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", but_slow(_MODELS, "biases of experts", "groups first, and a correction")
)
def test_of_experts_as_many_as_are_chosen(name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(_MODELS[name])
    graph = fxprune.discover(fxprune.trace(model.eval()))
    stacked = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    total = sum(p.numel() for p in model.parameters())
    assert costs.active_parameters(graph) == total - stacked // 8 * 6
    # A plan that takes experts takes none of those that are active, and its rows of the router.
    taken = {g.dim: g.size // 2 for g in graph.groups if g.kind == "expert" and g.size == 8}
    if taken:
        routers = [
            p for n, p in model.named_parameters() if n.endswith(("router.weight", "gate.weight"))
        ]
        gone = sum(p.numel() // 2 for p in routers) + (4 * 2 if "biases" in name else 0)
        assert costs.active_parameters(graph, taken) == total - stacked // 8 * 6 - gone


def test_all_of_a_dense_model() -> None:
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**_SIZES))
    graph = fxprune.discover(fxprune.trace(model.eval()))
    assert costs.active_parameters(graph) == sum(p.numel() for p in model.parameters())


def test_of_experts_that_a_loop_takes_one_by_one() -> None:
    model = loops.built(loops.by_tensor)
    graph = fxprune.discover(fxprune.trace(model, (loops.inputs(9),)))
    unused = (loops.EXPERTS - loops.CHOSEN) * 2 * loops.INNER * loops.HIDDEN
    total = sum(p.numel() for p in model.parameters())
    assert costs.active_parameters(graph) == total - unused
