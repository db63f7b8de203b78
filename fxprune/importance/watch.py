"""What criteria look at, seen at the nodes of the traced graph while it runs piece by piece."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxprune.branches.pieces import Pieces
from fxprune.data.graph_inputs import Masks, row_count
from fxprune.data.sweep import Read
from fxprune.errors import CriterionError
from fxprune.groups.consumers import Consumer
from fxprune.importance.activations import Recorder
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.routing import Router, Routing, add_routed
from fxprune.importance.stacked import ExpertRecorder

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class Watcher:
    """Records what goes into the consumers of groups, and what routers do.

    Args:
        graph: the groups of the model.
        consumers: those to be seen.
        routers: likewise, by the name of their group.
        moments: whether second moments are taken.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        consumers: Iterable[Consumer],
        routers: Mapping[str, Router],
        *,
        moments: bool,
    ) -> None:
        self.graph, self.routers = graph, routers
        self.at = {consumer.node: consumer for consumer in consumers}
        stacked = tuple(each for each in self.at.values() if each.stack is not None)
        self.experts = ExpertRecorder(traced=graph.traced, consumers=stacked)
        self.recorder, self.moments = Recorder(), MomentRecorder() if moments else None
        self.hidden: Sequence[Masks] = ()
        self.factors: Sequence[float | None] = ()
        self.routing = {name: Routing.none(each.layout) for name, each in routers.items()}
        self._keeps = {node: f for each in routers.values() for node, f in each.keeps().items()}
        self._reads = {node for each in stacked for node in self.experts.reads(each)}
        self._bases = set(self.experts.bases)
        self._numbers: dict[fx.Node, Tensor] = {}
        self._rows: dict[fx.Node, int] = {}
        self._kept: dict[fx.Node, Tensor] = {}

    def check(self, pieces: Pieces) -> None:
        """Refuse what cannot be seen within one piece.

        Raises:
            CriterionError: rows of experts, or the parts of a router, lie in several pieces.
        """
        for consumer in self.experts.consumers:
            origin = self.experts.origins[consumer.node]
            wanted = {*self.experts.reads(consumer), *(() if origin is None else [origin.base])}
            _check_together(pieces, consumer.site.tensor, consumer.node, wanted)
        for name, router in self.routers.items():
            _check_together(pieces, name, router.terms, set(router.keeps()))

    def nodes(self, name: str, uses: Iterable[Consumer]) -> set[fx.Node]:
        """Where what is wanted of a group is seen.

        Args:
            name: of the group.
            uses: its consumers.
        """
        routers = [self.routers[name].terms] if name in self.routers else []
        return {*(use.node for use in uses), *routers}

    def forget(self, name: str) -> None:
        """Let go of the moments at a weight."""
        if self.moments is not None:
            self.moments.moments.pop(name, None)
        self.experts.experts.pop(name, None)

    def see(self, batch: int, node: fx.Node, value: Any, read: Read) -> Any:
        """See the value of a node, see :class:`fxprune.data.sweep.Watch`."""
        if node in self._reads:
            self._numbers[node] = value
        if node in self._bases:
            self._rows[node] = value.shape[:-1].numel()
        if node in self._keeps:
            with torch.no_grad():
                self._kept[node] = self._keeps[node](value)
            self._routed(batch)
        if node in self.at:
            consumer, factor = self.at[node], self.factors[batch] if self.moments else None
            source = read(consumer.source)
            if consumer.stack is not None:
                return self._see_experts(consumer, source, value, self.hidden[batch], factor)
            return self._see(consumer, source, value, self.hidden[batch], factor)
        return value

    def _see(
        self,
        consumer: Consumer,
        source: Tensor,
        value: Tensor,
        hidden: Masks,
        factor: float | None,
    ) -> Tensor:
        flat = tokens_at(self.graph, consumer, hidden)
        name = consumer.site.tensor
        seen = flat(source.detach())
        self.recorder.add(name, seen)
        if self.moments is None or factor is None:
            return value
        outputs = self.graph.traced.tensors[name].shape[consumer.output_axis]
        if value.shape[-1] != outputs:
            raise CriterionError(
                f"what {name!r} gives lies across the last axis of its op, and second moments are "
                "taken along it: score the model in memory"
            )
        self.moments.factor = factor
        instead = self.moments.add(name, seen, value, flat)
        return value if instead is None else instead

    def _see_experts(
        self,
        consumer: Consumer,
        source: Tensor,
        value: Tensor,
        hidden: Masks,
        factor: float | None,
    ) -> Tensor:
        self.experts.factor = factor
        values = self._numbers | {consumer.source: source}
        _, places = self.experts.see(consumer, values, hidden)
        if factor is None:
            return value
        count = self.experts.tokens(consumer, self._rows, hidden)
        return self.experts.differentiated(consumer, places, count, value)

    def _routed(self, batch: int) -> None:
        """Add what was seen of a router, once all of it was."""
        for name, router in self.routers.items():
            nodes = router.keeps().keys()
            if nodes <= self._kept.keys():
                add_routed(
                    self.routing[name], router, self._kept, self.graph.traced, self.hidden[batch]
                )
                for node in nodes:
                    del self._kept[node]


def tokens_at(
    graph: DependencyGraph, consumer: Consumer, hidden: Masks
) -> Callable[[Tensor], Tensor]:
    """What makes a matrix (tokens, C) of what a consumer reads or gives.

    Args:
        graph: the groups of the model.
        consumer: a product with a weight that is no stack.
        hidden: which tokens count, see :func:`fxprune.data.graph_inputs.masks`.
    """
    # Of a convolution, the axis of the channels is before those of the kernel.
    kernel = len(graph.layouts[consumer.site.tensor]) - 2
    axis = -1 if consumer.source_axis == -1 else -1 - kernel
    mask = None
    if hidden:
        shape = list(consumer.source.meta["val"].shape)
        del shape[axis]
        mask = hidden.get(row_count(graph.traced, shape))

    def flat(x: Tensor) -> Tensor:
        x = x.movedim(axis, -1)
        x = x.reshape(-1, x.shape[-1])
        return x if mask is None else x[mask.to(x.device)]

    return flat


def _check_together(pieces: Pieces, name: str, node: fx.Node, others: set[fx.Node]) -> None:
    inside = set(pieces[pieces.where[node]].origins.values())
    if not others <= inside:
        raise CriterionError(
            f"where the rows of {name!r} go is decided in another piece of the model than they "
            "are computed in: score the model in memory"
        )


def groups_by_piece(
    pieces: Pieces, nodes: Mapping[str, set[fx.Node]], tensors: Mapping[str, set[str]]
) -> dict[str, set[int]]:
    """The numbers of the pieces that have to run before a group can be scored.

    Args:
        pieces: the pieces.
        nodes: of each group, the nodes that are seen for it.
        tensors: of each group, the parameters whose gradients are wanted.
    """
    found: dict[str, set[int]] = defaultdict(set)
    for name, each in nodes.items():
        found[name] |= {pieces.where[node] for node in each}
    for name, wanted in tensors.items():
        read = enumerate(pieces)
        found[name] |= {number for number, piece in read if not wanted.isdisjoint(piece.tensors)}
    return found
