"""What units cost: exact parameter counts of the whole model for any numbers of kept units.

The size of a parameter is a polynomial in the numbers of kept units, so a unit has no fixed cost:
a residual channel is cheaper once neurons are gone. Counts are therefore evaluated, and only where
a dim occurs.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim, Layout, atoms, kept_size
from fxprune.plan import parameter_shapes

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class ParameterCount:
    """Counts the parameters of a model as units of some dims are removed.

    Args:
        graph: the groups of the model.
        dims: the dims that may lose units, unbound. All others keep theirs.
    """

    def __init__(self, graph: DependencyGraph, dims: Iterable[Dim]) -> None:
        dims = set(dims)
        self._fixed = 0
        self._terms: list[tuple[int, tuple[Layout, ...]]] = []
        self._of_dim: dict[Dim, list[int]] = defaultdict(list)
        for name, shape in parameter_shapes(graph).items():
            layouts = graph.layouts.get(name, ())
            found = [dims.intersection(atoms(layout)) for layout in layouts]
            moving = tuple(layout for layout, held in zip(layouts, found, strict=True) if held)
            if not moving:
                self._fixed += prod(shape)
                continue
            still = prod(
                layout.size for layout, held in zip(layouts, found, strict=True) if not held
            )
            for dim in set().union(*found):
                self._of_dim[dim].append(len(self._terms))
            self._terms.append((still, moving))

    def total(self, counts: Mapping[Dim, int]) -> int:
        """Parameters of the whole model, tied tensors once; an absent dim keeps all its units."""
        return self._fixed + sum(self._term(i, counts) for i in range(len(self._terms)))

    def unit_cost(self, dim: Dim, counts: dict[Dim, int], more: int = 1) -> int:
        """Parameters that come back when ``dim`` keeps ``more`` units than ``counts`` says.

        Negative ``more`` gives the (negative) parameters that go.
        """
        changed = ChainMap({dim: counts.get(dim, dim.size) + more}, counts)
        return sum(self._term(i, changed) - self._term(i, counts) for i in self._of_dim[dim])

    def _term(self, i: int, counts: Mapping[Dim, int]) -> int:
        still, moving = self._terms[i]
        return still * prod(kept_size(layout, counts) for layout in moving)
