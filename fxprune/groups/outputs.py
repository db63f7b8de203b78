"""Which values that a graph returns may come out at the pruned size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

# Entries of a ModelOutput, by parts of their names. ``mems`` is the cache of XLNet's kind.
_CACHES = ("past_key_values", "cache", "past_buckets_states", "mems")
_HIDDEN = ("hidden_state",)


def intermediate(graph: fx.Graph) -> frozenset[int]:
    """The output leaves (by position) that are intermediate values, so that they may shrink.

    They are the caches and hidden states of a transformers ``ModelOutput`` that the graph itself
    goes on to use. The first entry is the model's result, and nothing else is known to be no
    interface of the user's: a plain dict, list, tuple or dataclass comes out at the sizes it had.
    """
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None or not _is_model_output(info.out_spec):
        return frozenset()
    leaves = pytree.tree_leaves(graph.output_node().args[0])
    inner = list(_named(info.out_spec, inside=False))
    first = info.out_spec.children()[0].num_leaves
    return frozenset(
        place
        for place, (leaf, may) in enumerate(zip(leaves, inner, strict=True))
        if may and place >= first and isinstance(leaf, fx.Node) and len(leaf.users) > 1
    )


def _named(spec: Any, inside: bool) -> Iterator[bool]:
    """Of each leaf, whether it lies in a cache or among hidden states of a ModelOutput."""
    if spec.is_leaf():
        yield inside
        return
    names = spec.context if _is_model_output(spec) else [""] * spec.num_children
    for name, child in zip(names, spec.children(), strict=True):
        yield from _named(child, inside or any(part in name for part in (*_CACHES, *_HIDDEN)))


def _is_model_output(spec: Any) -> bool:
    # If transformers is not imported, none of its outputs can be here.
    module = sys.modules.get("transformers.utils.generic")
    kind = None if module is None else module.ModelOutput
    return kind is not None and isinstance(spec.type, type) and issubclass(spec.type, kind)
