"""Models that read pictures: the language part smaller, the whole as stock classes open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.errors import FxpruneWarning, ShrinkError
from fxprune.hf.shrink import parts
from fxprune.plan import Plan
from tests.hf import pictures


@pytest.fixture(scope="module")
def seen_whole() -> tuple[Any, dict[str, torch.Tensor], fxprune.Traced]:
    model, inputs = pictures.seen_whole()
    return model, inputs, fxprune.trace(model, kwargs=inputs)


@pytest.fixture(scope="module")
def of_any_size() -> tuple[Any, dict[str, torch.Tensor], fxprune.Traced]:
    """Captured for text alone."""
    model, inputs = pictures.of_any_size()
    return model, inputs, fxprune.trace(model)


def less(graph: fxprune.DependencyGraph, kind: str, inside: str = "") -> Plan:
    """Every group of a kind loses its first quarter, at least one unit."""
    kept = {
        g.name: tuple(range(max(1, g.size // 4), g.size))
        for g in graph.groups
        if g.kind == kind and inside in g.name
    }
    return Plan.of(graph, kept)


@torch.no_grad()
def assert_stock(small: Any, inputs: dict[str, torch.Tensor], plan: Plan, folder: Path) -> None:
    """The auto class opens it, bit-equal with pictures and without, and writes the same."""
    path = fxprune.save(small, folder, plan=plan)
    auto = transformers.AutoModelForImageTextToText
    again, found = auto.from_pretrained(path, output_loading_info=True)
    assert not any(found.values())
    for given in (inputs, pictures.text_of(inputs)):
        assert torch.equal(again.eval()(**given).logits, small(**given).logits)
    own = fxprune.load(path)
    assert torch.equal(own(**inputs).logits, small(**inputs).logits)
    options: Any = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    text = again.generate(**inputs, **options)
    assert torch.equal(text, again.generate(**inputs, **options, use_cache=False))


@pytest.mark.parametrize("kind", ["mlp", "attention", "query"])
def test_masks_by_rules_of_their_own(kind: str, seen_whole: Any, tmp_path: Path) -> None:
    model, inputs, traced = seen_whole
    plan = less(fxprune.discover(traced), kind, "language_model")
    graph_module = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, graph_module, plan).relative_error < 1e-5
    small: Any = fxprune.shrink(model, plan, graph_module)
    assert_stock(small, inputs, plan, tmp_path / "m")
    if kind == "mlp":
        assert small.config.text_config.intermediate_size == 30
        assert small.config.vision_config.intermediate_size == 44


def test_the_tower_alone(seen_whole: Any, tmp_path: Path) -> None:
    model, inputs, traced = seen_whole
    plan = less(fxprune.discover(traced), "mlp", "vision_tower")
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert small.config.vision_config.intermediate_size == 33
    assert_stock(small, inputs, plan, tmp_path / "m")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ignore": ("*vision_tower*", "*projector*")}, marks=pytest.mark.slow),
        {"only": ("model.language_model", "lm_head")},
    ],
)
def test_the_tower_is_left_alone_where_that_is_said(
    options: dict[str, Any], seen_whole: Any, tmp_path: Path
) -> None:
    model, inputs, _ = seen_whole
    result = fxprune.prune(
        model, kwargs=inputs, budget=fxprune.Budget(units=0.34), criterion=fxprune.Magnitude(),
        verify=False, **options,
    )  # fmt: skip
    assert all("language_model" in name for name in result.plan.kept)
    assert {name.rpartition(":")[2] for name in result.plan.kept} == {"heads", "units"}
    assert_stock(result.model, inputs, result.plan, tmp_path / "m")


def test_numbers_that_a_model_reads(of_any_size: Any, tmp_path: Path) -> None:
    """Rows and columns of a picture, and where in the text it stands."""
    model, inputs, _ = of_any_size
    with pytest.warns(FxpruneWarning, match="the model reads the numbers in image_grid_thw"):
        traced = fxprune.trace(model, kwargs=inputs)
    assert traced.guards.held == ["image_grid_thw", "mm_token_type_ids"]
    plan = less(fxprune.discover(traced), "mlp", "language_model")
    graph_module = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, graph_module, plan).relative_error < 1e-5
    small: Any = fxprune.shrink(model, plan, graph_module)
    assert_stock(small, inputs, plan, tmp_path / "m")


def test_the_language_part_by_text_alone(of_any_size: Any, tmp_path: Path) -> None:
    """With pictures, the original with those units at zero says what is right."""
    model, inputs, traced = of_any_size
    plan = less(fxprune.discover(traced), "mlp")
    small: Any = fxprune.shrink(model, plan, traced=traced)
    zeroed = {
        name: torch.cat((torch.zeros_like(tensor[:10]), tensor[10:]))
        for name, tensor in model.named_parameters()
        if "language_model" in name and name.endswith(("gate_proj.weight", "up_proj.weight"))
    }
    assert len(zeroed) == 4
    with torch.no_grad():
        expected = torch.func.functional_call(model, zeroed, (), inputs).logits
        torch.testing.assert_close(small(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert_stock(small, inputs, plan, tmp_path / "m")


def test_blocks_beside_a_part_that_was_not_captured(of_any_size: Any, tmp_path: Path) -> None:
    model, inputs, traced = of_any_size
    name = "model.language_model.layers.0:block"
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, [name])), {})
    assert parts.others(model) == ["model.visual"]
    with pytest.warns(FxpruneWarning, match="ran nothing of model.visual, so what Qwen2VL"):
        small: Any = fxprune.shrink(model, plan, traced=traced)
    assert_stock(small, inputs, plan, tmp_path / "m")


def test_blocks_of_a_tower_that_are_counted_as_depth(tmp_path: Path) -> None:
    model, inputs = pictures.of_any_size()
    with pytest.warns(FxpruneWarning, match="the model reads the numbers in image_grid_thw"):
        traced = fxprune.trace(model, kwargs=inputs)
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, ["model.visual.blocks.0:block"])), {})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert small.config.vision_config.depth == 1
    assert_stock(small, inputs, plan, tmp_path / "m")


def test_what_a_forward_pass_leaves() -> None:
    """It is no reason to refuse where outputs are compared, and is one where nothing is."""
    model, inputs = pictures.of_any_size()
    traced = fxprune.trace(model)
    with torch.no_grad():
        model(**inputs)
    assert isinstance(model.model.rope_deltas, torch.Tensor)
    assert fxprune.shrink(model, less(fxprune.discover(traced), "mlp"), traced=traced)
    name = "model.language_model.layers.0:block"
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, [name])), {})
    with pytest.raises(ShrinkError, match=r"model.rope_deltas is a tensor, .* set it to None if a"):
        fxprune.shrink(model, plan)
