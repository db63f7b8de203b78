"""The plan: counting, checking, and a file that may be damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxprune.errors import CheckpointError, PlanError
from fxprune.groups.parameters import count_parameters, fingerprint
from fxprune.plan import Plan, decode, encode
from tests.toys import ToyGraph, ToyLM, toy_graph

MLP, KV = "layers.0.mlp:units", "layers.1.attention:kv"


@pytest.fixture
def graph() -> ToyGraph:
    return toy_graph(ToyLM())


@pytest.fixture
def plan(graph: ToyGraph) -> Plan:
    return Plan.of(graph, {MLP: [0, 1, 5, 9], KV: [1]}, pruning_ratio=0.25, criterion="Taylor()")


def test_counts_the_whole_model(graph: ToyGraph) -> None:
    # Tied once; the unused parameter as it is; the buffer not at all.
    before = sum(p.numel() for p in graph.traced.module.parameters())
    assert count_parameters(graph) == before
    smaller = ToyLM(units=7)
    for block in smaller.layers:
        block.q.bias = None
    counts = {graph[f"layers.{i}.mlp:units"].dim: 7 for i in range(2)}
    biases = sum(block.q.bias.numel() for block in graph.traced.module.layers)
    assert count_parameters(graph, counts) == sum(map(prod, _shapes(smaller))) + biases


def test_counts_quadratic_and_product_axes(graph: ToyGraph) -> None:
    counts = {graph["channel"].dim: 5, graph["layers.0.attention:kv"].dim: 1}
    counts[graph["layers.0.attention:query"].dim] = 2
    vocabulary, head, units, unused = 11, 4, 10, 3
    blocks = 0
    for kv, repeat in ((1, 2), (2, 3)):
        query, value = kv * repeat * head, kv * head
        blocks += 2 * 5 * query + query + 2 * 5 * value + 3 * 5 * units + 5
    assert count_parameters(graph, counts) == vocabulary * 5 + blocks + unused


def test_the_plan_knows_its_counts(graph: ToyGraph, plan: Plan) -> None:
    assert plan.parameters_before == count_parameters(graph)
    assert plan.parameters_after == count_parameters(graph, plan.kept_counts(graph))
    assert plan.kept_counts(graph) == {graph[MLP].dim: 4, graph[KV].dim: 1}
    units = plan.kept_units(graph)[graph[MLP].dim]
    assert units.dtype == np.int64
    assert units.tolist() == [0, 1, 5, 9]


def test_groups_that_keep_everything_are_left_out(graph: ToyGraph) -> None:
    plan = Plan.of(graph, {MLP: range(10), KV: [0]})
    assert plan.kept == {KV: (0,)}
    assert plan.sizes == {KV: 2}


def test_fingerprint_is_of_names_and_shapes(graph: ToyGraph) -> None:
    assert fingerprint(graph) == fingerprint(toy_graph(ToyLM()))
    assert fingerprint(graph) != fingerprint(toy_graph(ToyLM(units=9)))
    assert len(fingerprint(graph)) == 64


def test_fingerprint_is_on_meta_too(graph: ToyGraph) -> None:
    assert fingerprint(toy_graph(ToyLM().to("meta"))) == fingerprint(graph)


def test_saves_and_loads(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["version"] == 1
    assert data["groups"][MLP] == {"size": 10, "removed": "2-4,6-8"}


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_any_kept_units_survive_the_file(case: tuple[int, set[int]]) -> None:
    size, kept = case
    if not kept:
        return
    plan = Plan({"g": tuple(sorted(kept))}, {"g": size}, "f", parameters_before=99)
    assert Plan(**decode(json.dumps(encode(plan)))) == plan


BIASES = ("layers.0.down.bias", "layers.1.o.bias")


def test_biases_and_limits_survive_the_file(graph: ToyGraph, tmp_path: Path) -> None:
    limits = {MLP: "override 0.25"}
    plan = Plan.of(graph, {MLP: [1]}, biases=reversed(BIASES), limits=limits, bound="params")
    assert plan.biases == BIASES
    plan.save(tmp_path / "plan.json")
    found = Plan.load(tmp_path / "plan.json")
    assert found == plan
    assert (found.biases, found.limits, found.bound) == (BIASES, limits, "params")
    found.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_files_without_them_load(plan: Plan) -> None:
    data = encode(plan)
    assert not {"biases", "limits", "bound"} & set(data)
    found = Plan(**decode(json.dumps(data)))
    assert (found.biases, found.limits, found.bound) == ((), {}, None)


def test_added_biases_count(graph: ToyGraph) -> None:
    kept = {MLP: [1, 2], "channel": [0, 1, 2, 4, 7]}
    without = Plan.of(graph, kept).parameters_after
    assert Plan.of(graph, kept, biases=BIASES).parameters_after == without + 2 * 5
    more = Plan.of(graph, {}, biases=BIASES)
    assert more.parameters_after == more.parameters_before + 2 * 8
    assert Plan(**decode(json.dumps(encode(more)))) == more


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        (["layers.0.q.bias"], r"'layers\.0\.q\.bias', which the model has already"),
        (["layers.0.norm.bias"], "no Linear has it"),
        (["layers.7.down.bias"], "no Linear has it"),
        (["layers.0.down.weight"], "which the model has already"),
        (["layers.0.down.offset"], "no Linear has it"),
        (["layers.0.down.bias"] * 2, "adds a bias twice"),
    ],
)
def test_biases_that_cannot_be(biases: list[str], message: str, graph: ToyGraph) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.of(graph, {MLP: [0]}, biases=biases)


def test_an_interrupted_save_keeps_the_old_file(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="cannot be written: disk full"):
        replace(plan, criterion="other").save(path)
    assert Plan.load(path) == plan
    assert list(tmp_path.iterdir()) == [path]


def _shapes(model: ToyLM) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters()]


# Damaged files


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the plan .*nowhere\.json"):
        Plan.load(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="cannot read the plan"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"format": "fxprune-plan", "ver', "not valid JSON"),
        (b"\xff\xfe", "cannot read the plan"),
        (b"[]", "it is not a plan"),
        (b"{}", "it is not a plan"),
        (b'{"format": "other"}', "it is not a plan"),
        (b'{"format": "fxprune-plan"}', "version None is not supported"),
        (b'{"format": "fxprune-plan", "version": 2}', "version 2 is not supported; this reads 1"),
        (b'{"format": "fxprune-plan", "version": true}', "version True is not supported"),
        (b'{"format": "fxprune-plan", "version": 1}', "has no field 'parameters_before'"),
        (b'{"format": "fxprune-plan", "format": "fxprune-plan"}', "'format' is a duplicate"),
        (b'{"format": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_no_plan(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("fingerprint"), "has no field 'fingerprint'"),
        (_set("fingerprint", value=3), "'fingerprint' is of the wrong type"),
        (_set("fingerprint", value="abc"), "shapes do not match its fingerprint"),
        (_set("pruning_ratio", value="a lot"), "'pruning_ratio' is of the wrong type"),
        (_set("pruning_ratio", value=1.5), "'pruning_ratio' is outside"),
        (_set("pruning_ratio", value=10**400), "'pruning_ratio' is outside"),
        (_set("criterion", value=[]), "'criterion' is of the wrong type"),
        (_set("parameters_before", value=True), "'parameters_before' is of the wrong type"),
        (_set("parameters_before", value=1.0), "'parameters_before' is of the wrong type"),
        (_set("parameters_before", value=-1), "'parameters_before' is out of range"),
        (_set("parameters_after", value=10**9), "'parameters_after' is out of range"),
        (_drop("groups"), "has no field 'groups'"),
        (_set("groups", value=[]), "'groups' is of the wrong type"),
        (_set("groups", MLP, value=[0, 1]), "group 'layers.0.mlp:units' must be an object"),
        (_drop("groups", MLP, "size"), "group 'layers.0.mlp:units' has no field 'size'"),
        (_drop("groups", MLP, "removed"), "group 'layers.0.mlp:units' has no field 'removed'"),
        (_set("groups", MLP, "size", value=10**11), "'size' is out of range"),
        (_set("groups", MLP, "removed", value="2,x"), "not a list of ranges"),
        (_set("groups", MLP, "removed", value="2,,3"), "not a list of ranges"),
        (_set("groups", MLP, "removed", value="-2"), "not a list of ranges"),
        (_set("groups", MLP, "removed", value="8-10"), "unit 10 is out of range; it has 10"),
        (_set("groups", MLP, "removed", value="3,3"), "repeat or are not sorted, at '3'"),
        (_set("groups", MLP, "removed", value="5-3"), "repeat or are not sorted, at '5-3'"),
        (_set("groups", MLP, "removed", value="5,3"), "repeat or are not sorted, at '3'"),
        (_set("groups", MLP, "removed", value="0-9"), "keeps 0 of its 10 units"),
        (_set("biases", value="x"), "'biases' is of the wrong type"),
        (_set("biases", value=[1]), "'biases' must hold text only"),
        (_set("biases", value=["a", "a"]), "adds a bias twice"),
        (_set("limits", value=[]), "'limits' is of the wrong type"),
        (_set("limits", value={"a": 1}), "'limits' must hold text only"),
        (_set("bound", value=1), "'bound' is of the wrong type"),
        (_drop("shapes"), "has no field 'shapes'"),
        (_set("shapes", "unused", value=[3.0]), "'unused' has no valid shape"),
    ],
)
def test_a_damaged_plan_names_what_is_wrong(
    damage: Callable[[dict[str, Any]], None], message: str, plan: Plan, tmp_path: Path
) -> None:
    data = encode(plan)
    damage(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


# Plans that do not fit


def test_a_plan_for_another_model(plan: Plan) -> None:
    other = toy_graph(ToyLM(units=12))
    with pytest.raises(PlanError, match="another model") as caught:
        plan.check(other)
    assert "'layers.0.down.weight' has shape (8, 12) here and (8, 10)" in str(caught.value)
    with pytest.raises(PlanError, match=r"this one has no parameter 'layers\.1"):
        plan.check(toy_graph(ToyLM(layers=1)))
    with pytest.raises(PlanError, match=r"'layers\.2\.down\.weight' is not in the plan's model"):
        plan.check(toy_graph(ToyLM(layers=3)))
    with pytest.raises(PlanError, match="names or shapes of its parameters differ"):
        replace(plan, shapes={}).check(other)


def test_a_model_without_its_graph(plan: Plan) -> None:
    plan.check_model(ToyLM())
    with pytest.raises(PlanError, match=r"'layers\.0\.down\.weight' has shape \(8, 12\) here"):
        plan.check_model(ToyLM(units=12))
    untied = ToyLM()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(PlanError, match=r"'head\.weight' is not in the plan's model"):
        plan.check_model(untied)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"layers.0.mlp:unit": [0]}, "unknown group 'layers.0.mlp:unit'; close: layers.0.mlp"),
        ({"layers.0.attention:head_dim": [0]}, "frozen group 'layers.0.attention:head_dim': rot"),
        ({MLP: []}, "keeps 0 of its 10 units"),
        ({MLP: [0, 10]}, "unit 10 is out of range; it has 10 units, 0 to 9"),
        ({MLP: [-1, 3]}, "unit -1 is out of range"),
        ({MLP: [1, 1]}, "unit 1 is a duplicate"),
        ({MLP: [2, 1]}, "not sorted"),
        ({MLP: [*range(9), 8]}, "unit 8 is a duplicate"),
    ],
)
def test_a_plan_that_cannot_be(kept: dict[str, list[int]], message: str, graph: ToyGraph) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.of(graph, kept)


def test_a_plan_by_hand_is_checked(graph: ToyGraph, plan: Plan) -> None:
    plan.check(graph)
    with pytest.raises(PlanError, match="has 10 units and the plan is for 11"):
        replace(plan, sizes={**plan.sizes, MLP: 11}).check(graph)
    with pytest.raises(PlanError, match="has no size"):
        replace(plan, sizes={}).check(graph)
    with pytest.raises(PlanError, match="must be integers"):
        replace(plan, kept={MLP: (0.5,)}).check(graph)  # type: ignore[dict-item]
