"""Every folder that fxprune writes can be looked at without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CheckpointError, ModelError
from fxprune.inspect import page as html
from fxprune.inspect.blank import open_blank
from fxprune.inspect.page.widths import widths
from tests.hf import tiny
from tests.inspect.page.reading import check_alone, parsed, pictures, titles


@pytest.fixture(scope="module")
def dense() -> tuple[Any, fxprune.Traced, fxprune.DependencyGraph]:
    model = tiny.llama(num_hidden_layers=3)
    traced = fxprune.trace(model)
    return model, traced, fxprune.discover(traced)


def sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Before and after by group, of the MLPs and heads."""
    opened = open_blank(path)
    assert all(tensor.is_meta for tensor in opened.traced.tensors.values() if tensor.dim() > 1)
    found = widths(fxprune.discover(opened.traced), opened.plan, opened.original)
    return {w.name: (w.before, w.after) for w in found if w.kind in ("mlp", "attention")}


def test_a_model_with_layers_of_their_own_sizes(dense: Any, tmp_path: Path) -> None:
    model, _, graph = dense
    kept = {f"model.layers.{i}.mlp:units": range(i + 1, 40) for i in range(3)}
    plan = fxprune.Plan.of(graph, {**kept, "model.layers.1.self_attn:heads": [0]})
    fxprune.save(fxprune.shrink(model, plan), tmp_path / "small", plan=plan)
    with pytest.raises(ModelError, match="not a stock checkpoint"):  # what a loader says of it
        fxprune.hf.open.models.load_model(tmp_path / "small", meta=True)
    heads = {f"model.layers.{i}.self_attn:heads": (2, 1 if i == 1 else 2) for i in range(3)}
    mlps = {f"model.layers.{i}.mlp:units": (40, 39 - i) for i in range(3)}
    assert sizes(tmp_path / "small") == mlps | heads


def test_layers_that_went_keep_their_numbers(dense: Any, tmp_path: Path) -> None:
    model, traced, _ = dense
    shorter = fxprune.discover(fxprune.bypass(traced, ["model.layers.1:block"]))
    kept = {name: range(10) for name in ("model.layers.0.mlp:units", "model.layers.2.mlp:units")}
    plan = fxprune.Plan.of(shorter, kept)
    fxprune.save(fxprune.shrink(model, plan), tmp_path / "short", plan=plan)
    assert sizes(tmp_path / "short") == {
        **dict.fromkeys(kept, (40, 10)),
        "model.layers.0.self_attn:heads": (2, 2),
        "model.layers.2.self_attn:heads": (2, 2),
    }
    page = html.write_blank(open_blank(tmp_path / "short"), tmp_path / "m.html").read_text()
    (mlp,) = (p for p in pictures(page) if "Units of mlp:units" in titles(p)[0])
    assert titles(mlp)[2] == "layer 1: model.layers.1:block removed"
    (table,) = (t for t in parsed(page).tables if t[0][0] == "layer")
    assert table[2] == ["1", "removed", "removed", "removed", "removed"]


def test_a_graph(dense: Any, tmp_path: Path) -> None:
    _, traced, graph = dense
    plan = fxprune.Plan.of(graph, {"model.layers.2.mlp:units": range(7)})
    small = fxprune.rewrite(traced, plan)
    fxprune.save(small, tmp_path / "g", plan=plan, traced=traced)
    opened = open_blank(tmp_path / "g")
    assert (opened.name, opened.architecture) == ("g", "LlamaForCausalLM")
    assert sizes(tmp_path / "g")["model.layers.2.mlp:units"] == (40, 7)
    assert sizes(tmp_path / "g")["model.layers.0.mlp:units"] == (40, 40)


def test_a_run_of_recovery(dense: Any, tmp_path: Path) -> None:
    model, _, graph = dense
    plan = fxprune.Plan.of(graph, {f"model.layers.{i}.mlp:units": range(8) for i in range(3)})
    run, pruned = tmp_path / "run", tmp_path / "pruned"
    fxprune.save(fxprune.shrink(model, plan), run / "model", plan=plan)
    pruned.mkdir()
    costs = {"parameters": 20, "macs": None, "size": None, "perplexity": 9.0, "latency": None}
    first = {"before": costs, "after": {**costs, "parameters": 10}, "measured": ["on a text"]}
    (pruned / "report.json").write_text(json.dumps(first))
    (run / "run.json").write_text("{}")
    steps = [{"step": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": 1.0}]
    steps[0] |= {"tokens": 5, "seconds": 1.0}
    (run / "log.json").write_text(json.dumps({"steps": steps, "evaluations": []}))
    told = {"before": {"prose": 9.5}, "after": {"prose": 7.25}, "windows": 4, "length": 128}
    facts = {"model": str(pruned), "method": "LoRA", "trained": 77, "step": 1, "perplexity": told}
    (run / "report.json").write_text(json.dumps(facts))
    for path in (run, run / "model"):
        opened = open_blank(path)
        assert opened.name == "run/model"
        page = html.write_blank(opened, tmp_path / "m.html").read_text()
        check_alone(page)
        assert {
            "perplexity: before 9.00, after 9.00",
            "perplexity: before 9.50, after 7.25",
            "Loss per token in nats, by step: training",
        } <= {titles(each)[0] for each in pictures(page)}
        assert "LoRA, 77 parameters trained, weights of step 1" in page
        assert "on a text" in page


def test_a_graph_of_another_library(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    traced = fxprune.trace(model, (torch.randn(2, 5),))
    graph = fxprune.discover(traced)
    plan = fxprune.Plan.of(graph, {graph.groups[0].name: range(6)})
    fxprune.save(fxprune.rewrite(traced, plan), tmp_path / "g", plan=plan, traced=traced)
    with pytest.raises(CheckpointError, match=r"look at it in Python, fxprune\.discover"):
        open_blank(tmp_path / "g")
