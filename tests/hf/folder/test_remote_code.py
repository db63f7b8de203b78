"""A model whose code is not in transformers: captured, pruned, trained, and opened by a builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fxprune
from fxprune.errors import (
    CheckpointError,
    FxpruneWarning,
    InputError,
    ShrinkError,
    TraceError,
)
from fxprune.plan import Plan
from tests import remote, zoo


def inputs(batch: int = 3, length: int = 11) -> dict[str, torch.Tensor]:
    ids = remote.rows(batch, length)
    positions, mask = remote.inputs_of(ids)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}


@pytest.fixture(scope="module")
def traced() -> fxprune.Traced:
    model = remote.build()
    zoo.disturb(model)
    return fxprune.trace(model, kwargs=inputs())


def pruned(traced: fxprune.Traced) -> tuple[Any, Plan]:
    """Half of the heads and of the hidden units go, other ones in each layer."""
    graph = fxprune.discover(traced)
    kept = {
        group.name: tuple(range(i % 2, group.size, 2))
        for i, group in enumerate(g for g in graph.groups if g.kind in ("mlp", "attention"))
    }
    assert len(kept) == 4
    plan = Plan.of(graph, kept)
    return fxprune.rewrite(traced, plan), plan


def test_without_the_two_lines_it_computes_the_same(traced: fxprune.Traced) -> None:
    model = remote.original()
    model.load_state_dict(traced.module.state_dict())
    there = inputs(4, 17)
    with torch.no_grad():
        expected = model(**there).logits
        assert torch.equal(traced.module(**there).logits, expected)
        assert torch.equal(traced.graph_module(**there)["logits"], expected)


def test_with_the_two_lines_the_graph_is_of_one_example() -> None:
    model, example = remote.original(), inputs()
    with pytest.warns(FxpruneWarning, match="reads the numbers in position_ids, .* attention_mask"):
        found = fxprune.trace(model, kwargs=example)
    assert found.guards.held == ["position_ids", "attention_mask"]
    with torch.no_grad():
        assert torch.equal(found.graph_module(**example)["logits"], model(**example).logits)
    with pytest.raises(InputError, match="position_ids has other numbers"):
        found.graph_module(**{**example, "position_ids": example["position_ids"] + 1})


def test_what_reads_the_tokens_is_named() -> None:
    with pytest.raises(TraceError, match=r"remote.py:.*takes numbers out of a tensor.*remote-code"):
        fxprune.trace(remote.original(), kwargs={"input_ids": inputs()["input_ids"]})


def test_heads_and_hidden_units_at_any_length(traced: fxprune.Traced) -> None:
    small, plan = pruned(traced)
    for example in (None, inputs(1, 5), inputs(5, 40)):
        assert fxprune.verify(traced, small, plan, example).relative_error < 1e-5
    assert small.get_submodule("layers.0.dense_h_to_4h").out_features == 20
    assert small.get_submodule("layers.1.attention.dense").in_features == 24


def test_a_block(traced: fxprune.Traced) -> None:
    graph = fxprune.discover(fxprune.bypass(traced, ["layers.1:block"]))
    plan = Plan.of(graph, {})
    small = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, small, plan).relative_error < 1e-5


def batch_of(rows: list[torch.Tensor]) -> dict[str, Any]:
    ids = torch.stack(rows)
    positions, mask = remote.inputs_of(ids)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}


def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    output = model(**batch)
    return F.cross_entropy(
        output["logits"][:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    )


def test_trained_saved_and_opened_by_a_builder(traced: fxprune.Traced, tmp_path: Path) -> None:
    small, plan = pruned(traced)
    data = list(remote.rows(16, 9, seed=1))
    training = fxprune.Training(steps=6, batch_size=8, learning_rate=1e-2)
    done = fxprune.recover(
        small, data, fxprune.LoRA(rank=2), training=training, validation=0,
        loss_fn=loss, collate_fn=batch_of,
    )  # fmt: skip
    losses = [step.loss for step in done.history.steps]
    assert losses[-1] < losses[0]
    folder = fxprune.save(done.module, tmp_path / "m", plan=plan, traced=traced)
    with pytest.raises(CheckpointError, match=r"no class of transformers.*load\(path, model="):
        fxprune.load(folder)
    with torch.device("meta"):
        blank = remote.build()
    again: Any = fxprune.load(folder, model=blank)
    there = inputs(2, 23)
    with torch.no_grad():
        assert torch.equal(again(**there)["logits"], done.module(**there)["logits"])


def test_no_smaller_model_of_the_class(traced: fxprune.Traced, tmp_path: Path) -> None:
    model: Any = traced.module
    with pytest.raises(ShrinkError, match="transformers has no class RemoteForConditionalGenerat"):
        fxprune.shrink(model, pruned(traced)[1])
    result = fxprune.prune(model, kwargs=inputs(), pruning_ratio=0.1, criterion=fxprune.Magnitude())
    with pytest.warns(FxpruneWarning, match="result.model is the GraphModule: transformers has no"):
        assert result.model is result.graph_module
    assert "model=the original architecture) (not for transformers: " in result.save(tmp_path / "m")
