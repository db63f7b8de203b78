"""Bare slicing: what any rewrite must do at least, a smaller copy of every weight that shrinks."""

from __future__ import annotations

import torch

import fxprune
from fxprune.plan import Plan
from fxprune.rewrite.planned import planned

Slices = list[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]]]


def slices(traced: fxprune.Traced, plan: Plan) -> Slices:
    """Every tensor that loses units, with the axes that do and the positions that stay."""
    graph, resize = planned(traced, plan)
    found = []
    for name, tensor in graph.traced.tensors.items():
        axes = [
            (axis, resize.index(layout).to(tensor.device))
            for axis, layout in enumerate(graph.layouts[name])
            if resize.changed(layout)
        ]
        if axes:
            # What loses most goes first: the second copy is then smaller.
            axes.sort(key=lambda each, t=tensor: len(each[1]) / t.shape[each[0]])
            found.append((tensor, axes))
    return found


def without(traced: fxprune.Traced, found: Slices) -> list[torch.Tensor]:
    """The tensors that lose nothing."""
    cut = {id(tensor) for tensor, _ in found}
    return [tensor for tensor in traced.tensors.values() if id(tensor) not in cut]


@torch.no_grad()
def sliced(found: Slices) -> list[torch.Tensor]:
    """The smaller tensors."""
    made = []
    for tensor, axes in found:
        small = tensor
        for axis, index in axes:
            small = small.index_select(axis, index)
        made.append(small)
    return made
