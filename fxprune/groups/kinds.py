"""Kinds and names of groups, read off structure and module paths, never off a model family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

from fxprune.groups.group import Site

KINDS = (
    "mlp", "attention", "query", "head_dim", "channel",
    "expert", "state", "conv", "latent", "vocabulary", "other",
)  # fmt: skip
# Kinds of what a layer has in the place of attention.
MIXERS = ("state", "conv")
# What is pruned where nothing else is said: the MLPs, and the heads of attention or of a state.
DEFAULT_KINDS = ("mlp", "attention", "state")
_UNITS = {
    "mlp": "units",
    "attention": "heads",
    "query": "queries",
    "channel": "channels",
    "expert": "experts",
    "state": "states",
    "conv": "conv_channels",
    "latent": "ranks",
    "vocabulary": "tokens",
    "other": "units",
}
_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")


def kind_of(tags: Set[str], matrices: int, role: str | None) -> str:
    """The kind of a dim.

    What the numbers of an input look up, or an output has a value for each of, is the vocabulary.

    A batch axis of a product of two activations is a head: one of attention, or of a state where
    the layer keeps a matrix of keys by values. The axes that such a product contracts or brings in
    are a head's inside. Units that a router chooses by their scores, and that hold weights of their
    own, are experts. An axis on which values of different origin are added is a residual stream;
    inside a branch it is a state where it is taken step by step, and a convolution along the
    sequence where each unit has a window of its own. What is left between two matrices is ``mlp``
    inside a branch, and ``latent`` on the way to heads and states.

    Args:
        tags: structural facts that the rules recorded.
        matrices: in how many parameters of two or more axes the dim occurs.
        role: of the dim, see :func:`fxprune.groups.streams.roles`.
    """
    if "token" in tags:
        return "vocabulary"
    if "expert" in tags or ("chosen" in tags and matrices > 1):
        return "expert"
    if "batch" in tags and "softmax" not in tags and "recurrent" in tags:
        return "state"
    if "batch" in tags and (matrices > 1 or "softmax" in tags):
        # One with values of its own is a whole head, whatever else of its keys others share.
        return "query" if "repeat" in tags and "own" not in tags else "attention"
    if tags & {"inner", "outer"}:
        return "head_dim"
    if role == "branch" and {"residual", "stepped"} <= tags:
        return "state"
    if role == "branch" and "depthwise" in tags:
        return "conv"
    if "convolution" in tags or ("residual" in tags and role != "branch"):
        return "channel"
    if role == "rank" and matrices > 1:
        return "latent"
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
