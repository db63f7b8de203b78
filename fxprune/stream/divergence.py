"""The divergence of the logits from the dense model's, under changes in the middle of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxprune.compensate import matrices
from fxprune.compensate.head import head, logits_node
from fxprune.compensate.reasons import computes_bias
from fxprune.compensate.residual import SAME_ROWS
from fxprune.data.calibrate import Batch
from fxprune.data.graph_inputs import graph_inputs, masks, row_count
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.op import packet
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.traced import Traced

EVERY = 4  # of so many tokens the logits of one are compared: a head costs as much as ten layers

Values = Mapping[fx.Node, Any]
# What a node gives instead, from the values that are alive there and what it gives.
Change = Callable[[Values, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Divergence:
    """A run of the dense model that is gone on with under one change after the other.

    Attributes:
        traced: the dense model.
        run: its run.
        end: the input of the head, or the logits where more than a head makes them.
        last: the head, if it is what makes them.
        places: of each batch, the rows of the tokens that are compared.
        dense: of each batch, the logarithms of the probabilities there.
    """

    traced: Traced
    run: Lockstep
    end: fx.Node
    last: Consumer | None
    places: list[Tensor]
    dense: list[Tensor]

    @classmethod
    def of(
        cls,
        graph: DependencyGraph,
        data: Sequence[Batch],
        order: Sequence[fx.Node] = (),
        keep: Mapping[fx.Node, Sequence[fx.Node]] = MappingProxyType({}),
    ) -> Divergence:
        """Run the dense model.

        Args:
            graph: its groups.
            data: what to run on.
            order: the nodes that the run will stop at.
            keep: further values that have to be alive there.

        Raises:
            CalibrationError: the data does not fit the model, or it gives no logits.
        """
        traced = graph.traced
        end, last = _end(graph)
        inputs = [graph_inputs(traced, batch) for batch in data]
        run = Lockstep(traced.graph_module, inputs, [*order, end], keep)
        count = row_count(traced, end.meta["val"].shape[:-1])
        found = cls(traced, run, end, last, [], [])
        for number, values in enumerate(inputs):
            value = run.ahead(number, end)
            mask = masks(traced, values).get(count)
            places = torch.arange(value.shape[:-1].numel(), device=value.device)
            places = places if mask is None else places[mask]
            found.places.append(places[EVERY - 1 :: EVERY])
            found.dense.append(found._logarithms(number, value))
        if not any(map(len, found.places)):
            raise CalibrationError(
                f"too little calibration data to measure costs on: of every {EVERY} tokens of a "
                "sequence one is compared. Give longer sequences, or more of them"
            )
        return found

    def mean(self, name: str, node: fx.Node, changes: Sequence[Change]) -> list[float]:
        """The divergence under each change, nats per token; the run stands before the node.

        Raises:
            CalibrationError: it is not finite.
        """
        totals, tokens = [0.0] * len(changes), 0
        for number, values in enumerate(self.run.values):
            whole = self.run.ahead(number, node)
            for place, change in enumerate(changes):
                value = self.run.ahead(number, self.end, {node: change(values, whole)})
                totals[place] += self.lost(number, value)
            tokens += len(self.places[number])
        costs = [max(0.0, total / max(1, tokens)) for total in totals]
        if not all(map(math.isfinite, costs)):
            raise CalibrationError(f"{name}: without it the logits are not finite")
        return costs

    def lost(self, number: int, value: Tensor) -> float:
        """The divergence in one batch, in nats, all compared tokens together.

        Args:
            number: of the batch.
            value: what :attr:`end` gives.
        """
        found = self._logarithms(number, value)
        return float(functional.kl_div(found, self.dense[number], reduction="sum", log_target=True))

    def _logarithms(self, number: int, value: Tensor) -> Tensor:
        """Logarithms of the probabilities at the tokens that are compared, (tokens, vocabulary)."""
        found = value.flatten(0, -2).index_select(0, self.places[number])
        if self.last is not None:
            weight = self.traced.tensors[self.last.site.tensor]
            matrix = matrices.weight_matrix(self.last, weight).to(found.dtype)
            bias = self.traced.tensors.get(self.last.bias or "")
            found = functional.linear(found, matrix, bias)
        return found.float().log_softmax(-1)


def _end(graph: DependencyGraph) -> tuple[fx.Node, Consumer | None]:
    """What the logits are made of, and the head that makes them.

    Raises:
        CalibrationError: the model gives no logits.
    """
    node = logits_node(graph.traced)
    if node is None:
        raise CalibrationError(
            f"{type(graph.traced.module).__name__} gives no logits whose divergence could be "
            "measured"
        )
    product, value = head(graph), node
    while product is not None and value is not product.node and packet(value) in SAME_ROWS:
        value = value.all_input_nodes[0]
    if product is None or value is not product.node or computes_bias(product):
        return node, None
    return product.source, product
