"""Which groups may be pruned, and what is said when none may."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxprune.axes.dims import Dim
from fxprune.errors import GroupError, SelectionError
from fxprune.groups.dependency import discover
from fxprune.groups.group import Group
from fxprune.select.candidates import candidate, choose_groups, settled
from fxprune.trace import trace
from tests.toys import ToyGraph, ToyLM, toy_graph


@pytest.fixture
def graph() -> ToyGraph:
    return toy_graph(ToyLM(layers=4))


def names(groups: list[Group]) -> list[str]:
    return [group.name for group in groups]


def test_kinds(graph: ToyGraph) -> None:
    assert names(choose_groups(graph, ["mlp"])[0]) == [f"layers.{i}.mlp:units" for i in range(4)]
    assert names(choose_groups(graph, "channel")[0]) == ["channel"]
    assert len(choose_groups(graph, ("mlp", "attention"))[0]) == 8


def test_named_groups_of_any_kind(graph: ToyGraph) -> None:
    chosen, _ = choose_groups(graph, ["mlp"], names=["channel", "channel"])
    assert names(chosen) == ["channel"]
    assert names(choose_groups(graph, (), names="channel")[0]) == ["channel"]
    with pytest.raises(GroupError, match="no group 'chanel'"):
        choose_groups(graph, (), names=["chanel"])
    with pytest.raises(GroupError, match=r"'layers\.0\.attention:head_dim' is frozen: rotary"):
        choose_groups(graph, (), names=["layers.0.attention:head_dim"])
    with pytest.raises(SelectionError, match="no group was chosen"):
        choose_groups(graph, (), names=[])
    with pytest.raises(SelectionError, match="no group was chosen"):
        choose_groups(graph, ())


def test_protected_layers(graph: ToyGraph) -> None:
    chosen, protected = choose_groups(graph, ["mlp", "channel"], keep_first=1, keep_last=2)
    assert names(chosen) == ["layers.1.mlp:units", "channel"]
    assert protected == {
        "layers.0.mlp:units": "keep_first=1",
        "layers.2.mlp:units": "keep_last=2",
        "layers.3.mlp:units": "keep_last=2",
    }


def test_every_stack_has_its_own_ends() -> None:
    groups = tuple(
        Group(f"{stack}.{i}", "mlp", 4, (), Dim(4), False, None, (stack, i))
        for stack, size in (("encoder", 3), ("decoder", 2))
        for i in range(size)
    )
    # A layer with nothing but frozen groups is still a layer.
    frozen = Group("decoder.2", "mlp", 4, (), Dim(4), False, "no", ("decoder", 2))
    graph = ToyGraph(None, {}, groups, (frozen,))  # type: ignore[arg-type]
    chosen, _ = choose_groups(graph, ["mlp"], keep_first=1, keep_last=1)
    assert names(chosen) == ["encoder.1", "decoder.1"]


def test_everything_protected(graph: ToyGraph) -> None:
    with pytest.raises(
        SelectionError, match=r"every one chosen is protected \(keep_first=3, keep_last=1\)"
    ):
        choose_groups(graph, ["mlp"], keep_first=3, keep_last=1)
    with pytest.raises(SelectionError, match="cannot be negative"):
        choose_groups(graph, ["mlp"], keep_first=-1)


def test_unknown_and_missing_kinds(graph: ToyGraph) -> None:
    with pytest.raises(SelectionError, match="unknown kind 'mpl': choose from mlp, attention"):
        choose_groups(graph, ["mpl"])
    with pytest.raises(SelectionError, match="no prunable group of kind expert; kinds it has: att"):
        choose_groups(graph, ["expert"])
    with pytest.raises(SelectionError) as caught:
        choose_groups(graph, ["head_dim", "expert"])
    message = str(caught.value)
    assert "kinds it has: attention, channel, mlp, query" in message
    assert "layers.0.attention:head_dim and 3 more: rotary" in message


def test_order_is_by_score_then_position(graph: ToyGraph) -> None:
    group = graph["layers.0.mlp:units"]
    scores = {group.name: torch.tensor([2.0, 0, 1, 0, 5, 4, 3, 2, 1, 0])}
    found = candidate(group, scores, min_kept=3)
    assert found.order.tolist() == [1, 3, 9, 2, 8, 0, 7, 6, 5, 4]
    assert found.scores.tolist() == sorted(scores[group.name].tolist())
    assert found.levels.tolist() == list(range(8))
    assert found.kept(6) == [4, 5, 6, 7]
    assert candidate(group, scores, min_kept=11).levels.tolist() == [0]


@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 12))
def test_levels(gone: int, min_kept: int, multiple: int) -> None:
    """By the definition: what may have been lost, number by number."""
    group = toy_graph(ToyLM())["layers.0.mlp:units"]
    units = list(range(0, gone))
    found = candidate(group, {group.name: torch.rand(10)}, min_kept, multiple, units)
    legal = [
        lost
        for lost in range(gone, 10)
        if lost and 10 - lost >= min_kept and (10 - lost) % multiple == 0
    ]
    assert found.levels.tolist() == ([0, *legal] if gone == 0 else legal or [gone])
    assert found.order[:gone].tolist() == units
    for lost in range(12):
        fits = [level for level in found.levels if level <= lost]
        assert found.lost(found.step_to(lost)) == max(fits, default=found.levels[0])


def test_lost_units_need_no_scores(graph: ToyGraph) -> None:
    group = graph["layers.0.mlp:units"]
    values = torch.tensor([3.0, 9, float("nan"), 1, 2, 4, 5, 6, 7, 8])
    found = candidate(group, {group.name: values}, gone=[1, 2])
    assert found.order.tolist() == [1, 2, 3, 4, 0, 5, 6, 7, 8, 9]
    assert found.kept(0) == [0, 3, 4, 5, 6, 7, 8, 9]
    assert settled(group, [1, 2]).kept(0) == [0, 3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(SelectionError, match="are not finite"):
        candidate(group, {group.name: values}, gone=[1])


def test_scores_that_do_not_fit(graph: ToyGraph) -> None:
    group = graph["layers.0.mlp:units"]
    with pytest.raises(SelectionError, match=r"no scores for group 'layers\.0\.mlp:units'"):
        candidate(group, {}, 1)
    with pytest.raises(SelectionError, match=r"have shape \(9,\); it has 10 units"):
        candidate(group, {group.name: np.ones(9)}, 1)
    with pytest.raises(SelectionError, match="are not finite"):
        candidate(group, {group.name: np.full(10, np.nan)}, 1)


def test_everything_frozen_is_told_with_its_reason() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(3))
            self.table = nn.Embedding(11, 6)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids).sort(-1).values
            for layer in self.layers:
                x = layer(x).sort(-1).values
            return x

    graph = discover(trace(Net(), torch.zeros(2, 5).long()))
    assert not graph.groups
    with pytest.raises(SelectionError) as caught:
        choose_groups(graph, ["mlp", "attention"])
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "the model has no prunable group of kind mlp or attention; kinds it has: none; frozen are:"
    )
    told = dict(line.strip().split(": ", 1)[::-1] for line in lines)
    assert set(told) == {group.reason for group in graph.frozen}
    assert all("test_candidates.py:" in why for why in told if "vocabulary" not in why), told
    assert any("aten.sort" in why for why in told)
    assert any(" more" in names for names in told.values())  # one line for all layers
