"""Costs as polynomials in the numbers of kept units.

A tensor axis keeps a product or a sum of units, and a cost is a sum of products of axes. Terms in
the same dims are merged, so a whole model has few, and evaluating one costs next to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from math import prod

from fxprune.axes.dims import Dim, Layout, Sum, resolve

Monomial = tuple[Dim, ...]


class Polynomial:
    """An integer polynomial whose variables are dims (their numbers of kept units).

    Args:
        terms: coefficient by monomial; a monomial lists its dims, powers by repetition, by ``id``.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = terms

    def __add__(self, other: Polynomial) -> Polynomial:
        return total((self, other))

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + constant(-1) * other

    def __mul__(self, other: Polynomial) -> Polynomial:
        terms: dict[Monomial, int] = defaultdict(int)
        for mine, a in self.terms.items():
            for theirs, b in other.terms.items():
                terms[tuple(sorted((*mine, *theirs), key=id))] += a * b
        return Polynomial(terms)

    def value(self, counts: Mapping[Dim, int]) -> int:
        """The value where each dim keeps ``counts`` units; an absent dim keeps all."""
        return sum(
            factor * prod(counts.get(dim, dim.size) for dim in monomial)
            for monomial, factor in self.terms.items()
        )


def constant(number: int) -> Polynomial:
    """A number."""
    return Polynomial({(): number})


def total(polynomials: Iterable[Polynomial]) -> Polynomial:
    """Their sum."""
    terms: dict[Monomial, int] = defaultdict(int)
    for polynomial in polynomials:
        for monomial, factor in polynomial.terms.items():
            terms[monomial] += factor
    return Polynomial(terms)


def product(polynomials: Iterable[Polynomial]) -> Polynomial:
    """Their product."""
    result = constant(1)
    for polynomial in polynomials:
        result = result * polynomial
    return result


def of_layout(layout: Layout, dims: Collection[Dim]) -> Polynomial:
    """Size of an axis after pruning; dims outside ``dims`` keep all their units."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return Polynomial({(layout,): 1}) if layout in dims else constant(layout.size)
    parts = [of_layout(part, dims) for part in layout.parts]
    return total(parts) if isinstance(layout, Sum) else product(parts)


class Count:
    """A cost of the whole model for any numbers of kept units.

    Args:
        polynomial: the cost.
    """

    def __init__(self, polynomial: Polynomial) -> None:
        self._polynomial = polynomial
        of_dim: dict[Dim, dict[Monomial, int]] = defaultdict(dict)
        for monomial, factor in polynomial.terms.items():
            for dim in monomial:
                of_dim[dim][monomial] = factor
        self._of_dim = {dim: Polynomial(terms) for dim, terms in of_dim.items()}

    def total(self, counts: Mapping[Dim, int]) -> int:
        """The cost of the whole model; a dim that is absent keeps all its units."""
        return self._polynomial.value(counts)

    def unit_cost(self, dim: Dim, counts: Mapping[Dim, int], more: int = 1) -> int:
        """What is added when ``dim`` keeps ``more`` units than ``counts`` says.

        Negative ``more`` gives the (negative) cost that goes. Only terms in which the dim occurs
        are evaluated.
        """
        mine = self._of_dim.get(dim)
        if mine is None:
            return 0
        before = counts.get(dim, dim.size)
        difference = 0
        for monomial, factor in mine.terms.items():
            power, rest = 0, factor
            for other in monomial:
                if other is dim:
                    power += 1
                else:
                    rest *= counts.get(other, other.size)
            difference += rest * ((before + more) ** power - before**power)
        return difference
