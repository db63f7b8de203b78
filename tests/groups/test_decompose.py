"""Ops without a rule: taken apart by torch's own tables, or left whole with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.groups import decompose

Inner = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """An op between two layers."""

    def __init__(self, inner: Inner, width: int = 12) -> None:
        super().__init__()
        self.inner = inner
        self.up, self.down = nn.Linear(6, 12), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.inner(self.up(x)))


def traced(inner: Inner, width: int = 12) -> fxprune.Traced:
    return fxprune.trace(Between(inner, width).eval(), (torch.randn(3, 7, 6),))


def targets(of: fxprune.Traced) -> list[str]:
    return [str(n.target) for n in of.graph_module.graph.nodes if n.op == "call_function"]


def similarity(x: Tensor) -> Tensor:
    return x * F.cosine_similarity(x, x.flip(1), -1)[..., None]


def test_only_the_unknown_op_is_replaced_and_the_graph_computes_the_same() -> None:
    found = traced(similarity)
    x = torch.randn(5, 9, 6)
    before, kept = found.graph_module(x), targets(found)
    fxprune.discover(found)
    assert "aten.cosine_similarity.default" in kept
    after = targets(found)
    assert "aten.cosine_similarity.default" not in after
    # What has a rule stays as it is.
    assert {"aten.linear.default", "aten.flip.default"} <= set(after)
    torch.testing.assert_close(found.graph_module(x), before)
    torch.testing.assert_close(found.module(x), before)


@pytest.mark.usefixtures("with_lines")
def test_parts_say_where_they_come_from() -> None:
    found = traced(similarity)
    fxprune.discover(found)
    (norm, *_) = (n for n in found.graph_module.graph.nodes if "vector_norm" in str(n.target))
    assert "test_decompose.py" in norm.meta["stack_trace"]
    assert norm.meta["nn_module_stack"]
    assert norm.meta["val"].shape[-1] == 1


def test_symbolic_sizes_survive() -> None:
    found = traced(lambda x: torch.rot90(x, 2, (0, 1)) + similarity(x))
    graph = fxprune.discover(found)
    units = next(g for g in graph.groups if "up.weight[0]" in map(str, g.sites))
    plan = fxprune.Plan.of(graph, {units.name: (0, 3, 4, 10)})
    small = fxprune.rewrite(found, plan)
    for rows, length in ((3, 7), (5, 9)):
        fxprune.verify(found, small, plan, torch.randn(rows, length, 6))


def test_branches_found_first_are_those_of_the_graph_that_is_pruned() -> None:
    found = traced(lambda x: x + similarity(x) @ torch.ones(12, 12))
    branches = fxprune.find_branches(found)
    fxprune.discover(found)
    nodes = set(found.graph_module.graph.nodes)
    assert all(unit.inside <= nodes for unit in branches.units.values())


@pytest.mark.parametrize(
    ("inner", "op", "width"),
    [
        (lambda x: torch.linalg.svd(x).S, "linalg_svd", 7),
        (lambda x: torch.as_strided(x, (3, 7, 12), (84, 12, 1)), "as_strided", 12),
        (lambda x: torch.frexp(x).mantissa, "frexp", 12),
    ],
    ids=["a part is unknown", "it has no parts", "two results"],
)
def test_others_stay_whole_and_freeze_what_they_touch(inner: Inner, op: str, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # some fix the sizes
        found = traced(inner, width)
    graph = fxprune.discover(found)
    reasons = [g.reason for g in graph.frozen if "up.weight[0]" in map(str, g.sites)]
    assert reasons
    assert all(f"unknown op aten.{op}" in (reason or "") for reason in reasons)
    assert any(op in target for target in targets(found))


def test_parts_that_hold_at_one_size_only_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """The definition may look at a size; then it is not a definition for other sizes."""

    @torch.library.custom_op("fxprune_tests::by_size", mutates_args=())
    def by_size(x: Tensor) -> Tensor:
        return x * 2

    @by_size.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    found = traced(lambda x: by_size(x))
    (node,) = (n for n in found.graph_module.graph.nodes if "by_size" in str(n.target))
    shape = found.graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].shape
    table = {node.target: lambda x: x * 2 if x.shape[1] < 9 else x * 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompose, "_table", lambda: table)
        graph = fxprune.discover(found)
    assert any("unknown op" in (group.reason or "") for group in graph.frozen)
    assert all(not isinstance(size, int) for size in shape[:2])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
