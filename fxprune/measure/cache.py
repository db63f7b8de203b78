"""Bytes that a decoder caches per token: read off its cache, or counted from its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune import costs
from fxprune.errors import CostError, TraceError
from fxprune.groups.dependency import discover
from fxprune.trace import trace
from fxprune.trace.inputs import device_of

LENGTHS = (8, 16)  # shorter than any sliding window


def bytes_per_token(model: nn.Module) -> tuple[int | None, str]:
    """Bytes of keys and values that one more token of one row adds.

    Args:
        model: a causal language model, or a GraphModule of one.

    Returns:
        Bytes, None where they cannot be told, and how they were found or why not.
    """
    if not isinstance(model, fx.GraphModule):
        found = _from_cache(model)
        if found is not None:
            return found, "measured from the cache that the model returns"
    try:
        numbers = costs.kv_cache(discover(trace(model)))
    except (CostError, TraceError) as error:
        return None, str(error)
    kinds = (p.dtype for p in model.parameters() if p.is_floating_point())
    size = next(kinds, torch.get_default_dtype()).itemsize
    return numbers * size, "counted from the graph, in the dtype of the weights"


@torch.no_grad()
def _from_cache(model: nn.Module) -> int | None:
    sizes = []
    for length in LENGTHS:
        ids = torch.ones(1, length, dtype=torch.long, device=device_of(model))
        try:
            output: Any = model(input_ids=ids, use_cache=True)
        except TypeError:  # no such argument: it has no cache
            return None
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return None
        sizes.append(sum(t.nbytes for t in _tensors(cache, 4)))
    grown, rest = divmod(sizes[1] - sizes[0], LENGTHS[1] - LENGTHS[0])
    return grown if rest == 0 else None


def _tensors(value: Any, depth: int) -> Iterable[torch.Tensor]:
    """The tensors inside an object, each storage once, however the object keeps them."""
    found: dict[int, torch.Tensor] = {}

    def visit(item: Any, left: int) -> None:
        if isinstance(item, torch.Tensor):
            found[item.untyped_storage().data_ptr()] = item
        elif left and isinstance(item, list | tuple):
            for each in item:
                visit(each, left - 1)
        elif left and isinstance(item, Mapping):
            for each in item.values():
                visit(each, left - 1)
        elif left and hasattr(item, "__dict__"):
            for each in vars(item).values():
                visit(each, left - 1)

    visit(value, depth)
    return found.values()
