"""A cost of one's own: one class, registered, and a budget can limit it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import pytest

import fxprune
from fxprune import Budget
from fxprune.axes.dims import Dim, find
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.select.budgets import COSTS, Cost, Count, Setting, register_cost
from tests.llama import tiny_llama


class NeuronCount(Count):
    def __init__(self, graph: DependencyGraph) -> None:
        self.dims = [find(group.dim) for group in graph.groups if group.kind == "mlp"]

    def total(self, counts: Mapping[Dim, int]) -> int:
        return sum(counts.get(dim, dim.size) for dim in self.dims)


class Neurons(Cost):
    """Hidden units of all MLPs, whatever they hold."""

    name = "neurons"
    words = "neurons"

    def count(self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting) -> Count:
        return NeuronCount(graph)


@pytest.fixture
def neurons() -> Iterator[None]:
    register_cost(Neurons())
    yield
    del COSTS["neurons"]


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.usefixtures("neurons")
def test_a_cost_of_ones_own(ranking: str) -> None:
    model = tiny_llama()
    budget = Budget(others={"neurons": "50%"})
    result = fxprune.prune(model, budget=budget, criterion="magnitude", ranking=ranking)
    assert result.report is not None
    widths = [
        layer.mlp.up_proj.out_features for layer in result.graph_module.model.layers.children()
    ]
    assert sum(widths) == 40  # of 80, and no head went for it
    assert all("heads" not in name for name in result.plan.kept)
    assert result.plan.bound == "neurons"
    both = Budget(params=0.8, others={"neurons": 60})
    plan = fxprune.select(result.graph, result.scores, budget=both)
    assert plan.parameters_after <= 0.8 * plan.parameters_before
    assert (
        sum(
            len(plan.kept.get(g.name, range(g.size)))
            for g in result.graph.groups
            if g.kind == "mlp"
        )
        <= 60
    )


@pytest.mark.usefixtures("neurons")
def test_it_is_part_of_a_configuration() -> None:
    config = fxprune.PruneConfig(budget=Budget(macs=0.9, others={"neurons": 0.5}), steps=2)
    again = fxprune.PruneConfig.from_dict(config.to_dict())
    assert again == config
    result = fxprune.prune(tiny_llama(), config=config, criterion="magnitude", verify=False)
    assert result.plan.kept


@pytest.mark.usefixtures("neurons")
def test_what_cannot_be_met() -> None:
    with pytest.raises(SelectionError, match=r"neurons=1.0?.* cannot|at least 2 of the model's 80"):
        fxprune.prune(tiny_llama(), budget=Budget(others={"neurons": 0.01}), criterion="magnitude")


def test_refused() -> None:
    with pytest.raises(SelectionError, match="cannot limit 'neurons': it knows params, macs"):
        Budget(others={"neurons": 0.5})
    with pytest.raises(SelectionError, match="'macs' is registered already"):
        register_cost(type("Again", (Neurons,), {"name": "macs"})())
    with pytest.raises(SelectionError, match="cannot be a keyword"):
        register_cost(type("Odd", (Neurons,), {"name": "two words"})())
