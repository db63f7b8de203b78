"""What units cost, against a full recount."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fxprune.groups.parameters import count_parameters
from fxprune.select.budgets.params import ParameterCount
from tests.toys import ToyLM, toy_graph

GRAPH = toy_graph(ToyLM(layers=2))
DIMS = [group.dim for group in GRAPH.groups]
COUNTS = st.tuples(*(st.integers(1, dim.size) for dim in DIMS))


@given(COUNTS, st.sets(st.integers(0, len(DIMS) - 1)))
def test_totals_equal_a_full_recount(kept: tuple[int, ...], chosen: set[int]) -> None:
    counts = {DIMS[i]: kept[i] for i in chosen}
    count = ParameterCount(GRAPH, [DIMS[i] for i in chosen])
    assert count.total(counts) == count_parameters(GRAPH, counts)


@given(COUNTS, st.sampled_from(range(len(DIMS))), st.integers(-1, 1))
def test_unit_costs_equal_a_difference(kept: tuple[int, ...], at: int, more: int) -> None:
    counts = dict(zip(DIMS, kept, strict=True))
    changed = {**counts, DIMS[at]: kept[at] + more}
    expected = count_parameters(GRAPH, changed) - count_parameters(GRAPH, counts)
    assert ParameterCount(GRAPH, DIMS).unit_cost(DIMS[at], counts, more) == expected


def test_a_neuron_costs_three_columns() -> None:
    neurons = GRAPH["layers.0.mlp:units"].dim
    channel = GRAPH["channel"].dim
    count = ParameterCount(GRAPH, [neurons, channel])
    assert count.unit_cost(neurons, {}, -1) == -3 * 8
    assert count.unit_cost(neurons, {channel: 5}, -1) == -3 * 5
