"""What a decoder caches per token: keys and values of its causal attention."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import fx

from fxprune.axes.dims import Dim
from fxprune.axes.polynomial import Count, Polynomial, total
from fxprune.costs.attention import activations
from fxprune.costs.causal import CausalTest
from fxprune.costs.sizes import ValueSizes, has_fixed_sizes
from fxprune.errors import CostError

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class KvCacheCount(Count):
    """Counts the numbers that a decoder caches per token as units of some dims are removed.

    Over all layers, key/value heads times the size of a key plus that of a value, before grouped
    queries repeat them (code that caches repeated heads, as transformers' Falcon, holds more).
    Only attention in which no token sees a later one keeps a cache that grows with every token:
    cross attention, encoders and bidirectional models count 0. Sliding windows count as if the
    text were shorter than the window.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        dims: the dims that may lose units, unbound. All others keep theirs.

    Raises:
        CostError: it has causal attention and was captured with a fixed batch or length, so that
            what is per token cannot be told; or a mask cannot be computed.
    """

    def __init__(self, graph: DependencyGraph, dims: Iterable[Dim]) -> None:
        super().__init__(_cached(graph, set(dims)))


def kv_cache(graph: DependencyGraph, counts: Mapping[Dim, int] | None = None) -> int:
    """Numbers cached per token over all layers; 0 for what is not a decoder.

    Args:
        graph: the groups of the model.
        counts: units that stay, by dim; a dim that is absent keeps all.

    Raises:
        CostError: see :class:`KvCacheCount`.
    """
    counts = counts or {}
    return KvCacheCount(graph, counts).total(counts)


def _cached(graph: DependencyGraph, dims: Collection[Dim]) -> Polynomial:
    nodes = _nodes(graph)
    if not nodes:
        return Polynomial({})
    if has_fixed_sizes(graph.traced.graph_module):
        raise CostError(
            "the model was captured with a fixed batch or length: what it caches per token cannot "
            "be told"
        )
    sizes = ValueSizes(graph, dims, batch=1, length=1)
    return total(sizes.elements(node) for node in nodes)


def _nodes(graph: DependencyGraph) -> tuple[fx.Node, ...]:
    """The keys and values to keep: where they are smallest. Layers that share them count once."""
    known = graph.traced.cache.get("kv_cache")
    if known is None:
        known = graph.traced.cache["kv_cache"] = tuple(dict.fromkeys(_find(graph)))
    found: tuple[fx.Node, ...] = known
    return found


def _find(graph: DependencyGraph) -> Iterator[fx.Node]:
    found = activations(graph)
    causal = CausalTest(graph.traced.graph_module)
    sizes: ValueSizes | None = None
    for attention in found.attentions:
        if not causal(attention):
            continue
        if has_fixed_sizes(graph.traced.graph_module):
            yield attention.key
            continue
        sizes = sizes or ValueSizes(graph, (), batch=1, length=1)
        for operand in (attention.key, attention.value):
            tensors = [n for n in found.necks(operand) if isinstance(graph.inferred.axes[n], tuple)]
            yield min(tensors, key=lambda n: sizes.elements(n).value({}))
