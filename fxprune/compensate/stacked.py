"""The tokens that an expert meets in the dense and in the pruned model, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.compensate.matching import Stacked
from fxprune.data.graph_inputs import Masks, row_count
from fxprune.groups.stacked import Values, by_expert
from fxprune.trace.traced import Traced


@dataclass(frozen=True, eq=False)
class Pairs:
    """One batch at one product.

    Attributes:
        target: what the dense model gives, (rows, outputs).
        kept: what the pruned model puts in, (rows, inputs).
        rows: of each expert that stays, its rows in both, in the same order of tokens.
    """

    target: Tensor
    kept: Tensor
    rows: list[tuple[Tensor, Tensor]]

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """What one expert should give, and what it is given, in float32 or float64."""
        return tuple(  # type: ignore[return-value]
            values[rows].to(torch.promote_types(values.dtype, torch.float32))
            for values, rows in zip((self.target, self.kept), self.rows[expert], strict=True)
        )


def pairs(traced: Traced, stacked: Stacked, there: Values, here: Values, hidden: Masks) -> Pairs:
    """The rows that have the same token and the same expert in both models.

    Args:
        traced: the original.
        stacked: the product in both graphs.
        there: values of the original at it, its result included.
        here: values of the smaller model before it.
        hidden: which tokens count, see :func:`fxprune.data.graph_inputs.masks`.
    """
    dense, small = stacked.stacks
    count = small.size
    numbers = torch.full((dense.size + 1,), count)
    numbers[stacked.kept] = torch.arange(count)
    found = []
    for stack, origin, values in zip(stacked.stacks, stacked.origins, (there, here), strict=True):
        x = stack.rows(values[stack.source])
        experts = stack.experts(x, values)
        if stack is dense:
            experts = numbers.to(x.device)[experts]
        tokens = origin.tokens(len(x), values, x.device)
        found.append((x, experts, tokens * count + experts, tokens))
    (_, there_experts, dense_keys, tokens), (kept, experts, keys, _) = found
    counts = there_experts < count
    mask = hidden.get(row_count(traced, stacked.origins[0].base.meta["val"].shape[:-1]))
    if mask is not None:
        counts &= mask.to(tokens.device)[tokens]
    order = counts.nonzero()[:, 0]
    order = order[dense_keys[order].argsort(stable=True)]
    ordered = dense_keys[order]
    places = torch.searchsorted(ordered, keys).clamp(max=max(0, len(ordered) - 1))
    same = experts < count
    same &= ordered[places] == keys if len(ordered) else torch.zeros_like(same)
    sets = by_expert(experts.where(same, count), count)
    rows = [(order[places[mine]], mine) for mine in sets]
    return Pairs(dense.results(there[dense.node]), kept, rows)
