"""Numbers that the key/value cache holds per token."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim
from fxprune.costs import KvCacheCount
from fxprune.select.budgets.cost import Cost, Setting

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class KvCache(Cost):
    """What :func:`fxprune.costs.kv_cache` counts."""

    name = "kv_cache"
    words = "cached numbers per token"

    def count(
        self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting
    ) -> KvCacheCount:
        """Cached numbers per token."""
        return KvCacheCount(graph, dims)
