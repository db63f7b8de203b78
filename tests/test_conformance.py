"""Every promise about discovery and rewriting, on every architecture of the zoo.

``python -m tests.conformance_table`` writes docs/conformance.md from the same table and checks, and
what it wrote is compared here.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils._pytree import tree_map_only

import fxprune
from fxprune.axes.dims import Dim, Layout, Product, resolve
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.plan import Plan
from tests import conformance_table
from tests.vision.families import BY_NAME as FAMILIES
from tests.zoo import ALIKE, BY_NAME, CASES, OTHER, ZOO, Entry, built, traced


def one_backend(*both: str) -> Any:
    """Every model with its last implementation of attention; the others slow but for some models.

    For what hardly depends on how attention is computed: each is another trace.
    """

    def slow(entry: Entry, attention: str) -> bool:
        other = attention != entry.backends[-1] and entry.name not in both
        return other or entry.name in ALIKE

    return pytest.mark.parametrize(
        ("name", "attention"),
        [
            pytest.param(
                entry.name,
                each,
                id=f"{entry.name}-{each}",
                marks=pytest.mark.slow if slow(entry, each) else (),
            )
            for entry in ZOO
            for each in entry.backends
        ],
    )


# Of each way to write attention out: grouped, fused, with a window, a bias, absolute positions.
WRITTEN_OUT = ("llama", "gemma3", "phi3", "gpt2", "t5", "chatglm_block")
every_case = one_backend(*WRITTEN_OUT)


@functools.cache
def discovered(name: str, attention: str) -> DependencyGraph:
    return fxprune.discover(traced(name, attention))


def output(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.logits


def counted(groups: tuple[Group, ...]) -> dict[str, dict[int, int]]:
    """Kind -> size -> number of groups."""
    kinds: dict[str, Counter[int]] = {}
    for group in groups:
        kinds.setdefault(group.kind, Counter())[group.size] += 1
    return {kind: dict(sizes) for kind, sizes in kinds.items()}


# discovery


@every_case
def test_expected_groups(name: str, attention: str) -> None:
    entry = BY_NAME[name]
    found = counted(discovered(name, attention).groups)
    for kind, sizes in entry.expected.items():
        assert dict(sizes) == found.get(kind, {}), kind
    assert set(found) <= {*entry.expected, *entry.frozen_ok}


@every_case
def test_frozen_groups_say_why(name: str, attention: str) -> None:
    frozen = discovered(name, attention).frozen
    assert all(group.reason for group in frozen)
    kinds = {group.kind for group in frozen}
    assert kinds.isdisjoint({"attention", "query"})
    if "mlp" in BY_NAME[name].expected:
        assert "mlp" not in kinds


@every_case
def test_units_under_a_norm_are_marked(name: str, attention: str) -> None:
    """A norm runs over streams, and in some families over each query and key head."""
    for group in discovered(name, attention).groups:
        if group.kind == "expert":
            assert group.normalised, group.name  # probabilities of those that stay
        elif group.kind == "channel":
            assert group.normalised == (name != "resnet"), group.name  # batch norm has its own
        elif group.name.endswith("qk_dim"):
            assert group.normalised == (name in ("qwen3", "gemma3")), group.name
        else:
            assert not group.normalised, group.name


def signature(graph: DependencyGraph) -> set[tuple[Any, ...]]:
    """Groups as values: names, kinds, sizes, and each site with the whole axis it stands on."""
    names = {group.dim: group.name for group in (*graph.groups, *graph.frozen)}

    def draw(layout: Layout) -> Any:
        layout = resolve(layout)
        if isinstance(layout, Dim):
            return names.get(layout, layout.size)
        return "x" if isinstance(layout, Product) else "+", tuple(map(draw, layout.parts))

    return {
        (
            group.name,
            group.kind,
            group.size,
            frozenset((site.tensor, site.axis, draw(site.layout)) for site in group.sites),
        )
        for group in graph.groups
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(e.name, marks=() if e.name in WRITTEN_OUT else pytest.mark.slow)
        for e in ZOO
        if len(e.backends) > 1
    ],
)
def test_eager_and_sdpa_give_the_same_groups(name: str) -> None:
    eager, sdpa = (signature(discovered(name, b)) for b in ("eager", "sdpa"))
    assert eager == sdpa


@every_case
def test_rules_and_unification_agree(name: str, attention: str) -> None:
    """Two derivations of one thing: the R1-R3 closure of any site is its unification class."""
    graph = discovered(name, attention)
    members: dict[str, set[Any]] = {}
    for node in graph.network.nodes:
        members.setdefault(graph.network.nodes[node]["group"], set()).add(node)
    for group in graph.groups:
        for site in group.sites:
            (start,) = (n for n in graph.neurons(site.tensor, site.axis) if n[1] == group.name)
            reached = graph.trigger(start)
            assert reached == members[group.name], f"{group.name} from {site}"
            assert graph.sites_of(reached) == {str(s) for s in group.sites}


# rewriting


@st.composite
def plans(draw: st.DrawFn, graph: DependencyGraph) -> Plan:
    """A plan over all groups at once; about a third of them stay whole."""
    choice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = {}
    for group in graph.groups:
        if choice.random() < 0.7:
            count = int(choice.integers(group.least, group.size, endpoint=True))
            kept[group.name] = np.sort(choice.permutation(group.size)[:count]).tolist()
    return Plan.of(graph, kept)


# Shrinking a seed explains nothing and takes minutes.
@settings(max_examples=4, phases=[Phase.generate])
@given(data=st.data())
@every_case
def test_the_oracle_holds(name: str, attention: str, data: st.DataObject) -> None:
    """The smaller model computes what the original does without the removed units.

    At another batch and length than it was traced with; and it trains.
    """
    graph = discovered(name, attention)
    plan = data.draw(plans(graph))
    small = fxprune.rewrite(graph.traced, plan)
    args, kwargs = BY_NAME[name].example(*OTHER)
    fxprune.verify(graph.traced, small, plan, kwargs or args)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after

    small.zero_grad()
    output(small(*args, **kwargs)).square().mean().backward()
    for fqn, parameter in small.named_parameters():
        assert parameter.grad is not None, fqn
        assert parameter.grad.isfinite().all(), fqn
        parameter.grad = None  # unpruned parameters are the original's own


@every_case
def test_an_empty_plan_changes_nothing(name: str, attention: str) -> None:
    graph = discovered(name, attention)
    small = fxprune.rewrite(graph.traced, Plan.of(graph, {}))
    assert isinstance(small, fx.GraphModule)
    model = built(name, attention)
    args, kwargs = BY_NAME[name].example(*OTHER)
    with torch.no_grad():
        torch.testing.assert_close(output(small(*args, **kwargs)), output(model(*args, **kwargs)))
    theirs = {id(p) for p in model.parameters()}
    assert all(id(p) in theirs for p in small.parameters()), "unpruned tensors are shared"


@every_case
def test_the_original_is_untouched(name: str, attention: str) -> None:
    graph = discovered(name, attention)
    model = built(name, attention)
    before = {k: (v, v.clone(), v._version) for k, v in model.state_dict().items()}
    code = graph.traced.graph_module.code
    kept = {g.name: range(1, g.size) for g in graph.groups}
    fxprune.rewrite(graph.traced, Plan.of(graph, {n: tuple(r) for n, r in kept.items()}))
    assert graph.traced.graph_module.code == code
    for key, value in model.state_dict().items():
        assert value.data_ptr() == before[key][0].data_ptr()
        assert torch.equal(value, before[key][1])


# One of every kind; the others take long.
ON_META = ("llama", "bloom", "mixtral", "resnet")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ON_META else pytest.mark.slow) for name in BY_NAME],
)
def test_meta_models_give_the_same_graph(name: str) -> None:
    """Node for node and group for group: what is planned or rebuilt on meta fits the real model."""
    attention = BY_NAME[name].backends[-1]
    with torch.device("meta"):
        model = BY_NAME[name].make(attention).eval()
    inputs = tree_map_only(torch.Tensor, lambda x: x.to("meta"), BY_NAME[name].example())
    on_meta = fxprune.discover(fxprune.trace(model, *inputs))
    real = discovered(name, attention)
    assert signature(on_meta) == signature(real)
    nodes, theirs = (g.traced.graph_module.graph.nodes for g in (on_meta, real))
    assert [str(n.target) for n in nodes] == [str(n.target) for n in theirs]
    assert all(tensor.is_meta for tensor in on_meta.traced.tensors.values())
    assert all(p.is_meta for p in model.parameters())


# the page


# Of each way that a class says its sizes, or cannot; and what is no language model costs little.
ON_PAGE = ("llama", "bloom", "t5", "bert", "vit", "chatglm_block", "resnet", "perceptron")


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param(
            entry.name,
            each,
            id=f"{entry.name}-{each}",
            marks=() if each == entry.backends[-1] and entry.name in ON_PAGE else pytest.mark.slow,
        )
        for entry in ZOO
        for each in entry.backends
    ],
)
def test_the_page_is_current(name: str, attention: str) -> None:
    """Every cell; but errors are float noise, other on every machine, and need to be small."""
    said = conformance_table.committed()[name, attention]
    found = conformance_table.cells(BY_NAME[name], attention)
    for column in conformance_table.ERRORS:
        for cell in (said, found):
            assert not cell[column] or float(cell[column]) <= 1e-4, column
        found[column] = said[column] if found[column] else ""
    assert found == said, "run: python -m tests.conformance_table"


def test_the_page_has_every_model_and_nothing_else() -> None:
    rows, vision = conformance_table.committed(), conformance_table.committed_vision()
    assert tuple(rows) == CASES, "run: python -m tests.conformance_table"
    assert tuple(vision) == tuple(FAMILIES), "run: python -m tests.conformance_table"
    text = conformance_table.PAGE.read_text(encoding="utf-8")
    (versions,) = re.findall(r"^Measured with (.*)\.$", text, re.MULTILINE)
    assert text == conformance_table.page(rows.values(), vision.values(), versions)
