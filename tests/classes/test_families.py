"""Mixtures of experts and hybrids: what is pruned generates as stock models do and as the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.errors import InputError, SelectionError
from fxprune.plan import Plan
from tests.classes import build

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::fxprune.FxpruneWarning")]
FAMILIES = (
    "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "glm4_moe", "llama4_text", "qwen3_next",
    "lfm2_moe", "jamba", "nemotron_h", "bamba", "falcon_h1",
)  # fmt: skip
KINDS = ("expert", "attention", "state")
NEW = 4


def followed(graph: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the graph continues with, each token from the whole text before it."""
    for _ in range(NEW):
        logits = graph(input_ids=ids).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids


def opened_again(small: Any, plan: Plan, graph: Any, inputs: dict[str, Any], folder: Path) -> None:
    fxprune.save(small, folder, plan=plan)
    stock: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            stock(**inputs).logits, graph(**inputs).logits, rtol=1e-4, atol=1e-4
        )
        stock.generation_config.eos_token_id = None
        options = {"max_new_tokens": NEW, "do_sample": False}
        ids = stock.generate(**inputs, use_cache=True, **options)
        try:
            expected = followed(graph, inputs["input_ids"])
        except InputError:  # a graph that is for one length
            expected = stock.generate(**inputs, use_cache=False, **options)
        assert torch.equal(ids, expected)


@pytest.mark.parametrize("kind", [*KINDS, "all", "block"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_generates(model_type: str, kind: str, tmp_path: Path) -> None:
    model = build.build(model_type)
    inputs = build.inputs(model)
    traced = fxprune.trace(model, kwargs=inputs)
    graph = fxprune.discover(traced)
    if kind == "block":
        blocks = fxprune.find_branches(traced).of("block")
        shorter = fxprune.bypass(traced, [blocks[0].name])
        plan = Plan.of(fxprune.discover(shorter), {})
    else:
        kinds = KINDS if kind == "all" else (kind,)
        chosen = [g for g in graph.groups if g.kind in kinds and g.size > g.least]
        if not chosen:
            pytest.skip(f"no groups of kind {kind}")
        kept = {g.name: tuple(range(g.size))[-max(g.least, g.size // 2) :] for g in chosen}
        plan = Plan.of(graph, kept)
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    opened_again(fxprune.shrink(model, plan, traced=traced), plan, small, inputs, tmp_path / "m")


_WITHOUT = ("bamba", "falcon_h1")  # experts


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in _WITHOUT])
def test_experts_scored_by_reap_go(model_type: str, share: float, tmp_path: Path) -> None:
    model = build.build(model_type)
    inputs = build.inputs(model)
    traced = fxprune.trace(model, kwargs=inputs)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(
        model, graph, fxprune.criteria.REAP(), inputs["input_ids"], kinds=["expert"]
    )
    budget = fxprune.Budget(units=share)
    try:
        plan = fxprune.select(graph, scores, budget=budget, kinds=["expert"])
    except SelectionError as error:
        pytest.skip(str(error))
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    opened_again(fxprune.shrink(model, plan, traced=traced), plan, small, inputs, tmp_path / "m")
