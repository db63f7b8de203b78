"""Polynomials against sizes and differences evaluated the long way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes.dims import Dim, Layout, Product, Sum
from fxprune.axes.polynomial import Count, constant, of_layout, product, total
from fxprune.axes.positions import kept_size

DIMS = [Dim(size) for size in (3, 4, 5, 7)]
LAYOUTS: st.SearchStrategy[Layout] = st.recursive(
    st.sampled_from(DIMS),
    lambda inner: st.builds(
        lambda make, parts: make(tuple(parts)),
        st.sampled_from([Product, Sum]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)
COUNTS = st.fixed_dictionaries({dim: st.integers(1, dim.size) for dim in DIMS})
MOVING = st.sets(st.sampled_from(DIMS))


@given(LAYOUTS, COUNTS, MOVING)
def test_a_layout(layout: Layout, counts: dict[Dim, int], moving: set[Dim]) -> None:
    kept = {dim: counts[dim] for dim in moving}
    assert of_layout(layout, moving).value(kept) == kept_size(layout, kept)
    assert of_layout(layout, moving).value(counts) == kept_size(layout, kept)  # the others stay


@given(LAYOUTS, LAYOUTS, COUNTS)
def test_arithmetic(a: Layout, b: Layout, counts: dict[Dim, int]) -> None:
    x, y = of_layout(a, DIMS), of_layout(b, DIMS)
    left, right = kept_size(a, counts), kept_size(b, counts)
    assert (x + y).value(counts) == left + right
    assert (x - y).value(counts) == left - right
    assert (x * y).value(counts) == left * right
    assert product([x, y, constant(3)]).value(counts) == 3 * left * right
    assert total([x, y, constant(3)]).value(counts) == 3 + left + right


@given(LAYOUTS, LAYOUTS, COUNTS, st.sampled_from(DIMS), st.integers(-1, 2))
def test_unit_costs_are_differences(
    a: Layout, b: Layout, counts: dict[Dim, int], dim: Dim, more: int
) -> None:
    count = Count(of_layout(a, DIMS) * of_layout(b, DIMS) + of_layout(b, DIMS))
    changed = {**counts, dim: counts[dim] + more}
    assert count.unit_cost(dim, counts, more) == count.total(changed) - count.total(counts)


def test_dims_that_are_absent_keep_all() -> None:
    a, b = DIMS[:2]
    count = Count(of_layout(Product((a, b)), {a}))
    assert count.total({}) == 12
    assert count.unit_cost(a, {}, -1) == -4
    assert count.unit_cost(b, {}, -1) == 0
