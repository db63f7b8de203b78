"""A product in the middle of the dense model that reads fewer units, refitted by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxprune.axes.dims import find
from fxprune.compensate import matrices
from fxprune.compensate.solve import damped_solve
from fxprune.data.graph_inputs import Masks, row_count
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.resize import Resizer
from fxprune.stream.divergence import Change, Values
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.traced import Traced

DAMPING = 0.5  # as compensation has it


def moments(traced: Traced, fit: Lockstep, hidden: Sequence[Masks], consumer: Consumer) -> Tensor:
    """``X^T X`` of what enters a product, over all tokens that count, float64."""
    weight = traced.tensors[consumer.site.tensor]
    count = row_count(traced, consumer.source.meta["val"].shape[:-1])
    total: Tensor | None = None
    for values, each in zip(fit.advance(consumer.node), hidden, strict=True):
        found = matrices.input_rows(consumer, values[consumer.source], weight)
        mask = None if matrices.convolves(consumer) else each.get(count)
        found = found if mask is None else found[mask]
        part = (found.T @ found).double()
        total = part if total is None else total.add_(part)
    assert total is not None
    if not total.isfinite().all():
        raise CalibrationError(f"what enters {consumer.module} on the data is not finite")
    return total


def columns(
    graph: DependencyGraph, consumer: Consumer, kept: Mapping[str, Sequence[int]]
) -> Tensor:
    """The columns of a consumer's matrix that stay, int64.

    Args:
        graph: the groups.
        consumer: what reads the units.
        kept: of groups by name, the units that stay.
    """
    weight = graph.traced.tensors[consumer.site.tensor]
    kernel = matrices.weight_matrix(consumer, weight).shape[1] // weight.shape[consumer.site.axis]
    units = {find(graph[name].dim): torch.tensor(sorted(u)).numpy() for name, u in kept.items()}
    resize = Resizer(graph.inferred, units, graph.traced.sizes)
    index = resize.index(consumer.site.layout)
    return (index[:, None] * kernel + torch.arange(kernel)).flatten()


def fewer(traced: Traced, consumer: Consumer, moments: Tensor, kept: Tensor) -> Change:
    """Columns of a product's matrix go, the others are refitted to what all gave together."""
    weight = traced.tensors[consumer.site.tensor].detach()
    matrix = matrices.weight_matrix(consumer, weight).double()
    kept, moments = kept.to(matrix.device), moments.double()
    there = moments[kept][:, kept]
    lacking = matrix @ moments[:, kept] - matrix[:, kept] @ there
    change = -matrix
    change[:, kept] = damped_solve(there, lacking, DAMPING)
    difference = change.to(torch.promote_types(weight.dtype, torch.float32))

    def changed(values: Values, whole: Tensor) -> Tensor:
        entering = matrices.input_rows(consumer, values[consumer.source], weight)
        less = matrices.output_rows(consumer, whole) + entering @ difference.T
        return matrices.output_tensor(consumer, less, whole)

    return changed
