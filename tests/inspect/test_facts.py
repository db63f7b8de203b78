"""The summary of groups: few rows for many layers, and nothing lost in the JSON."""

from __future__ import annotations

import io
import json

import pytest
import transformers
from rich.console import Console

import fxprune
from fxprune.inspect import facts as inspection
from tests.hf import tiny


@pytest.fixture(scope="module")
def graph() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny.llama(num_hidden_layers=4)))


def test_layers_are_one_row(graph: fxprune.DependencyGraph) -> None:
    rows = inspection.rows(graph, (*graph.groups, *graph.frozen))
    mlp = next(row for row in rows if row.kind == "mlp")
    assert (mlp.name, mlp.count, mlp.sizes) == ("model.layers.*.mlp:units", 4, (40,))
    assert mlp.parameters == 4 * 3 * 24 * 40
    assert sum(row.count for row in rows) == len(graph.groups) + len(graph.frozen)
    reasons = [row.reason is not None for row in rows]
    assert reasons == sorted(reasons)  # frozen ones last


def test_groups_on_the_same_tensors_are_told_apart() -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8, n_group=4, topk_group=2,
        num_experts_per_tok=2, moe_intermediate_size=24, first_k_dense_replace=1, q_lora_rank=12,
        kv_lora_rank=8, head_dim=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    graph = fxprune.discover(fxprune.trace(model))
    rows = {(row.name, row.sizes): row for row in inspection.rows(graph, graph.groups)}
    experts = [rows["model.layers.*.mlp:experts", (4,)], rows["model.layers.*.mlp:experts#2", (2,)]]
    moe = sum(
        p.numel()
        for n, p in model.named_parameters()
        if "mlp.experts." in n or n.endswith("gate.weight")
    )
    assert [row.parameters for row in experts] == [moe, moe]
    assert rows["model.layers.*.self_attn:ranks", (8, 12)].count == 6
    (line,) = inspection.defaults(graph)
    assert line.startswith("pruned by default: mlp, attention; only with kinds=: ")
    assert "6 latent" in line
    assert "4 expert" in line
    assert "of them active for a token" in inspection.costs(inspection.facts(graph))[0]


def test_rows_group_by_group(graph: fxprune.DependencyGraph) -> None:
    rows = inspection.rows(graph, graph.groups, each=True)
    assert [row.name for row in rows] == [group.name for group in graph.groups]


def test_sizes_that_differ_are_a_span(graph: fxprune.DependencyGraph) -> None:
    row = inspection.Row("x", "mlp", (8, 12, 40), 3, 10, None)
    assert "8-40" in _printed([row])


def test_carried_parameters(graph: fxprune.DependencyGraph) -> None:
    # The residual stream touches every matrix and norm; nothing else is in this model.
    channel = next(group for group in graph.groups if group.kind == "channel")
    total = sum(p.numel() for p in graph.traced.module.parameters())
    assert inspection.carried(graph, channel) == total
    # A head: its rows of q, k and v, its columns of o.
    heads = next(group for group in graph.groups if group.kind == "attention")
    assert inspection.carried(graph, heads) == 24 * (24 + 12 + 12 + 24)


def test_depth(graph: fxprune.DependencyGraph) -> None:
    found = fxprune.find_branches(graph.traced)
    assert inspection.depth(found) == ["depth, removable whole: 4 block, 4 attention, 4 mlp"]
    refused = {f"layers.{i}:mlp": "its value is also used by x" for i in (0, 1)}
    assert inspection.depth(fxprune.Branches({}, refused)) == [
        "not layers.0:mlp: its value is also used by x (and 1 alike)"
    ]
    assert inspection.depth(fxprune.Branches({})) == []
    content = json.loads(json.dumps(inspection.as_json(graph, {})))
    assert [each["name"] for each in content["branches"]] == list(found.units)
    assert content["refused"] == {}


def test_tables(graph: fxprune.DependencyGraph) -> None:
    shown = _printed(inspection.rows(graph, (*graph.groups, *graph.frozen)))
    assert "can be pruned" in shown
    assert "model.layers.*.self_attn:heads" in shown
    assert "embedding rows are looked up by index" in shown
    assert "100.0 %" in shown
    assert len(shown.splitlines()) < 30
    assert "groups" not in _printed(inspection.rows(graph, graph.groups, each=True))


def test_brackets_are_no_markup() -> None:
    row = inspection.Row("x[red]", "mlp", (8,), 1, 10, "indexed by [b] at [/model.py]")
    assert "x[red]" in _printed([row])
    assert "indexed by [b] at [/model.py]" in _printed([row])


def test_no_rows_no_tables() -> None:
    assert inspection.tables([], 1) == []


def test_json_has_everything(graph: fxprune.DependencyGraph) -> None:
    content = json.loads(json.dumps(inspection.as_json(graph, {"model": "tiny"})))
    assert content["model"] == "tiny"
    assert content["kinds"]["mlp"] == 4
    assert {g["name"] for g in content["groups"]} == {g.name for g in graph.groups}
    first = next(g for g in content["groups"] if g["kind"] == "mlp")
    assert first["layer"] == ["model.layers", 0]
    assert {"tensor": "model.layers.0.mlp.up_proj.weight", "axis": 0} in first["sites"]
    assert all(g["reason"] for g in content["frozen"])


def test_costs_in_two_lines() -> None:
    facts = {
        "parameters": 6738415616,
        "active": 6738415616,
        "macs": 423926693888,
        "kv_cache": 262144,
        "macs_input": "1 x 64 tokens",
    }
    assert inspection.costs(facts) == [
        "6,738,415,616 parameters, 12,852.5 MiB in fp16, 262,144 numbers cached per token",
        "423.93 GMACs for 1 x 64 tokens",
    ]


def test_costs_that_cannot_be_counted_are_left_out() -> None:
    facts = {"parameters": 7, "active": 7, "macs": None, "kv_cache": 0}
    assert inspection.costs({**facts, "macs_input": "2 x 3"}) == ["7 parameters, 0.0 MiB in fp16"]
    lines = inspection.costs({**facts, "macs": 1200, "macs_input": "2 x 3"})
    assert lines == ["7 parameters, 0.0 MiB in fp16", "1.20 kMACs for 2 x 3"]


def test_legal_sizes_as_values(graph: fxprune.DependencyGraph) -> None:
    report = fxprune.legality(graph, tensor_parallel=(2,), multiples=(8, 64))
    rows = inspection.plain_sizes(report)
    assert json.loads(json.dumps(rows)) == rows
    mlp = next(row for row in rows if row["kind"] == "mlp")
    evens = ",".join(map(str, range(2, 41, 2)))
    kept = {"stock": "1-40", "tp=2": evens, "x8": "8,16,24,32,40", "x64": ""}
    assert mlp == {"kind": "mlp", "size": 40, "groups": 4, "kept": kept}
    heads = next(row for row in rows if row["kind"] == "attention")
    assert heads["kept"]["stock"] == "1-2"
    assert inspection._ranges((1, 2, 3, 5, 8, 9)) == "1-3,5,8-9"


def _printed(rows: list[inspection.Row]) -> str:
    stream = io.StringIO()
    for table in inspection.tables(rows, sum(row.parameters for row in rows[:1])):
        Console(file=stream, width=100).print(table)
    return stream.getvalue()
