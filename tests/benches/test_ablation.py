"""Pruning with the dependency ignored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fxprune
from benches import ablation
from benches.ablation import choose, rewrite_uncoupled, site_groups, site_name
from fxprune.axes import positions
from fxprune.axes.dims import find
from fxprune.errors import CriterionError
from tests.hf import tiny

IDS = 3 + torch.arange(22).view(2, 11)
KINDS = ("mlp", "attention")


@pytest.fixture(scope="module")
def graph() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny.llama(), (), {"input_ids": IDS}))


@pytest.fixture(scope="module")
def plan(graph: fxprune.DependencyGraph) -> fxprune.Plan:
    scores = fxprune.estimate(graph.traced.module, graph, fxprune.Random(1))
    return fxprune.select(graph, scores, 0.2, kinds=(*KINDS, "channel"))


def _groups(graph: fxprune.DependencyGraph) -> list[fxprune.Group]:
    return [group for group in graph.groups if group.kind in (*KINDS, "channel")]


def _random(graph: fxprune.DependencyGraph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        group.name: torch.rand(group.size, generator=generator)
        for group in site_groups(_groups(graph))
    }


def test_one_group_per_parameter_axis(graph: fxprune.DependencyGraph) -> None:
    group = graph["model.layers.1.mlp:units"]
    alone = site_groups([group])
    assert [g.name.rpartition("@")[2] for g in alone] == [
        "model.layers.1.mlp.gate_proj.weight[0]",
        "model.layers.1.mlp.up_proj.weight[0]",
        "model.layers.1.mlp.down_proj.weight[1]",
    ]
    assert all(len(g.sites) == 1 and g.dim is group.dim and g.size == 40 for g in alone)


def test_the_choice_of_all_sites_alike_is_the_coupled_model(
    graph: fxprune.DependencyGraph, plan: fxprune.Plan
) -> None:
    scores = {}
    for group in _groups(graph):
        # Units of the plan score high.
        wanted = torch.zeros(group.size)
        wanted[list(plan.kept.get(group.name, range(group.size)))] = 1.0
        scores.update((site_name(group, site), wanted) for site in group.sites)
    choice = choose(graph, plan, scores)
    small = rewrite_uncoupled(graph.traced, graph, plan, choice)
    coupled = fxprune.rewrite(graph.traced, plan)
    assert torch.equal(small(input_ids=IDS).logits, coupled(input_ids=IDS).logits)
    for name, parameter in coupled.named_parameters():
        assert torch.equal(small.get_parameter(name), parameter), name


def test_shapes_are_those_of_the_coupled_model_and_values_those_of_each_site(
    graph: fxprune.DependencyGraph, plan: fxprune.Plan
) -> None:
    scores = _random(graph)
    before = {name: p.detach().clone() for name, p in graph.traced.module.named_parameters()}
    small = rewrite_uncoupled(graph.traced, graph, plan, choose(graph, plan, scores))
    coupled = fxprune.rewrite(graph.traced, plan)
    shapes = {name: p.shape for name, p in coupled.named_parameters()}
    assert {name: p.shape for name, p in small.named_parameters()} == shapes
    assert not torch.allclose(small(input_ids=IDS).logits, coupled(input_ids=IDS).logits)
    for name, parameter in graph.traced.module.named_parameters():
        assert torch.equal(parameter, before[name]), name
    # By hand: the rows of one matrix and the columns of another, each by its own scores.
    mlp, stream = (
        graph["model.layers.0.mlp:units"],
        next(g for g in graph.groups if g.kind == "channel"),
    )

    def best(group: fxprune.Group, tensor: str, axis: int) -> list[int]:
        order = scores[f"{group.name}@{tensor}[{axis}]"].sort(descending=True).indices
        return sorted(order[: len(plan.kept[group.name])].tolist())

    for name, unit_axis in (("gate_proj", 0), ("down_proj", 1)):
        full = f"model.layers.0.mlp.{name}.weight"
        units, channels = best(mlp, full, unit_axis), best(stream, full, 1 - unit_axis)
        picked = np.ix_(units, channels) if unit_axis == 0 else np.ix_(channels, units)
        expected = before[full].numpy()[picked]
        assert np.array_equal(small.get_parameter(full).detach().numpy(), expected)


def test_heads_are_cut_whole(graph: fxprune.DependencyGraph) -> None:
    group = graph["model.layers.0.self_attn:heads"]
    plan = fxprune.Plan.of(graph, {group.name: [0]})
    scores = {site_name(group, site): torch.tensor([0.0, 1.0]) for site in group.sites}
    small = rewrite_uncoupled(graph.traced, graph, plan, choose(graph, plan, scores))
    for name, rows in (("q_proj", slice(12, 24)), ("k_proj", slice(6, 12))):
        full = f"model.layers.0.self_attn.{name}.weight"
        original = graph.traced.module.get_parameter(full)
        assert torch.equal(small.get_parameter(full), original[rows])


def test_choice_keeps_the_numbers_of_the_plan(
    graph: fxprune.DependencyGraph, plan: fxprune.Plan
) -> None:
    choice = choose(graph, plan, _random(graph))
    for name, units in plan.kept.items():
        for site in graph[name].sites:
            kept = choice[site.tensor, site.axis][find(graph[name].dim)]
            assert len(kept) == len(units)
            assert (np.diff(kept) > 0).all()
            assert (
                len(positions.index(site.layout, {find(graph[name].dim): kept})) < site.layout.size
            )


def test_site_without_scores(graph: fxprune.DependencyGraph, plan: fxprune.Plan) -> None:
    with pytest.raises(CriterionError, match=r"no scores for 'model:channels@model\.embed"):
        choose(graph, plan, {})


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways of cutting, on as many parameters, and they differ."""
    folder = tiny.folder(tmp_path / "tiny")
    prose = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in prose:
        file.write_text("".join(f"{file.stem}: this is paragraph {i}.\n\n" for i in range(60)))
    options = ("--criteria", "taylor", "--draws", "1", "--windows", "2", "1")
    words = ["ablation", *map(str, prose), "--model", str(folder), *options]
    monkeypatch.setattr(sys, "argv", words)
    ablation.main()
    coupled, alone = map(json.loads, capsys.readouterr().out.splitlines())
    assert (coupled["criterion"], coupled["draw"]) == ("taylor", 1)
    assert [coupled["cut"], alone["cut"]] == ["coupled", "no dependency"]
    column = f"{prose[1]} @ 1024"
    assert coupled[column] != alone[column]
