"""The rewritten graph against the same shapes built by hand in transformers.

``pytest benches/bench_speed.py -s`` prints the ratio; interleaved runs, random weights in the
shapes of SmolLM2-135M pruned by about 20 %.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.plan import Plan

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
KEPT_UNITS, KEPT_HEADS, ROUNDS = 1142, 2, 15


def _model(attention: str, **options: Any) -> LlamaForCausalLM:
    config = LlamaConfig(**{**SMOLLM2, **options}, attn_implementation=attention, use_cache=False)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_graph_is_no_slower_than_the_shapes_by_hand(attention: str) -> None:
    traced = fxprune.trace(_model(attention))
    graph = fxprune.discover(traced)
    kept = {"mlp": tuple(range(KEPT_UNITS)), "attention": tuple(range(KEPT_HEADS))}
    plan = Plan.of(graph, {g.name: kept[g.kind] for g in graph.groups if g.kind in kept})
    small = fxprune.rewrite(traced, plan)
    by_hand = _model(
        attention,
        intermediate_size=KEPT_UNITS,
        num_attention_heads=3 * KEPT_HEADS,
        num_key_value_heads=KEPT_HEADS,
    )
    parameters = sum(p.numel() for p in by_hand.parameters())
    assert plan.parameters_after == parameters

    ids = torch.randint(0, SMOLLM2["vocab_size"], (4, 128))
    times: dict[str, list[float]] = {"graph": [], "by hand": []}
    with torch.no_grad():
        for round_ in range(ROUNDS + 3):
            # Each goes first every other time: the second finds warmer caches.
            pair = [("graph", small), ("by hand", by_hand)]
            for name, model in pair if round_ % 2 else reversed(pair):
                start = time.perf_counter()
                model(input_ids=ids)
                if round_ >= 3:
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratio = medians["graph"] / medians["by hand"]
    removed = 1 - plan.parameters_after / plan.parameters_before
    print(
        f"\n{attention}, {removed:.1%} of parameters removed, forward of 4 x 128 tokens, "
        f"{torch.get_num_threads()} threads: graph {medians['graph'] * 1e3:.0f} ms, "
        f"by hand {medians['by hand'] * 1e3:.0f} ms, ratio {ratio:.3f}"
    )
    assert ratio <= 1.05
