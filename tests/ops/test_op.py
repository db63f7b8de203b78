"""Rules and patches of third parties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.axes.dims import Axes, Dim, Product
from fxprune.errors import OracleError, RewriteError, RuleError
from fxprune.ops.context import Context
from fxprune.ops.op import OPS, Op, find_op
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from tests.ops.single import draw

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
    """Leave the table as it was."""
    before = dict(OPS)
    yield
    OPS.clear()
    OPS.update(before)


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


@pytest.mark.usefixtures("with_lines")
def test_unknown_op_is_frozen_with_its_name_and_line() -> None:
    found = graph()
    assert axis(found, "up.weight") == "12!"
    assert axis(found, "scale") == "3!"
    for group in found.frozen:
        if "up.weight[0]" in {str(site) for site in group.sites}:
            assert "unknown op fxprune_tests.scale_blocks" in (group.reason or "")
            assert "test_op.py:" in (group.reason or "")


def test_registered_rule_and_patch_make_it_prunable() -> None:
    def blocks_patch(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
        new.update_arg(2, resize.size(resize.inferred.notes[old, "block"]))

    fxprune.register_op(OP, patch=blocks_patch)(blocks_rule)

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
    fxprune.register_op(OP)(blocks_rule)
    fxprune.register_op(OP.default)(other)
    assert find_op(OP.default).rule is other
    assert find_op(OP).rule is blocks_rule


@pytest.mark.usefixtures("with_lines")
def test_missing_patch_is_reported_with_the_line() -> None:
    fxprune.register_op(OP)(blocks_rule)
    found = graph()
    (inner,) = (g for g in found.groups if g.size == 4)
    plan = Plan.of(found, {inner.name: (0, 1)})
    with pytest.raises(RewriteError, match=r"scale_blocks.*test_op\.py:\d+.*register a patch"):
        fxprune.rewrite(found.traced, plan)


def test_rule_with_axes_that_do_not_fit_freezes() -> None:
    fxprune.register_op(OP)(lambda ctx, node: ctx.of(node.args[0])[:-1])
    found = graph()
    assert axis(found, "up.weight") == "12!"
    reasons = {group.reason or "" for group in found.frozen}
    assert any("axes of a shape its rule does not expect" in reason for reason in reasons)


@pytest.mark.parametrize("target", [aten.linear, torch.Tag.pointwise, aten.slice.Tensor])
def test_registering_a_rule_twice_is_an_error(target: Any) -> None:
    before = OPS[target]
    with pytest.raises(RuleError, match="has a rule already"):
        fxprune.register_op(target)(blocks_rule)
    assert OPS[target] is before


def test_registering_a_patch_twice_is_an_error() -> None:
    before = OPS[aten.split]
    with pytest.raises(RuleError, match="has a patch already"):
        fxprune.register_op(aten.split, patch=lambda resize, old, new: None)
    assert OPS[aten.split] is before


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
    assert (find_op(target).rule is not None) is known


@torch.library.custom_op("fxprune_tests::centred", mutates_args=())
def centred(x: Tensor) -> Tensor:
    """Less the mean over the last axis."""
    return x - x.mean(-1, keepdim=True)


@torch.library.custom_op("fxprune_tests::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    """``x W``."""
    return x @ weight


@centred.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@project.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    torch._check(x.shape[-1] == weight.shape[0])
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(centred(self.up(x)))


class Projected(nn.Module):
    """A removed unit is infinite where it is read, and zero times that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.weight = nn.Linear(6, 12), nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        return project(self.up(x).square().rsqrt(), self.weight)


def centred_rule(ctx: Context, node: fx.Node) -> Axes:
    source: Any = node.args[0]
    ctx.tag(ctx.of(source)[-1], "normalised")
    return ctx.of(source)


def project_rule(ctx: Context, node: fx.Node) -> Axes:
    x, weight = node.args
    ctx.unify(ctx.of(x)[-1], ctx.of(weight)[0], node)
    return (*ctx.of(x)[:-1], ctx.of(weight)[1])


@pytest.mark.parametrize(
    ("model", "op", "rule", "says"),
    [
        (Centred, torch.ops.fxprune_tests.centred, centred_rule, {"reduces": True}),
        (Projected, torch.ops.fxprune_tests.project, project_rule, {"contracts": True}),
    ],
)
def test_the_proof_knows_what_a_third_party_says_of_an_op(
    model: type[nn.Module], op: Any, rule: Any, says: dict[str, Any]
) -> None:
    def prove() -> fxprune.VerifyReport:
        found = fxprune.discover(fxprune.trace(model().eval(), torch.randn(2, 7, 6)))
        (group,) = found.groups
        plan = Plan.of(found, {group.name: range(2, group.size)})
        return fxprune.verify(found.traced, fxprune.rewrite(found.traced, plan), plan)

    fxprune.register_op(op, rule=rule)
    with pytest.raises(OracleError):
        prove()
    fxprune.register_op(op, **says)
    assert prove().tensors


def test_no_op_is_known_to_one_stage_and_unknown_to_another() -> None:
    """What multiplies or averages has a rule, and what multiplies is read as zero by the proof."""
    unknown = {aten._grouped_mm, "transformers::grouped_mm_fallback"}  # experts, frozen as yet
    for target, op in OPS.items():
        overloads = [getattr(target, n) for n in target.overloads()] if is_packet(target) else []
        ruled = op.rule or find_op(target).rule or any(find_op(o).rule for o in overloads)
        if op != Op(rule=op.rule) and target not in unknown:
            assert ruled, target
        if op.product or (op.macs and not recurs(target)):
            assert op.contracts, target


def is_packet(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverloadPacket)


def recurs(target: Any) -> bool:
    return any(name in str(target) for name in ("lstm", "gru", "rnn"))
