"""Sums of products by letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Layout
from fxprune.axes.polynomial import Polynomial, product
from fxprune.ops.context import Context
from fxprune.ops.contraction import contract
from fxprune.ops.op import AxisSizes, register_op, uncounted

aten = torch.ops.aten


@register_op(aten.einsum)
def einsum(ctx: Context, node: fx.Node) -> Axes:
    """Equal letters are one axis. Letters that only operands have are contracted."""
    operands: Any = node.args[1]
    return _by_letters(
        ctx, node, operands, *_spelled_out(str(node.args[0]), [len(ctx.of(x)) for x in operands])
    )


@register_op(aten._trilinear)
def trilinear(ctx: Context, node: fx.Node) -> Axes:
    """A sum of products of three, to each of which axes are added first: ``bilinear`` inside."""
    given: Any = node.args
    operands, added, summed = given[:3], given[3:6], given[6]
    axes = range(len(ctx.of(operands[0])) + len(added[0]))
    terms = ["".join(str(axis) for axis in axes if axis not in new) for new in added]
    output = "".join(str(axis) for axis in axes if axis not in summed)
    return _by_letters(ctx, node, operands, terms, output)


def _by_letters(
    ctx: Context, node: fx.Node, operands: Sequence[Any], terms: list[str], output: str
) -> Axes:
    letters: dict[str, Layout] = {}
    owners: dict[str, list[tuple[Any, Layout]]] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, layout in zip(term, ctx.of(operand), strict=True):
            if layout.size == 1:
                continue
            owners.setdefault(letter, []).append((operand, layout))
            ctx.unify(letters.setdefault(letter, layout), layout, node)
    both = sum(ctx.activation(x) for x in operands) > 1
    for letter, layout in letters.items():
        if letter not in output:
            features = tuple(letters[x] for x in output if len(owners.get(x, ())) == 1)
            _contracted(ctx, node, owners[letter], features)
            continue
        for owner, own in owners[letter]:
            ctx.flow(owner, own, node, to=layout)
        if both and len(owners[letter]) > 1:
            ctx.tag(layout, "batch")
        elif both and ctx.activation(owners[letter][0][0]):
            ctx.tag(layout, "outer")
    return tuple(letters.get(letter, dims.ONE) for letter in output)


def _contracted(
    ctx: Context, node: fx.Node, owners: list[tuple[Any, Layout]], features: Axes
) -> None:
    (first, own), *rest = owners
    if not rest:
        ctx.tag(own, "normalised")
        for feature in features:
            ctx.flow(first, own, node, "all", feature)
    for other, theirs in rest:
        contract(ctx, node, first, own, other, theirs, features)


def _spelled_out(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Terms and output of an equation, without an ellipsis and with an output.

    The axes of an ellipsis, aligned from the right, are called 0, 1, ...
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    lengths = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    longest = max((n for t, n in zip(terms, lengths, strict=True) if "..." in t), default=0)
    rest = "".join(str(i) for i in range(longest))
    terms = [
        term.replace("...", rest[longest - count :]) if "..." in term else term
        for term, count in zip(terms, lengths, strict=True)
    ]
    if not arrow:
        joined = "".join(terms)
        single = sorted(x for x in set(joined) if joined.count(x) == 1 and x not in rest)
        output = "..." + "".join(single)
    return terms, output.replace("...", rest)


def _einsum_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    given: Any = node.args
    equation, operands = given[:2]
    if len(operands) != 2:
        raise uncounted(node, "the order in which more than two operands are multiplied is open")
    terms, output = _spelled_out(str(equation), [x.meta["val"].dim() for x in operands])
    letters: dict[str, Polynomial] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, axis, size in zip(
            term, sizes.axes(operand), operand.meta["val"].shape, strict=True
        ):
            if letter not in letters or not (isinstance(size, int) and size == 1):
                letters[letter] = axis
    # A letter of one operand alone that is not in the output is summed up before.
    return product(
        size
        for letter, size in letters.items()
        if letter in output or all(letter in term for term in terms)
    )


register_op(aten.einsum, contracts=True, macs=_einsum_macs)
register_op(aten._trilinear, contracts=True)
