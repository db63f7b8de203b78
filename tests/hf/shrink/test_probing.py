"""Entries of configs that are found by changing them, and configs of which only one computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.hf.shrink import probing
from fxprune.hf.shrink.fields import Change
from fxprune.plan import Plan
from tests.classes import build

# Type of model: kind and number of the group of a layer, and entries of the smaller config.
ENTRIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mamba2": ("state", "#2", {"num_heads": 4, "expand": 1, "n_groups": 2}),
    # Shapes would allow other sizes of the heads of Mamba as well, which is not what runs.
    "bamba": ("attention", "", {"num_attention_heads": 2, "mamba_d_head": 16}),
    # A list has a number for each layer.
    "laguna": ("attention", "", {"num_attention_heads_per_layer": [2] * 4}),
    # The model gives its layers numbers that no file has.
    "falcon_h1": ("mlp", "", {"intermediate_size": 48}),
}
ALIKE = {"mamba2", "falcon_h1"}  # of either kind one runs by default


@pytest.mark.filterwarnings("ignore:.*takes only these sizes:fxprune.FxpruneWarning")
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in ENTRIES],
)
def test_a_stock_checkpoint_of_what_stays(model_type: str, tmp_path: Path) -> None:
    kind, number, expected = ENTRIES[model_type]
    model = build.build(model_type)
    inputs = build.inputs(model)
    traced = fxprune.trace(model, kwargs=inputs)
    graph = fxprune.discover(traced)
    chosen = [g for g in graph.groups if g.kind == kind and g.name.endswith(f"s{number}")]
    plan = Plan.of(graph, {group.name: tuple(range(0, group.size, 2)) for group in chosen})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert {name: getattr(small.config, name) for name in expected} == expected
    with torch.no_grad():
        logits = small(**inputs).logits
        torch.testing.assert_close(logits, fxprune.rewrite(traced, plan)(**inputs).logits)
        fxprune.save(small, tmp_path / "m", plan=plan)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        torch.testing.assert_close(again(**inputs).logits, logits, rtol=1e-6, atol=1e-6)


def test_numbers_for_several_groups() -> None:
    groups = Change("m.0.mixer:states", "states", 2, 1, ("m", 0))
    heads = Change("m.0.mixer:states#2", "states", 4, 2, ("m", 0))
    entries = {"n_groups": 2, "num_heads": 8, "expand": 2, "conv": 3, "heads": [8, 8]}
    found = list(probing.combined(entries, [groups, heads]))
    assert {"n_groups": 1, "num_heads": 2, "expand": 0.5} in found
    assert {"n_groups": 1, "num_heads": 2, "expand": 1} in found
    assert {"num_heads": 2, "heads": [2, 2]} in found
    assert not [edits for edits in found if edits.get("conv") not in (None, 3 / 4)]
