"""Arguments of an op by their names in its schema, however the call spells them."""

from __future__ import annotations

from typing import Any

from torch import fx

# What torch writes for "to the end".
END = 2**63 - 1


def argument(node: fx.Node, name: str) -> Any:
    """The named argument: positional, by keyword or the schema's default.

    Returns:
        None if the op has no such argument.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    schema = getattr(node.target, "_schema", None)
    for place, parameter in enumerate(schema.arguments if schema else ()):
        if parameter.name == name:
            return node.args[place] if place < len(node.args) else parameter.default_value
    return None


def axis_of(node: fx.Node, rank: int, name: str = "dim") -> int:
    """The one axis an op works along, non-negative."""
    return int(argument(node, name)) % rank


def axes_of(node: fx.Node, rank: int) -> list[int]:
    """The axes an op works along (``dim`` or ``dims``), non-negative; all where none is named."""
    given = argument(node, "dim")
    given = argument(node, "dims") if given is None else given
    if given is None or given == []:
        return list(range(rank))
    return [axis % rank for axis in ([given] if isinstance(given, int) else given)]
