"""What a module that stands for some nodes makes of the memory of its input."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx

aten = torch.ops.aten
_SHAPED = (aten.view.default, aten.reshape.default)


def enters(source: fx.Node, nodes: Iterable[fx.Node]) -> bool:
    """Whether a module with these nodes views its input, which must then be contiguous."""
    return any(node.target in _SHAPED and node.args[0] is source for node in nodes)


def shares(node: fx.Node) -> bool:
    """Whether the result may be the memory of the first argument."""
    schema = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None else ()
    return node.target is operator.getitem or any(r.alias_info is not None for r in returns)
