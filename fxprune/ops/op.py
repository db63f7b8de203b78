"""What is known of an op: one record, read by inference, rewriting, the proof and the costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import fx

from fxprune.axes.dims import Axes
from fxprune.axes.polynomial import Polynomial
from fxprune.errors import CostError, RuleError
from fxprune.ops.context import Context
from fxprune.ops.resize import Resizer
from fxprune.trace.source import location

Rule = Callable[[Context, fx.Node], Axes | list[Axes]]
# patch(resizer, old node, new node) mends the new node's arguments in place; where it must add a
# node behind it, it returns the one that now stands for the value.
Patch = Callable[[Resizer, fx.Node, fx.Node], fx.Node | None]


class AxisSizes(Protocol):
    """Sizes of values, as polynomials in the numbers of kept units."""

    def axes(self, node: fx.Node) -> tuple[Polynomial, ...]:
        """The size of each axis of a value with one tensor."""

    def elements(self, node: fx.Node) -> Polynomial:
        """How many numbers a value holds."""


Macs = Callable[[AxisSizes, fx.Node], Polynomial]


@dataclass(frozen=True)
class MatrixProduct:
    """How an op multiplies an activation with a weight.

    Attributes:
        activation: name of the argument.
        weight: name of the argument.
        inner: the weight's axis that is contracted.
        outer: its other axis, of what comes out.
        axis: the activation's axis that is contracted.
        bias: name of the argument that is added.
    """

    activation: str
    weight: str
    inner: int
    outer: int
    axis: int
    bias: str = "bias"


@dataclass(frozen=True)
class Op:
    """What is known of an op. What is None is not known or does not apply.

    Attributes:
        rule: takes the :class:`~fxprune.ops.context.Context` and the FX node, and returns the
            layout of each output axis (a list of such tuples for an op with several outputs).
        patch: mends the arguments that stand for sizes. Takes the
            :class:`~fxprune.ops.resize.Resizer`, the original node and its copy in the new graph.
        product: how it multiplies an activation with a weight.
        reduces: whether it averages or sums units, or when: a removed unit that is zero would still
            be counted, so the proof runs the op on the kept ones.
        contracts: whether it is a product over an axis: the proof reads removed units as zero there
            (``elu(0) + 1`` is not).
        macs: its multiply-accumulates, from the sizes of its operands.
    """

    rule: Rule | None = None
    patch: Patch | None = None
    product: MatrixProduct | None = None
    reduces: bool | Callable[[fx.Node], bool] | None = None
    contracts: bool | None = None
    macs: Macs | None = None


OPS: dict[Any, Op] = {}
_FIELDS = tuple(each.name for each in fields(Op))
_UNKNOWN = Op()


def register_op(
    *targets: Any,
    rule: Rule | None = None,
    patch: Patch | None = None,
    product: MatrixProduct | None = None,
    reduces: bool | Callable[[fx.Node], bool] | None = None,
    contracts: bool | None = None,
    macs: Macs | None = None,
) -> Callable[[Rule], Rule]:
    """State what is known of one or more ops; as a decorator, of the rule of their axes.

    What is said in several calls adds up. See :class:`Op` for the arguments.

    Args:
        targets: op overloads (``torch.ops.aten.add.Tensor``), packets (``torch.ops.aten.add``, for
            all overloads), or the name of a packet (``"mine::add"``) that may not be there yet.
        rule: see :class:`Op`, as is all that follows.
        patch: of size arguments.
        product: of an activation with a weight.
        reduces: averages or sums units.
        contracts: is a product over an axis.
        macs: its cost.

    Returns:
        A decorator that registers a rule.

    Raises:
        RuleError: it is known already, and was said to be something else.
    """
    given = Op(rule, patch, product, reduces, contracts, macs)
    _add(targets, given)

    def register(rule: Rule) -> Rule:
        _add(targets, Op(rule))
        return rule

    return register


def _add(targets: tuple[Any, ...], given: Op) -> None:
    said = {name: value for name in _FIELDS if (value := getattr(given, name)) is not None}
    for target in targets if said else ():
        known = OPS.get(target, _UNKNOWN)
        for name in said:
            if (before := getattr(known, name)) is not None:
                named = getattr(before, "__name__", before)
                raise RuleError(f"{target} has a {name} already: {named}")
        OPS[target] = replace(known, **said)


def find_op(target: Any) -> Op:
    """What is known of an op: of its overload, else of its packet, else what its tags imply."""
    packet = getattr(target, "overloadpacket", target)
    name = getattr(packet, "_qualified_op_name", None)
    found = [OPS[key] for key in (target, packet, name) if key is not None and key in OPS]
    if torch.Tag.pointwise in getattr(target, "tags", ()) and _gives_one_tensor(target):
        found.append(OPS.get(torch.Tag.pointwise, _UNKNOWN))
    if len(found) < 2:
        return found[0] if found else _UNKNOWN
    values = (
        next((v for op in found if (v := getattr(op, name)) is not None), None) for name in _FIELDS
    )
    return Op(*values)


def _gives_one_tensor(target: Any) -> bool:
    return [str(value.type) for value in target._schema.returns] == ["Tensor"]


def packet(node: fx.Node) -> object:
    """The op without its overload; None of what is not an ATen op."""
    return getattr(node.target, "overloadpacket", None)


def uncounted(node: fx.Node, why: str) -> CostError:
    """The error for an op whose multiply-accumulates cannot be told, with its place."""
    return CostError(f"{node.target} at {location(node) or node.name} cannot be counted: {why}")
