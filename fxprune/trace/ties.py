"""Symbolic sizes that must be equal although ``torch.export`` left it open."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv


def tie(graph: fx.Graph) -> None:
    """State that two sizes are equal where a value has an axis of ``(n * a) // b``.

    Cross-attention makes ``(batch * heads, ...)`` of its keys with the batch of its queries: the
    view holds for no other batch of the keys, but ``torch.export`` gives it an axis of such a size.
    Once the two are one symbol, every size of the graph says so.
    """
    symbols = {
        size.node.expr: size
        for node in graph.nodes
        if node.op == "placeholder"
        for size in getattr(node.meta.get("val"), "shape", ())
        if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol
    }
    for node in graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            for size in value.shape if isinstance(value, torch.Tensor) else ():
                for pair in _quotients(size):
                    a, b = (symbols.get(each) for each in pair)
                    if a is not None and b is not None and a.node.hint == b.node.hint:
                        torch._check(a == b)  # type: ignore[no-untyped-call]


def _quotients(size: int | torch.SymInt) -> list[tuple[Any, Any]]:
    """The symbols a and b of every ``(n * a) // b`` in a size."""
    if isinstance(size, int):
        return []
    found = []
    for quotient in size.node.expr.atoms(FloorDiv):
        above, below = quotient.args[0].free_symbols, quotient.args[1]
        if len(above) == 1 and below.is_Symbol and below not in above:
            found.append((*above, below))
    return found
