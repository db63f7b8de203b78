"""Multiply-accumulates of one forward pass, from the graph alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim
from fxprune.axes.polynomial import Count, total
from fxprune.costs.products import multiplies
from fxprune.costs.sizes import ValueSizes

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class MacCount(Count):
    """Counts the multiply-accumulates of a forward pass as units of some dims are removed.

    Those of matrix products and convolutions, attention included whatever its backend and without
    halving for a causal mask, nothing else: half of ``torch.utils.flop_counter``'s FLOPs.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        dims: the dims that may lose units, unbound. All others keep theirs.
        batch: number of rows.
        length: number of tokens of each row; no meaning for images. A model with an encoder and a
            decoder takes as many in both.

    Raises:
        CostError: an op that cannot be counted; or the model was captured at another
            batch or length. Names it.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        dims: Iterable[Dim],
        batch: int = 1,
        length: int = 64,
    ) -> None:
        sizes = ValueSizes(graph, set(dims), batch, length)
        found = (multiplies(sizes, node) for node in graph.traced.graph_module.graph.nodes)
        super().__init__(total(each for each in found if each is not None))


def macs(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    batch: int = 1,
    length: int = 64,
) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        graph: the groups of the model.
        counts: units that stay, by dim; a dim that is absent keeps all.
        batch: number of rows.
        length: number of tokens of each row.

    Raises:
        CostError: see :class:`MacCount`.
    """
    counts = counts or {}
    return MacCount(graph, counts, batch, length).total(counts)
