"""Every op rule and size patch, on models of their own."""

from __future__ import annotations

import functools

import pytest

from fxprune.groups.dependency import DependencyGraph
from tests.axes.cases import CASES
from tests.axes.single import Case, check_closure, drawn, prove, reasons

every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=pytest.mark.xdist_group(c.name)) for c in CASES]
)


@functools.cache
def discovered(case: Case) -> DependencyGraph:
    return case.discover()


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@every_case
def test_axes_are_what_the_op_says(case: Case) -> None:
    graph = discovered(case)
    assert {site: drawn(graph, site) for site in case.axes} == dict(case.axes)
    for site, part in case.why.items():
        assert any(part in reason for reason in reasons(graph, site)), reasons(graph, site)
    assert all(".py:" in g.reason or "graph" in g.reason for g in graph.frozen if g.reason)
    check_closure(graph)


@every_case
def test_pruned_equals_switched_off(case: Case) -> None:
    prove(discovered(case), case)
