"""Multiply-accumulates of one forward pass, from the graph alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from fxprune.axes.dims import Dim
from fxprune.axes.polynomial import Count, total
from fxprune.costs.products import multiplies
from fxprune.costs.published import as_published
from fxprune.costs.sizes import ValueSizes
from fxprune.errors import CostError

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

Convention = Literal["matmul", "paper"]
CONVENTIONS: tuple[Convention, ...] = ("matmul", "paper")


class MacCount(Count):
    """Counts the multiply-accumulates of a forward pass as units of some dims are removed.

    ``matmul`` counts matrix products and convolutions, attention included whatever its backend and
    without halving for a causal mask, nothing else: half of ``torch.utils.flop_counter``'s FLOPs.

    ``paper`` is what LLM-Pruner (arXiv 2305.11627, table 3) reports, measured there with ptflops
    and a hook of their own; see :func:`fxprune.costs.published.as_published`.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        dims: the dims that may lose units, unbound. All others keep theirs.
        batch: number of rows.
        length: number of tokens of each row; no meaning for images. A model with an encoder and a
            decoder takes as many in both.
        convention: ``matmul`` or ``paper``.

    Raises:
        CostError: an op that the convention cannot count; or the model was captured at another
            batch or length. Names it.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        dims: Iterable[Dim],
        batch: int = 1,
        length: int = 64,
        convention: Convention = "matmul",
    ) -> None:
        if convention not in CONVENTIONS:
            raise CostError(
                f"unknown convention {convention!r}: choose from {', '.join(CONVENTIONS)}"
            )
        sizes = ValueSizes(graph, set(dims), batch, length)
        found = (multiplies(sizes, node) for node in graph.traced.graph_module.graph.nodes)
        counted = total(each for each in found if each is not None)
        if convention == "paper":
            counted = counted + as_published(sizes)
        super().__init__(counted)


def macs(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    batch: int = 1,
    length: int = 64,
    convention: Convention = "matmul",
) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        graph: the groups of the model.
        counts: units that stay, by dim; a dim that is absent keeps all.
        batch: number of rows.
        length: number of tokens of each row.
        convention: ``matmul`` or ``paper``, see :class:`MacCount`.

    Raises:
        CostError: see :class:`MacCount`.
    """
    counts = counts or {}
    return MacCount(graph, counts, batch, length, convention).total(counts)
