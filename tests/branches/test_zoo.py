"""Depth on every architecture: the units that must be found, and the oracle on any of them.

Which implementation of attention runs makes no difference to the units, as one test shows, and the
others take the last by default.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.branches.bypass import stands_for
from fxprune.plan import Plan
from tests.test_conformance import one_backend
from tests.zoo import BY_NAME, OTHER, ZOO, traced

every_case = one_backend()
BOTH = ("llama", "gpt2", "t5")
# Read by the layers after the one that holds them.
SHARED = {
    f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for side in ("encoder", "decoder")
}


def units(name: str, attention: str) -> fxprune.Branches:
    return fxprune.find_branches(traced(name, attention))


@every_case
def test_expected_units(name: str, attention: str) -> None:
    found = units(name, attention)
    blocks = found.of("block")
    kinds = [tuple(sorted(found[b].kind for b in block.branches)) for block in blocks]
    assert kinds == list(BY_NAME[name].blocks)
    inside = {branch for block in blocks for branch in block.branches}
    assert inside == {unit.name for unit in found.of("branch")}
    assert not found.refused


@every_case
def test_a_block_owns_what_its_module_holds(name: str, attention: str) -> None:
    model = traced(name, attention).module
    for block in units(name, attention).of("block"):
        held = {
            f"{block.place}.{n}" for n, _ in model.get_submodule(block.place).named_parameters()
        }
        assert set(block.parameters) == held - SHARED, block.name


@every_case
def test_every_node_of_a_shorter_graph_stands_for_one_of_the_original(
    name: str, attention: str
) -> None:
    whole = traced(name, attention)
    for unit in units(name, attention).of("block")[-1:]:
        shorter = fxprune.bypass(whole, [unit.name])
        fxprune.discover(shorter)  # which may take ops apart
        places = stands_for(shorter)
        assert set(shorter.graph_module.graph.nodes) == set(places)
        order = {node: number for number, node in enumerate(whole.graph_module.graph.nodes)}
        firsts = [order[places[node][0]] for node in shorter.graph_module.graph.nodes]
        assert firsts == sorted(firsts)
        for node, values in places.items():
            assert node.target == values[0].target
            assert [order[each] for each in values] == sorted(order[each] for each in values)
        (before,) = [node for node, values in places.items() if len(values) > 1]
        assert places[before] == (unit.entry, unit.exit)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(entry.name, marks=() if entry.name in BOTH else pytest.mark.slow)
        for entry in ZOO
        if len(entry.backends) > 1
    ],
)
def test_eager_and_sdpa_give_the_same_units(name: str) -> None:
    eager, sdpa = (
        [(u.name, u.kind, u.place, u.parameters, u.branches) for u in found.units.values()]
        for found in (units(name, attention) for attention in ("eager", "sdpa"))
    )
    assert eager == sdpa


@st.composite
def shortened(draw: st.DrawFn, name: str, attention: str, *, narrow: bool) -> Plan:
    """A plan that removes some units; and, if ``narrow``, parts of about half of the groups."""
    # Named, or every decoder would lose the same.
    choice = np.random.default_rng([*f"{name} {attention}".encode(), draw(st.integers(0, 2**32))])
    removed = [unit for unit in units(name, attention).units if choice.random() < 0.4]
    graph = fxprune.discover(fxprune.bypass(traced(name, attention), removed))
    kept = {}
    for group in graph.groups:
        if narrow and choice.random() < 0.5:
            count = int(choice.integers(1, group.size, endpoint=True))
            kept[group.name] = np.sort(choice.permutation(group.size)[:count]).tolist()
    return Plan.of(graph, kept)


def prove(name: str, attention: str, plan: Plan) -> None:
    """At another batch and length than the example's."""
    whole = traced(name, attention)
    small = fxprune.rewrite(whole, plan)
    args, kwargs = BY_NAME[name].example(*OTHER)
    fxprune.verify(whole, small, plan, kwargs or args)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


@settings(max_examples=1, phases=[Phase.generate])
@given(data=st.data())
@every_case
def test_the_oracle_holds_in_depth(name: str, attention: str, data: st.DataObject) -> None:
    prove(name, attention, data.draw(shortened(name, attention, narrow=False)))


@settings(max_examples=2, phases=[Phase.generate])
@given(data=st.data())
@every_case
def test_the_oracle_holds_in_depth_and_width(
    name: str, attention: str, data: st.DataObject
) -> None:
    prove(name, attention, data.draw(shortened(name, attention, narrow=True)))
