"""Time of a forward pass, from measured curves of the groups, added up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.dims import Dim, find
from fxprune.errors import SelectionError
from fxprune.select.budgets.cost import Cost, Count, Setting
from fxprune.select.latency import LatencyTable, nanoseconds, unmeasured

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class Latency(Cost):
    """Time of one forward pass of the budget's shape; an absolute number is in milliseconds."""

    name = "latency"
    words = "nanoseconds of a forward pass"

    def count(self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting) -> Count:
        """Nanoseconds, so that sums come out the same in any order.

        Raises:
            SelectionError: nothing was measured, or something else.
        """
        table = self._table(setting)
        table.check(graph, setting.shape)
        return LatencyCount(table, graph, dims)

    def whole(self, graph: DependencyGraph, setting: Setting) -> int:
        """Nanoseconds of the original, with the blocks and branches that may have gone."""
        return nanoseconds(self._table(setting).whole)

    def absolute(self, amount: float) -> float:
        """Milliseconds in nanoseconds."""
        return amount * 1e6

    def _table(self, setting: Setting) -> LatencyTable:
        if setting.latency is None:
            raise SelectionError(
                "a budget of latency needs measurements: "
                f"latency=fxprune.measure_latency(graph, {setting.shape})"
            )
        return setting.latency


class LatencyCount(Count):
    """Counts the latency of a model, in nanoseconds, as units of some dims are removed.

    Args:
        table: what was measured.
        graph: the groups of the model.
        dims: the dims that may lose units.

    Raises:
        SelectionError: one of them was not measured.
    """

    def __init__(self, table: LatencyTable, graph: DependencyGraph, dims: Iterable[Dim]) -> None:
        dims = set(dims)
        self._base = nanoseconds(table.base)
        self._saved: dict[Dim, NDArray[np.int64]] = {}
        for curve in table.curves:
            saved = np.interp(range(curve.kept[-1] + 1), curve.kept, curve.saved)
            whole = np.rint(saved * 1e9).astype(np.int64)
            self._saved |= {find(graph[name].dim): whole for name in curve.groups}
        for group in graph.groups:
            if find(group.dim) in dims and find(group.dim) not in self._saved:
                raise SelectionError(unmeasured(group.name))

    def total(self, counts: Mapping[Dim, int]) -> int:
        """Latency of the whole model; an absent dim keeps all its units."""
        saved = (self._saved[dim][kept] for dim, kept in counts.items() if dim in self._saved)
        return self._base - int(sum(saved))

    def unit_cost(self, dim: Dim, counts: dict[Dim, int], more: int = 1) -> int:
        """What is added when ``dim`` keeps ``more`` units than ``counts`` says."""
        saved, before = self._saved[dim], counts.get(dim, dim.size)
        return int(saved[before] - saved[before + more])
