"""Multiply-accumulates of every matrix product and convolution of a graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.axes.rules.einsum import _spelled_out
from fxprune.costs.polynomial import Polynomial, product, total
from fxprune.costs.sizes import ValueSizes
from fxprune.errors import CostError
from fxprune.trace.arguments import argument
from fxprune.trace.source import location

aten = torch.ops.aten

Rule = Callable[[ValueSizes, fx.Node], Polynomial]

# Of these a count would have to know the inside.
_OPAQUE = re.compile(
    r"^(lstm|gru|rnn_\w+|\w+_cell|bilinear|_trilinear|cdist|_cdist_forward|chain_matmul|kron|addbmm"
    r"|conv_tbc|_scaled_mm|_scaled_grouped_mm|_int_mm|_weight_int\w+|_convert_weight\w*|linalg_\w+"
    r"|_transformer_encoder_layer_fwd|_native_multi_head_attention|_sparse\w+|sspaddmm|hspmm)$"
)
_HARMLESS = re.compile(r"^linalg_(vector_norm|norm|cross|diagonal)$")


def packet_name(node: fx.Node) -> str:
    """``matmul`` of ``aten.matmul.default``; "" for what is no op."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return str(name)


def multiplies(sizes: ValueSizes, node: fx.Node) -> Polynomial | None:
    """Multiply-accumulates of one op, or None for one that is no product.

    Raises:
        CostError: the op may hold products that cannot be counted.
    """
    if node.op != "call_function":
        return None
    rule = RULES.get(packet_name(node))
    if rule is not None:
        return rule(sizes, node)
    namespace = getattr(node.target, "namespace", "aten")
    opaque = _OPAQUE.match(packet_name(node)) and not _HARMLESS.match(packet_name(node))
    if opaque or namespace not in ("aten", "prims", "_operator", "builtins"):
        raise refusal(node, "its multiply-accumulates are not known")
    return None


def refusal(node: fx.Node, why: str) -> CostError:
    """The error for an op, with its place."""
    return CostError(f"{node.target} at {location(node) or node.name} cannot be counted: {why}")


def _linear(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    return sizes.elements(node) * sizes.axes(argument(node, "weight"))[1]


def _matmul(name: str) -> Rule:
    """Every element of the output is a sum over the last axis of the operand of that name."""

    def rule(sizes: ValueSizes, node: fx.Node) -> Polynomial:
        return sizes.elements(node) * sizes.axes(argument(node, name))[-1]

    return rule


def _attention(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    """Scores and their product with the values, for every query head; no causal halving."""
    *rows, width = sizes.axes(node)
    query, key = argument(node, "query"), argument(node, "key")
    return product(rows) * sizes.axes(key)[-2] * (sizes.axes(query)[-1] + width)


def _convolution(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    window = product(sizes.axes(argument(node, "weight"))[1:])
    turned = packet_name(node).startswith("conv_transpose") or argument(node, "transposed")
    return sizes.elements(argument(node, "input") if turned else node) * window


def _einsum(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    given: Any = node.args
    equation, operands = given[:2]
    if len(operands) != 2:
        raise refusal(node, "the order in which more than two operands are multiplied is open")
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


def _tensordot(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    axes = sizes.axes(argument(node, "self"))
    return sizes.elements(node) * product(axes[i] for i in argument(node, "dims_self"))


def _recurrent(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    """Every step multiplies with every matrix once; directions and layers have their own."""
    given: Any = node.args
    weights = given[2] if isinstance(given[2], list | tuple) else given[2:]
    matrices = (w for w in weights if isinstance(w, fx.Node) and w.meta["val"].dim() == 2)
    return product(sizes.axes(given[0])[:-1]) * total(map(sizes.elements, matrices))


def _grouped(sizes: ValueSizes, node: fx.Node) -> Polynomial:
    """Rows sorted by expert: each meets the matrix of its own."""
    given: Any = node.args
    if given[1].meta["val"].dim() != 3:
        raise refusal(node, "its groups lie on the contracted axis")
    return sizes.elements(node) * sizes.axes(given[0])[-1]


RULES: dict[str, Rule] = {
    "linear": _linear,
    "mm": _matmul("self"),
    "bmm": _matmul("self"),
    "matmul": _matmul("self"),
    "mv": _matmul("self"),
    "dot": _matmul("self"),
    "inner": _matmul("self"),
    "addmm": _matmul("mat1"),
    "addmv": _matmul("mat"),
    "baddbmm": _matmul("batch1"),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "tensordot": _tensordot,
    **dict.fromkeys(
        (
            f"{kind}{form}"
            for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
            for form in ("", "_cell")
        ),
        _recurrent,
    ),
    "_grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
    **dict.fromkeys(
        (
            *(f"conv{rank}d" for rank in (1, 2, 3)),
            *(f"conv_transpose{rank}d" for rank in (1, 2, 3)),
            "convolution",
        ),
        _convolution,
    ),
}
