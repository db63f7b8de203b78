"""Values that share memory: what an op that works in place changes besides its own result."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxprune.branches.sums import same_value


def written(graph: fx.Graph) -> set[fx.Node]:
    """Every value that an op writes into after it was made, itself or through a view of it."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        for target in _arguments(node, writes=True):
            found.update(memory(target))
    return found


def memory(node: fx.Node) -> set[fx.Node]:
    """The value and those before it whose memory it may share."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        value = pending.pop()
        if value not in seen:
            seen.add(value)
            pending.extend(_arguments(value))
            passed = same_value(value)
            pending.extend([] if passed is None else [passed])
    return seen


def _arguments(node: fx.Node, *, writes: bool = False) -> Iterator[fx.Node]:
    """The arguments that share memory with the result; or those that the op writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    for place, argument in enumerate(schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        alias = argument.alias_info
        if alias is not None and isinstance(given, fx.Node) and (alias.is_write or not writes):
            yield given
