"""All costs of a model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim
from fxprune.costs.active import active_parameters
from fxprune.costs.kv_cache import kv_cache
from fxprune.costs.macs import macs
from fxprune.errors import CostError
from fxprune.groups.parameters import count_parameters

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def facts(graph: DependencyGraph, counts: Mapping[Dim, int] | None = None) -> dict[str, int | None]:
    """Every cost, None where it cannot be counted.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        counts: units that stay, by dim; a dim that is absent keeps all.

    Returns:
        ``parameters``; ``active``, those that one token meets; ``macs`` of one row of 64 tokens;
        ``kv_cache``, numbers cached per token.
    """

    def attempt(count: Callable[..., int]) -> int | None:
        try:
            return count(graph, counts)
        except CostError:
            return None

    return {
        "parameters": count_parameters(graph, counts),
        "active": active_parameters(graph, counts),
        "macs": attempt(macs),
        "kv_cache": attempt(kv_cache),
    }
