"""Which module of the hierarchy a residual sum belongs to as a block."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx


def blocks(sums: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """The path of the block that each residual sum lies in.

    It is the innermost numbered module (``layers.3``) on the way to the sum whose list has items of
    one class only: T5 numbers the parts of a block too, which are of several. Without such a list
    it is the outermost numbered module, and without numbers the module of the sum itself.
    """
    classes: dict[str, set[str]] = {}
    for node in sums:
        for path, kind in _stack(node):
            if _numbered(path):
                classes.setdefault(path.rpartition(".")[0], set()).add(kind)
    found = {}
    for node in sums:
        numbered = [path for path, _ in _stack(node) if _numbered(path)]
        alike = [path for path in numbered if len(classes[path.rpartition(".")[0]]) == 1]
        own = [path for path, _ in _stack(node)][-1:] or [node.name]
        found[node] = (alike[-1:] or numbered[:1] or own)[0]
    return found


def within(graph: fx.Graph, place: str) -> list[fx.Node]:
    """The nodes that the module at a path made, itself or by the modules inside it."""
    return [node for node in graph.nodes if any(path == place for path, _ in _stack(node))]


def inside(nodes: Sequence[fx.Node], places: Collection[str]) -> dict[fx.Node, str]:
    """The innermost of some modules that each node was made in; "" for none."""
    found = {}
    for node in nodes:
        paths = [path for path, _ in _stack(node) if path in places]
        found[node] = (paths or [""])[-1]
    return found


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Path and class of every module that was running when the node was made, outermost first.

    The second run of a module (shared weights) is told from the first: ``layers.0@1``.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return [
        (f"{path}{''.join(str(key).rpartition('@')[1:]) if '@' in str(key) else ''}", str(kind))
        for key, (path, kind) in stack.items()
    ]


def _numbered(path: str) -> bool:
    return path.rpartition(".")[2].partition("@")[0].isdecimal()
