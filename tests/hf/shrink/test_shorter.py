"""Configs with fewer layers, for the ways in which configs speak of single layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxprune
from fxprune import bypass, shrink
from fxprune.errors import ShrinkError
from fxprune.hf.folder import checkpoint
from fxprune.hf.shrink.builder import Builder
from fxprune.hf.shrink.fill import check_unsaved, differences, misfit, named_tensors
from fxprune.hf.shrink.rehost import refusal
from fxprune.hf.shrink.shorter import _periods, _readings
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.plan import Plan
from tests.classes import build
from tests.classes.config import tiny

WAYS = {
    # type: block that goes, and entries of the smaller config
    "nemotron_h": ("model.layers.1:block", {"num_hidden_layers": 3}),  # counted from a list
    "jamba": ("model.layers.1:block", {"attn_layer_period": 3, "attn_layer_offset": 2}),
    "hy_v4": ("model.layers.3:block", {}),  # a list for each layer that is called otherwise
    "llama4_text": ("model.layers.1:block", {"moe_layers": [0, 1, 2]}),  # all layers, by number
    "xlstm": ("backbone.blocks.0:block", {"num_blocks": 1, "num_hidden_layers": 1}),
    "recurrent_gemma": ("model.layers.0:block", {"num_hidden_layers": 3}),  # a list that repeats
    "minicpm3": ("model.layers.0:block", {"scale_depth": 1.4 / 2**0.5}),
    "gemma4_unified_text": ("model.layers.0:block", {"num_hidden_layers": 3}),  # sizes of layers
}


def without(model_type: str, block: str, device: str = "meta") -> tuple[Any, Any, Names]:
    """A model, and what is built for it without a block."""
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(tiny(model_type))
    stacks = shortened(model, [block])
    names = Names(stacks)
    return model, next(Builder(model, stacks, names, named_tensors(model), []).candidates()), names


@pytest.mark.parametrize("model_type", WAYS)
def test_the_layers_that_stay_are_what_they_were(model_type: str) -> None:
    block, expected = WAYS[model_type]
    model, small, names = without(model_type, block)
    assert not misfit(small, named_tensors(model), names)
    assert not [each for each in differences(model, small, names, ()) if not each.counts]
    for name, value in expected.items():
        found = getattr(small.config, name)
        assert found == (pytest.approx(value) if isinstance(value, float) else value)


def shorter(model: Any, place: int) -> tuple[fxprune.Traced, Plan]:
    traced = fxprune.trace(model, kwargs=build.inputs(model))
    blocks = fxprune.find_branches(traced).of("block")
    return traced, Plan.of(fxprune.discover(bypass(traced, [blocks[place].name])), {})


def test_what_comes_of_a_number_only_outputs_tell() -> None:
    """A layer of GPT-Neo knows its number for its cache; one of BEAM is scaled by it."""
    model = build.build("gpt_neo")
    traced, plan = shorter(model, 0)
    with pytest.raises(ShrinkError, match=r"attn.layer_id is 2, and as"):
        shrink(model, plan)
    small: Any = shrink(model, plan, traced=traced)
    assert [layer.attn.layer_id for layer in small.transformer.h] == [0, 1, 2]
    assert small.config.attention_types == [[["global", "global", "local"], 1]]
    model, small, names = without("beam", "model.layers.0:block")
    found = [each.text for each in differences(model, small, names, ()) if not each.counts]
    assert "model.layers.1.attn_residual_add_idx is 4, and as model.layers.0" in found[0]


def test_what_a_run_leaves_behind_is_no_difference() -> None:
    """BigBird turns to full attention, for good, when it meets a short text."""
    model = build.build("big_bird")
    traced, plan = shorter(model, 0)
    model(**build.inputs(model))
    with pytest.raises(ShrinkError, match="attention_type is 'original_full'"):
        shrink(model, plan)
    small: Any = shrink(model, plan, traced=traced)
    assert len(small.bert.encoder.layer) == 1


def test_buffers_that_an_outer_module_computes() -> None:
    """Falcon H1 gives all layers the same vector, which no checkpoint holds."""
    model, small, names = without("falcon_h1", "model.layers.0:block", "cpu")
    check_unsaved(small, named_tensors(model), names)
    vector = model.model.layers[1].mamba.mup_vector
    assert small.model.layers[0].mamba.mup_vector.equal(vector)
    vector.mul_(1.5)
    with pytest.raises(ShrinkError, match=r"mup_vector is not saved, and FalconH1ForCausalLM"):
        check_unsaved(small, named_tensors(model), names)


def test_a_table_with_a_part_for_each_layer(tmp_path: Any) -> None:
    """Gemma 4 embeds tokens for each layer, and reads the sizes of single layers itself."""
    model = build.build("gemma4_text")
    traced, plan = shorter(model, 0)
    with pytest.raises(ShrinkError, match=r"embed_tokens_per_layer.weight has shape"):
        shrink(model, plan)
    small: Any = shrink(model, plan, traced=traced)
    before, after = (m.model.embed_tokens_per_layer.weight for m in (model, small))
    assert after.equal(before[:, before.shape[1] // 4 :])
    checkpoint.save(small, tmp_path / "m", plan=plan)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    inputs = build.inputs(model)
    with torch.no_grad():
        assert again(**inputs).logits.equal(small(**inputs).logits)


def test_what_a_config_changes_by_itself_is_named() -> None:
    """Gemma 4 ends with full attention."""
    _, small, _ = without("gemma4", "model.language_model.layers.3:block")
    assert re.match(r"text_config\.layer_types .* becomes .*'full_attention'\]$", refusal(small))
    _, small, _ = without("gemma4", "model.language_model.layers.1:block")
    assert not refusal(small)


@pytest.mark.parametrize(
    ("name", "value", "kept", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], (0, 2, 3), ["a", "c", "d"]),
        ("dense_layers", [0, 3], (0, 2, 3), [0, 2]),
        ("moe_layers", [0, 1, 2, 3], (0, 2, 3), [0, 1, 2]),
        ("no_rope_layers", [1, 1, 1, 0], (0, 2, 3), [1, 1, 0]),
        ("pattern", "ME*-", (0, 2, 3), "M*-"),
        ("kinds", [[["a", "b"], 2]], (0, 2, 3), [[["a", "a", "b"], 1]]),
        ("first_k_dense", 2, (0, 2, 3), 1),
        ("intermediate", 3, (0, 2, 3), None),
        ("betas", [0.1, 0.2, 0.3, 0.4], (0, 2, 3), None),
    ],
)
def test_readings(name: str, value: Any, kept: tuple[int, ...], expected: Any) -> None:
    (stack,) = shortened(
        torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Identity() for _ in "0123")}),
        [f"layers.{i}:block" for i in {*range(4)} - {*kept}],
    )
    assert next(_readings(name, value, stack), None) == expected


def test_periods() -> None:
    model = torch.nn.ModuleDict({"h": torch.nn.ModuleList(torch.nn.Identity() for _ in "012345")})
    (stack,) = shortened(model, ["h.0:block"])
    assert list(_periods(2, 1, stack)) == [(2, 0)]  # of 1, 2, 3, 4, 5 the odd ones
    (stack,) = shortened(model, ["h.2:block"])
    assert not list(_periods(2, 1, stack))  # 1, 3 and 5 stand at 1, 2 and 4 then
