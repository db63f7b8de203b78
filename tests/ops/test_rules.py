"""Every op rule and size patch, on models of their own."""

from __future__ import annotations

import functools

import pytest

from fxprune.groups.dependency import DependencyGraph
from tests.ops.cases import CASES
from tests.ops.single import Bundle, Case, bundles, check_closure, drawn, plans, prove, reasons


def _name(cases: tuple[Case, ...]) -> str:
    return cases[0].name if len(cases) == 1 else f"{cases[0].name}-to-{cases[-1].name}"


every_bundle = pytest.mark.parametrize("cases", bundles(CASES), ids=_name)


@functools.cache
def discovered(cases: tuple[Case, ...]) -> DependencyGraph:
    return Bundle(cases).eval().discover()


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@every_bundle
def test_axes_are_what_the_op_says(cases: tuple[Case, ...]) -> None:
    graph = discovered(cases)
    for case in cases:
        found = {site: drawn(graph, case, site) for site in case.axes}
        assert found == dict(case.axes), case.name
        for site, part in case.why.items():
            given = reasons(graph, case, site)
            assert any(part in reason for reason in given), (case.name, given)


@every_bundle
def test_groups_that_are_averaged_say_so(cases: tuple[Case, ...]) -> None:
    groups = discovered(cases).groups
    for case in cases:
        mine = [g for g in groups if f"branches.{case.name}." in g.sites[0].tensor]
        expected = not case.exact if case.normalised is None else case.normalised
        assert any(group.normalised for group in mine) is expected, case.name


@every_bundle
def test_frozen_groups_name_the_place(cases: tuple[Case, ...]) -> None:
    for group in discovered(cases).frozen:
        assert group.reason
        assert ".py:" in group.reason or "graph" in group.reason, group


@every_bundle
def test_rules_and_unification_agree(cases: tuple[Case, ...]) -> None:
    check_closure(discovered(cases))


@every_bundle
@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pruned_equals_switched_off(cases: tuple[Case, ...], number: int) -> None:
    graph = discovered(cases)
    bundle = graph.traced.module
    assert isinstance(bundle, Bundle)
    prove(graph, bundle, plans(graph, cases[0].least)[number])
