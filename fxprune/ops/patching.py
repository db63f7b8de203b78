"""Integers in the graph that stand for sizes, recomputed from the output layout of their node.

An op without a patch is left as it is: most take their sizes from their operands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Layout
from fxprune.errors import RewriteError
from fxprune.ops.op import Patch, register_op
from fxprune.ops.resize import Resizer

aten = torch.ops.aten
_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv}


def patches(*targets: Any) -> Callable[[Patch], Patch]:
    """Register what rewriting does to the size arguments of ops."""

    def register(patch: Patch) -> Patch:
        register_op(*targets, patch=patch)
        return patch

    return register


def resized(resize: Resizer, node: fx.Node, layout: Layout, size: Any, before: Any) -> Any:
    """A size argument for an axis of the given layout.

    Args:
        resize: sizes under the plan.
        node: the new node.
        layout: layout of the axis.
        size: the argument in the new graph.
        before: the argument in the original graph.
    """
    if not resize.changed(layout) or size == -1:
        return size
    if isinstance(size, int):
        return resize.size(layout)
    now = _evaluated(resize, before)
    if now == resize.size(layout):
        return size  # read off a value that is smaller already
    if now != layout.size:
        raise RewriteError(f"the size {size} of {node.name} cannot be followed")
    # A symbolic product such as batch * heads: exchange its static part.
    old, new = resize.static_factor(layout)
    with node.graph.inserting_before(node):
        symbolic = node.graph.call_function(operator.floordiv, (size, old))
        return node.graph.call_function(operator.mul, (symbolic, new))


def _evaluated(resize: Resizer, size: Any) -> int:
    """What a size expression of the original graph gives in the rewritten one, in stand-ins."""
    if not isinstance(size, fx.Node):
        return int(size)
    source: Any = size.args[0]
    if size.target is aten.sym_size.int:
        axis: Any = size.args[1]
        return resize.size(resize.axes(source)[axis])
    if size.target in _ARITHMETIC:
        assert callable(size.target)
        return int(size.target(*(_evaluated(resize, x) for x in size.args)))
    return resize.sizes.value(size.meta["val"])


def list_of_sizes(place: int) -> Patch:
    """The patch of ops whose argument at a place is a size for each axis."""

    def sizes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
        """A list with one size for each output axis."""
        given: Any = new.args[place]
        before: Any = old.args[place]
        triples = zip(resize.axes(old), given, before, strict=True)
        new.update_arg(place, [resized(resize, new, *each) for each in triples])

    return sizes
