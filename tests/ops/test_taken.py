"""Experts that a loop takes one by one: gone with their part of the graph, or frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxprune
from fxprune.groups.group import Group
from fxprune.plan import Plan
from tests.loops import (
    CHOSEN,
    EXPERTS,
    INNER,
    Loop,
    branching,
    built,
    by_list,
    by_module,
    by_number,
    by_tensor,
    hit,
    idle,
    inputs,
    joined,
)

Run = Callable[..., Tensor]


def discovered(run: Run, classes: int = EXPERTS) -> tuple[fxprune.Traced, fxprune.DependencyGraph]:
    traced = fxprune.trace(built(run, classes=classes), (inputs(9),))
    return traced, fxprune.discover(traced)


def of_kind(groups: Iterable[Group], kind: str) -> list[Group]:
    return [group for group in groups if group.kind == kind]


def never_chosen(model: Any, gone: set[int]) -> Any:
    """The model with a router that scores these experts so low that they are not chosen."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.router.bias[list(gone)] = -1e9
    return other


@pytest.mark.parametrize(
    ("run", "classes"),
    [
        (by_tensor, EXPERTS),
        (by_tensor, EXPERTS + 1),
        (by_number, EXPERTS),
        (by_list, EXPERTS),
        (branching, EXPERTS),
        (idle, EXPERTS),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_experts_go_with_their_part_of_the_loop(run: Run, classes: int) -> None:
    traced, graph = discovered(run, classes)
    (group,) = of_kind(graph.groups, "expert")
    (units,) = of_kind(graph.groups, "mlp")
    assert (group.size, units.size) == (EXPERTS - 2 * (run is idle), INNER)
    assert group.least == max(1, CHOSEN - (EXPERTS - group.size))
    choice = np.random.default_rng(0)
    for number in range(group.least, group.size):
        kept = sorted(choice.permutation(group.size)[:number].tolist())
        plan = Plan.of(graph, {group.name: kept, units.name: (0, 2, 5)})
        assert fxprune.verify(traced, fxprune.rewrite(traced, plan), plan).relative_error < 1e-5
        plan = Plan.of(graph, {group.name: kept})
        small = fxprune.rewrite(traced, plan)
        names = [str(node.target) for node in small.graph.nodes]
        lists = [name for name in names if "nonzero" in name or "where" in name]
        assert len(lists) == number + EXPERTS - group.size
        other = never_chosen(traced.module, set(range(group.size)) - set(kept))
        with torch.no_grad():
            for rows in (1, 2, 30):
                x = inputs(rows)
                torch.testing.assert_close(small(x), other(x), rtol=1e-4, atol=1e-5)


def test_as_many_stay_as_are_chosen() -> None:
    traced, graph = discovered(by_tensor)
    (group,) = of_kind(graph.groups, "expert")
    with pytest.raises(fxprune.FxpruneError, match="keeps 1 units: 2 are chosen"):
        fxprune.rewrite(traced, Plan.of(graph, {group.name: (3,)}))


def test_rows_that_are_joined_freeze_the_experts() -> None:
    _, graph = discovered(joined)
    assert not of_kind(graph.groups, "expert")
    (group,) = of_kind(graph.frozen, "expert")
    assert "one place of this axis is selected" in str(group.reason)
    assert of_kind(graph.groups, "mlp")


def test_experts_in_modules_of_their_own_stay() -> None:
    _, graph = discovered(by_module)
    assert not of_kind(graph.groups, "expert")


def of_another(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Each expert has the second matrix of the next one."""
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        inner = F.silu(F.linear(x[row], self.up[e]))
        values = F.linear(inner, self.down[(e + 1) % EXPERTS])
        out.index_add_(0, row, values * weights[row, place, None])
    return out


def shared(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """All rows go through the first expert, too."""
    return by_tensor(self, x, weights, mask) + self.expert(x, 0)


def in_another_order(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        values = self.expert(x[row], EXPERTS - 1 - e)
        out.index_add_(0, row, values * weights[row, place, None])
    return out


def counted(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """How often the first expert is hit counts for all rows."""
    return by_tensor(self, x, weights, mask) + mask[0].sum()


def without_a_loop(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """All experts, whether they are hit or not, and a matrix of each for all rows as well."""
    out = torch.zeros_like(x)
    for e in range(EXPERTS):
        place, row = torch.where(mask[e])
        down = self.down[e]
        values = F.linear(F.silu(F.linear(x[row], self.up[e])), down)
        out.index_add_(0, row, values * weights[row, place, None])
        out = out + down.sum(1)
    return out


@pytest.mark.parametrize(
    ("run", "experts"),
    [(of_another, 1), (shared, 0), (in_another_order, 0), (counted, 0), (without_a_loop, 0)],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_what_is_taken_for_more_stays(run: Run, experts: int) -> None:
    """Weights that are of another expert too stay whole; so does an axis that is used otherwise."""
    traced, graph = discovered(run)
    found = of_kind(graph.groups, "expert") + [g for g in graph.groups if g.size == EXPERTS]
    assert len({group.name for group in found}) == experts
    for group in found:
        plan = Plan.of(graph, {group.name: (0, 3, 4)})
        small = fxprune.rewrite(traced, plan)
        fxprune.verify(traced, small, plan)
        other = never_chosen(traced.module, {1, 2})
        with torch.no_grad():
            torch.testing.assert_close(small(inputs(7)), other(inputs(7)), rtol=1e-4, atol=1e-5)
