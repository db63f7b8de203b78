"""Kinds and names of groups, read off structure and module paths, never off a model family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

from fxprune.groups.group import Site

KINDS = ("mlp", "attention", "query", "head_dim", "channel", "expert", "other")
_UNITS = {
    "mlp": "units",
    "attention": "heads",
    "query": "queries",
    "channel": "channels",
    "expert": "experts",
    "other": "units",
}
_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")


def kind_of(tags: Set[str], matrices: int) -> str:
    """The kind of a dim.

    A batch axis of a product of two activations over which a softmax runs is a head; the axes that
    such a product contracts or brings in are a head's inside; an axis on which values of different
    origin are added is a residual stream. Units that a router chooses by their scores, and that
    hold weights of their own, are experts. What is left between two matrices is ``mlp``, as long
    as no residual branch has such units, see :func:`fxprune.groups.streams.branch_dims`.

    Args:
        tags: structural facts that the rules recorded.
        matrices: in how many parameters of two or more axes the dim occurs.
    """
    if "expert" in tags or ("chosen" in tags and matrices > 1):
        return "expert"
    if {"batch", "softmax"} <= tags:
        return "query" if "repeat" in tags else "attention"
    if tags & {"inner", "outer"}:
        return "head_dim"
    if tags & {"residual", "convolution"}:
        return "channel"
    return "mlp" if matrices > 1 else "other"


def unit_word(kind: str, tags: Set[str]) -> str:
    """What a group's units are called in its name."""
    if kind != "head_dim":
        return _UNITS[kind]
    if {"inner", "outer"} <= tags:
        return "head_dim"
    return "qk_dim" if "inner" in tags else "v_dim"


def kind_of_unit(word: str) -> str:
    """The kind that a group's units are called after; ``mlp`` for plain units."""
    if word.partition("#")[0] in ("head_dim", "qk_dim", "v_dim"):
        return "head_dim"
    return next((kind for kind, unit in _UNITS.items() if unit == word.partition("#")[0]), "other")


def place_of(sites: Iterable[Site]) -> str:
    """The innermost module that contains every parameter of the group.

    Where only the root does, a stream through the whole model is called ``residual`` and a short
    chain (convolution, norm, convolution) goes by its first member.
    """
    paths = list(dict.fromkeys(s.tensor.rpartition(".")[0] for s in sites))
    common = paths[0].split(".")
    for path in paths[1:]:
        parts = path.split(".")
        length = 0
        while length < min(len(common), len(parts)) and common[length] == parts[length]:
            length += 1
        common = common[:length]
    return ".".join(common) or (paths[0] if len(paths) <= 4 else "residual")


def layer_of(place: str) -> tuple[str, int] | None:
    """Stack and index of the first numbered module on the path."""
    match = _LAYER.match(place)
    return (match.group(1), int(match.group(2))) if match else None
