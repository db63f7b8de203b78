"""Multiply-accumulates of a forward pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim
from fxprune.costs import MacCount
from fxprune.select.budgets.cost import Cost, Setting

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class Macs(Cost):
    """What :func:`fxprune.costs.macs` counts, at the budget's shape."""

    name = "macs"
    words = "MACs"

    def count(self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting) -> MacCount:
        """MACs of one forward pass."""
        return MacCount(graph, dims, *setting.shape)
