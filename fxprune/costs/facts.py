"""All costs of a model at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fxprune.axes.dims import Dim
from fxprune.costs.kv_cache import kv_cache
from fxprune.costs.macs import macs
from fxprune.costs.memory import memory_estimate
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
        ``parameters``; ``macs`` and ``macs_paper`` of one row of 64 tokens in the two conventions
        of :class:`~fxprune.costs.MacCount`; ``kv_cache``, numbers cached per token; ``memory``,
        bytes of the weights in fp16 by :func:`~fxprune.costs.memory_estimate`.
    """

    def attempt(count: Callable[..., int], **options: Any) -> int | None:
        try:
            return count(graph, counts, **options)
        except CostError:
            return None

    return {
        "parameters": count_parameters(graph, counts),
        "macs": attempt(macs),
        "macs_paper": attempt(macs, convention="paper"),
        "kv_cache": attempt(kv_cache),
        "memory": attempt(memory_estimate),
    }
