"""What units cost: exact parameter counts of the whole model for any numbers of kept units.

The size of a parameter is a polynomial in the numbers of kept units, so a unit has no fixed cost:
a residual channel is cheaper once neurons are gone. Counts are therefore evaluated, and only where
a dim occurs.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim, Layout, atoms
from fxprune.axes.positions import kept_size
from fxprune.groups.parameters import remaining_shapes, weight_of
from fxprune.select.budgets.cost import Cost, Count, Setting

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


class Params(Cost):
    """Parameters of the whole model, tied ones once."""

    name = "params"
    words = "parameters"

    def count(self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting) -> Count:
        """Parameters, those of biases that are gained among them."""
        return ParameterCount(graph, dims, setting.biases)


@dataclass(frozen=True, eq=False)
class _Term:
    """``factor`` times the kept sizes of some axes; 0 while no dim of ``when`` has lost a unit."""

    factor: int
    axes: tuple[Layout, ...]
    when: frozenset[Dim] | None = None

    def __call__(self, counts: Mapping[Dim, int]) -> int:
        if self.when is not None and all(counts.get(d, d.size) == d.size for d in self.when):
            return 0
        return self.factor * prod(kept_size(axis, counts) for axis in self.axes)


class ParameterCount(Count):
    """Counts the parameters of a model as units of some dims are removed.

    Args:
        graph: the groups of the model.
        dims: the dims that may lose units, unbound. All others keep theirs.
        biases: names of biases that a Linear gains, each with the dims of which one has to lose a
            unit for that, see :func:`fxprune.select.biases.gainable`.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        dims: Iterable[Dim],
        biases: Mapping[str, Set[Dim]] | None = None,
    ) -> None:
        dims = set(dims)
        self._fixed = 0
        self._terms: list[_Term] = []
        self._of_dim: dict[Dim, list[int]] = defaultdict(list)
        for name, shape in remaining_shapes(graph).items():
            layouts = graph.layouts.get(name, ())
            held = [dims.intersection(atoms(layout)) for layout in layouts]
            if not any(held):
                self._fixed += prod(shape)
                continue
            still = prod(axis.size for axis, of in zip(layouts, held, strict=True) if not of)
            moving = tuple(axis for axis, of in zip(layouts, held, strict=True) if of)
            self._add(_Term(still, moving), set().union(*held))
        for name, when in (biases or {}).items():
            axis = graph.layouts[weight_of(name)][0]
            self._add(_Term(1, (axis,), frozenset(when)), {*when, *dims.intersection(atoms(axis))})

    def total(self, counts: Mapping[Dim, int]) -> int:
        """Parameters of the whole model, tied tensors once; an absent dim keeps all its units."""
        return self._fixed + sum(term(counts) for term in self._terms)

    def unit_cost(self, dim: Dim, counts: dict[Dim, int], more: int = 1) -> int:
        """Parameters that come back when ``dim`` keeps ``more`` units than ``counts`` says.

        Negative ``more`` gives the (negative) parameters that go.
        """
        changed = ChainMap({dim: counts.get(dim, dim.size) + more}, counts)
        terms = (self._terms[i] for i in self._of_dim[dim])
        return sum(term(changed) - term(counts) for term in terms)

    def _add(self, term: _Term, dims: Set[Dim]) -> None:
        for dim in dims:
            self._of_dim[dim].append(len(self._terms))
        self._terms.append(term)
