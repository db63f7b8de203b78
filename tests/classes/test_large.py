"""Mixtures of experts of published sizes, without weights: counted to the integer."""

from __future__ import annotations

import copy
import resource
import time
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune import costs
from fxprune.plan import Plan

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::fxprune.FxpruneWarning")]
SECONDS, MEBIBYTES = 90, 2048
QWEN3_30B_A3B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "tie_word_embeddings": False,
}  # fmt: skip
# Config, the entry that counts experts, billions of parameters: all, active (embeddings too).
MODELS: dict[str, tuple[Any, str, float, float]] = {
    "Mixtral-8x7B": (transformers.MixtralConfig, "num_local_experts", 46.7, 12.9),
    "Qwen3-30B-A3B": (transformers.Qwen3MoeConfig, "num_experts", 30.5, 3.3),
    "gpt-oss-120b": (transformers.GptOssConfig, "num_local_experts", 116.8, 5.7),
    "DeepSeek-V3": (transformers.DeepseekV3Config, "n_routed_experts", 671.0, 37.6),
}


def blank(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_quarter_of_the_experts(name: str) -> None:
    make, entry, billions, active = MODELS[name]
    start = time.process_time()
    config = make(**QWEN3_30B_A3B) if name.startswith("Qwen3") else make()
    graph = fxprune.discover(fxprune.trace(blank(config)))
    assert costs.facts(graph)["parameters"] == pytest.approx(billions * 1e9, rel=0.005)
    assert costs.active_parameters(graph) == pytest.approx(active * 1e9, rel=0.02)
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEBIBYTES * 1024
    # Where experts are chosen in groups, the same number goes from each.
    largest: dict[Any, Any] = {}
    for group in graph.groups:
        if group.kind == "expert" and group.size >= getattr(largest.get(group.layer), "size", 0):
            largest[group.layer] = group
    kept = {group.name: tuple(range(group.size // 4, group.size)) for group in largest.values()}
    smaller = copy.deepcopy(config)
    setattr(smaller, entry, getattr(config, entry) * 3 // 4)
    expected = sum(p.numel() for p in blank(smaller).parameters())
    assert Plan.of(graph, kept).parameters_after == expected
