"""Rules and patches of third parties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.axes.context import Context
from fxprune.axes.dims import Axes, Dim, Product
from fxprune.axes.registry import RULES, find_rule
from fxprune.errors import RewriteError, RuleError
from fxprune.plan import Plan
from fxprune.rewrite.patches import PATCHES
from fxprune.rewrite.resize import Resizer
from tests.axes.single import draw

aten = torch.ops.aten


@torch.library.custom_op("fxprune_tests::scale_blocks", mutates_args=())
def scale_blocks(x: Tensor, scale: Tensor, size: int) -> Tensor:
    """Blocks of ``size`` units, each times a scale of its own."""
    return (x.unflatten(-1, (-1, size)) * scale[:, None]).flatten(-2)


@scale_blocks.register_fake
def _(x: Tensor, scale: Tensor, size: int) -> Tensor:
    torch._check(x.shape[-1] == scale.shape[0] * size)
    return torch.empty_like(x)


OP = torch.ops.fxprune_tests.scale_blocks


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.arange(1.0, 4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(scale_blocks(self.up(x), self.scale, 4))


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """Leave the tables as they were."""
    rules, patches = dict(RULES), dict(PATCHES)
    yield
    for table, before in ((RULES, rules), (PATCHES, patches)):
        table.clear()
        table.update(before)


def graph() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(Scaled().eval(), (torch.randn(2, 7, 6),)))


def axis(found: fxprune.DependencyGraph, name: str, place: int = 0) -> str:
    return draw(found.layouts[name][place])


def blocks_rule(ctx: Context, node: fx.Node) -> Axes:
    given: Any = node.args
    x, scale, size = given
    inner = Dim(size)
    ctx.unify(ctx.of(x)[-1], Product((ctx.of(scale)[0], inner)), node)
    ctx.notes[node, "block"] = inner
    return ctx.of(x)


def test_unknown_op_is_frozen_with_its_name_and_line() -> None:
    found = graph()
    assert axis(found, "up.weight") == "12!"
    assert axis(found, "scale") == "3!"
    for group in found.frozen:
        if "up.weight[0]" in {str(site) for site in group.sites}:
            assert "unknown op fxprune_tests.scale_blocks" in (group.reason or "")
            assert "test_registry.py:" in (group.reason or "")


def test_registered_rule_and_patch_make_it_prunable() -> None:
    fxprune.register_rule(OP)(blocks_rule)

    @fxprune.register_patch(OP)
    def blocks_patch(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
        new.update_arg(2, resize.size(resize.inferred.notes[old, "block"]))

    found = graph()
    assert axis(found, "up.weight") == "(3 x 4)"
    assert axis(found, "down.weight", 1) == "(3 x 4)"
    kept = {g.name: (0, g.size - 1) for g in found.groups}
    plan = Plan.of(found, kept)
    small = fxprune.rewrite(found.traced, plan)
    assert small.get_submodule("up").weight.shape == (4, 6)
    fxprune.verify(found.traced, small, plan, torch.randn(5, 3, 6))


def test_overload_goes_before_its_packet() -> None:
    other = lambda ctx, node: ctx.fresh(node)  # noqa: E731
    fxprune.register_rule(OP)(blocks_rule)
    fxprune.register_rule(OP.default)(other)
    assert find_rule(OP.default) is other
    assert find_rule(OP) is blocks_rule


def test_missing_patch_is_reported_with_the_line() -> None:
    fxprune.register_rule(OP)(blocks_rule)
    found = graph()
    (inner,) = (g for g in found.groups if g.size == 4)
    plan = Plan.of(found, {inner.name: (0, 1)})
    with pytest.raises(
        RewriteError, match=r"scale_blocks.*test_registry\.py:\d+.*register a patch"
    ):
        fxprune.rewrite(found.traced, plan)


def test_rule_with_axes_that_do_not_fit_freezes() -> None:
    fxprune.register_rule(OP)(lambda ctx, node: ctx.of(node.args[0])[:-1])
    found = graph()
    assert axis(found, "up.weight") == "12!"
    reasons = {group.reason or "" for group in found.frozen}
    assert any("axes of a shape its rule does not expect" in reason for reason in reasons)


@pytest.mark.parametrize("target", [aten.linear, torch.Tag.pointwise, aten.slice.Tensor])
def test_registering_a_rule_twice_is_an_error(target: Any) -> None:
    before = RULES[target]
    with pytest.raises(RuleError, match="has a rule already"):
        fxprune.register_rule(target)(blocks_rule)
    assert RULES[target] is before


def test_registering_a_patch_twice_is_an_error() -> None:
    before = PATCHES[aten.split]
    with pytest.raises(RuleError, match="has a patch already"):
        fxprune.register_patch(aten.split)(lambda resize, old, new: None)
    assert PATCHES[aten.split] is before


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (aten.sin.default, True),  # by its tag
        (aten.mul_.Tensor, True),
        (aten.where.ScalarSelf, True),
        (aten.where.default, False),  # positions of non-zeros
        (aten.frexp.Tensor, False),  # two tensors
        (aten.equal.default, False),  # no tensor
        (aten.nonzero.default, False),
    ],
)
def test_tags_stand_in_for_rules(target: Any, known: bool) -> None:
    assert (find_rule(target) is not None) is known
