"""Properties of the axis algebra, over random layouts.

A layout is drawn as a *recipe* (nested tuples over numbered dims), because dims are mutable: the
same recipe is built several times to compare the outcome of different orders of statements.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fxprune.axes.dims import (
    ONE,
    Dim,
    Layout,
    Product,
    Sum,
    atoms,
    freeze,
    resolve,
    split_product,
    split_sum,
    unify,
)
from fxprune.axes.positions import index, kept_size

Recipe = Any  # int (number of a dim) | ("product" | "sum", tuple[Recipe, ...])


class World:
    """Dims by number, and layouts built over them."""

    def __init__(self, sizes: list[int]) -> None:
        self.dims = [Dim(size) for size in sizes]

    def build(self, recipe: Recipe) -> Layout:
        if isinstance(recipe, int):
            return self.dims[recipe]
        kind, parts = recipe
        built = tuple(self.build(part) for part in parts)
        return Product(built) if kind == "product" else Sum(built)

    def picture(self) -> list[Any]:
        """What every dim has become, with atoms numbered as they are met."""
        numbers: dict[Dim, int] = {}

        def draw(layout: Layout) -> Any:
            layout = resolve(layout)
            if isinstance(layout, Dim):
                return numbers.setdefault(layout, len(numbers)), layout.size, layout.frozen
            return type(layout).__name__, tuple(draw(part) for part in layout.parts)

        return [draw(dim) for dim in self.dims]


@st.composite
def recipe_of_size(draw: DrawFn, size: int, sizes: list[int], depth: int = 2) -> Recipe:
    """A layout of exactly that size; new dims are appended to ``sizes``, old ones reused."""
    divisors = [d for d in range(2, size) if size % d == 0]
    choices = ["dim", "dim"]
    if depth and divisors:
        choices += ["product"] * 2
    if depth and size > 1:
        choices.append("sum")
    choice = draw(st.sampled_from(choices))
    if choice == "dim":
        same = [number for number, other in enumerate(sizes) if other == size]
        if same and draw(st.booleans()):
            return draw(st.sampled_from(same))
        sizes.append(size)
        return len(sizes) - 1
    first = draw(st.sampled_from(divisors) if choice == "product" else st.integers(1, size - 1))
    second = size // first if choice == "product" else size - first
    return choice, (
        draw(recipe_of_size(first, sizes, depth - 1)),
        draw(recipe_of_size(second, sizes, depth - 1)),
    )


@st.composite
def recipes(draw: DrawFn, count: int = 2) -> tuple[list[int], list[Recipe]]:
    """Sizes of the dims, and ``count`` layouts of one common size."""
    size = draw(st.sampled_from([2, 6, 8, 12, 16, 24, 36]))
    sizes: list[int] = []
    return sizes, [draw(recipe_of_size(size, sizes)) for _ in range(count)]


def kept_units(layouts: list[Layout], draw: DrawFn) -> dict[Dim, np.ndarray]:
    """A random choice of units for every atom; some atoms are left out (they keep all)."""
    kept = {}
    for atom in dict.fromkeys(atom for layout in layouts for atom in atoms(layout)):
        if draw(st.booleans()):
            flags = draw(st.lists(st.booleans(), min_size=atom.size, max_size=atom.size))
            kept[atom] = np.flatnonzero(flags).astype(np.int64)
    return kept


def by_numpy(axis: np.ndarray, layout: Layout, kept: dict[Dim, np.ndarray]) -> np.ndarray:
    """The same selection, by reshaping, taking and concatenating the axis itself."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return axis[kept[layout]] if layout in kept else axis
    if isinstance(layout, Sum):
        ends = np.cumsum([part.size for part in layout.parts])
        pieces = np.split(axis, ends[:-1]) if layout.parts else []
        chosen = [by_numpy(a, part, kept) for a, part in zip(pieces, layout.parts, strict=True)]
        return np.concatenate([axis[:0], *chosen])
    grid = axis.reshape([part.size for part in layout.parts])
    for number, part in enumerate(layout.parts):
        positions = by_numpy(np.arange(part.size), part, kept)
        grid = np.take(grid, positions, axis=number)
    return grid.reshape(-1)


# index and sizes


@given(recipes(count=1), st.data())
def test_index_agrees_with_numpy(
    drawn: tuple[list[int], list[Recipe]], data: st.DataObject
) -> None:
    sizes, (recipe,) = drawn
    layout = World(sizes).build(recipe)
    kept = kept_units([layout], data.draw)
    positions = index(layout, kept)
    np.testing.assert_array_equal(by_numpy(np.arange(layout.size), layout, kept), positions)
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all(), "ascending, each position once"
    assert kept_size(layout, {dim: len(units) for dim, units in kept.items()}) == len(positions)


@given(recipes(count=1))
def test_nothing_pruned_keeps_everything(drawn: tuple[list[int], list[Recipe]]) -> None:
    sizes, (recipe,) = drawn
    layout = World(sizes).build(recipe)
    np.testing.assert_array_equal(np.arange(layout.size), index(layout, {}))
    assert kept_size(layout, {}) == layout.size


def test_a_dim_met_twice_is_cut_twice() -> None:
    half = Dim(4)
    rotary = Sum((half, half))
    assert index(rotary, {half: np.array([0, 2])}).tolist() == [0, 2, 4, 6]


def test_heads_are_outer() -> None:
    heads, head_dim = Dim(3), Dim(2)
    assert index(Product((heads, head_dim)), {heads: np.array([0, 2])}).tolist() == [0, 1, 4, 5]
    assert index(Product((heads, head_dim)), {head_dim: np.array([1])}).tolist() == [1, 3, 5]


# resolve


@given(recipes(count=1))
def test_resolve_is_a_normal_form(drawn: tuple[list[int], list[Recipe]]) -> None:
    sizes, (recipe,) = drawn
    layout = World(sizes).build(recipe)
    normal = resolve(layout)
    assert normal.size == layout.size
    assert resolve(normal) is normal

    def check(part: Layout, above: type | None) -> None:
        assert not isinstance(part, Dim) or (part.binding is None and part.size > 1)
        if not isinstance(part, Dim):
            assert type(part) is not above
            assert len(part.parts) != 1
            if isinstance(part, Product):
                assert not any(isinstance(below, Sum) for below in part.parts[:-1])
            for below in part.parts:
                check(below, type(part))

    check(normal, None)


def test_a_product_of_a_sum_is_a_sum_of_products() -> None:
    """Two copies of one dim, said in two ways."""
    dim = Dim(3)
    once, twice = resolve(Product((Sum((Dim(1), Dim(1))), dim))), Sum((dim, dim))
    assert isinstance(once, Sum)
    assert once.parts == twice.parts


def test_ones_and_nothings_drop_out() -> None:
    dim = Dim(5)
    assert resolve(Product((Dim(1), dim, ONE))) is dim
    assert resolve(Sum((Sum(()), dim))) is dim
    assert resolve(Dim(1)) is ONE


# unify


@given(recipes())
def test_unify_is_symmetric(drawn: tuple[list[int], list[Recipe]]) -> None:
    sizes, (a, b) = drawn
    there, back = World(sizes), World(sizes)
    assert unify(there.build(a), there.build(b)) == unify(back.build(b), back.build(a))
    assert there.picture() == back.picture()


@given(recipes())
def test_unify_is_idempotent(drawn: tuple[list[int], list[Recipe]]) -> None:
    sizes, (a, b) = drawn
    world = World(sizes)
    x, y = world.build(a), world.build(b)
    done = unify(x, y)
    once = world.picture()
    assert unify(x, y) == done
    assert unify(y, x) == done
    assert world.picture() == once


@given(recipes(count=3), st.data())
def test_unified_layouts_are_one_axis(
    drawn: tuple[list[int], list[Recipe]], data: st.DataObject
) -> None:
    sizes, chosen = drawn
    world = World(sizes)
    layouts = [world.build(recipe) for recipe in chosen]
    agreed = [unify(a, b) for a, b in itertools.pairwise(layouts)]
    kept = kept_units(layouts, data.draw)
    for layout in [*layouts, *world.dims]:
        np.testing.assert_array_equal(
            by_numpy(np.arange(layout.size), layout, kept), index(layout, kept)
        )
    for (a, b), same in zip(itertools.pairwise(layouts), agreed, strict=True):
        if same:
            np.testing.assert_array_equal(index(a, kept), index(b, kept))
        else:
            assert all(atom.frozen for layout in (a, b) for atom in atoms(layout))


@given(recipes(count=3))
def test_sizes_are_conserved(drawn: tuple[list[int], list[Recipe]]) -> None:
    sizes, (a, b, c) = drawn
    world = World(sizes)
    x, y, z = (world.build(recipe) for recipe in (a, b, c))
    unify(x, y)
    unify(y, z)
    for dim, size in zip(world.dims, sizes, strict=True):
        assert dim.size == size
        assert resolve(dim).size == size
        assert len(index(dim, {})) == size


@given(recipes(count=3), st.permutations([(0, 1), (1, 2), (0, 2)]))
def test_order_of_statements_does_not_matter(
    drawn: tuple[list[int], list[Recipe]], order: list[tuple[int, int]]
) -> None:
    sizes, chosen = drawn
    pictures = []
    for statements in ([(0, 1), (1, 2)], order):
        world = World(sizes)
        layouts = [world.build(recipe) for recipe in chosen]
        if not all(unify(layouts[i], layouts[j]) for i, j in statements):
            return  # what a clash has half done depends on the order; all of it is frozen
        pictures.append(world.picture())
    assert pictures[0] == pictures[1]


@st.composite
def chains(draw: DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Factors of an axis, and two ways to group neighbours: cut positions."""
    factors = draw(st.lists(st.integers(2, 4), min_size=2, max_size=5))
    cuts = st.lists(st.integers(1, len(factors) - 1), unique=True).map(sorted)
    return factors, draw(cuts), draw(cuts)


@given(chains(), st.sampled_from([Product, Sum]))
def test_two_groupings_of_one_axis_always_agree(
    chain: tuple[list[int], list[int], list[int]], kind: type[Product] | type[Sum]
) -> None:
    factors, *cuttings = chain
    layouts: list[Layout] = []
    for cuts in cuttings:
        bounds = zip([0, *cuts], [*cuts, len(factors)], strict=True)
        layouts.append(
            kind(tuple(Dim(kind(tuple(map(Dim, factors[i:j]))).size) for i, j in bounds))
        )
    assert unify(*layouts)
    assert not any(atom.frozen for atom in atoms(layouts[0]))


def test_fused_projection_splits_into_heads() -> None:
    """q, k and v stand side by side on one axis; viewed as heads, each has its own."""
    fused = Dim(48 + 24 + 24)
    left, value = split_sum(fused, 72) or pytest.fail("no split")
    query, key = split_sum(left, 48) or pytest.fail("no split")
    heads, head_dim = Dim(6), Dim(8)
    assert unify(query, Product((heads, head_dim)))
    assert unify(key, Product((Dim(3), head_dim)))
    units = np.array([0, 5])
    assert index(fused, {head_dim: units})[:4].tolist() == [0, 5, 8, 13]
    assert len(index(fused, {head_dim: units})) == 6 * 2 + 3 * 2 + value.size


def test_a_block_that_a_boundary_runs_through_stands_alone() -> None:
    """5 blocks of (2 x 3) cut in the middle: the third block stays, the two on each side do not."""
    outer, inner = Dim(5), Sum((Dim(3), Dim(3)))
    left, right = split_sum(Product((outer, inner)), 15) or pytest.fail("no split")
    before, after = (atom for atom in atoms(outer))
    assert (before.size, after.size) == (2, 2)
    kept = {before: np.array([1]), after: np.array([0])}
    assert index(left, kept).tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert index(right, kept).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert not any(atom.frozen for half in (left, right) for atom in atoms(half))


def test_a_sum_factors_against_a_product() -> None:
    """Falcon: (6 query + 1 key + 1 value heads) x head_dim."""
    axis = Sum((Dim(48), Dim(8), Dim(8)))
    head_dim = Dim(8)
    assert unify(axis, Product((Dim(8), head_dim)))
    assert resolve(axis.parts[1]) is resolve(axis.parts[2]) is resolve(head_dim)
    assert [a.size for a in dict.fromkeys(atoms(axis))] == [6, 8]


def test_blocks_that_normal_form_flattens_are_found_again() -> None:
    """The same, once head_dim is a pair of halves: 48 + (4 + 4) + (4 + 4)."""
    half, heads = Dim(4), Dim(6)
    head_dim = Sum((half, half))
    axis = Sum((Product((heads, head_dim)), head_dim, head_dim))
    assert unify(Product((Dim(8), Dim(8))), axis)
    assert unify(axis, Product((Dim(8), Dim(8))))
    assert not heads.frozen
    assert not half.frozen


# clashes and freezing


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Product((Dim(4), Dim(6))), Product((Dim(6), Dim(4)))),
        (Sum((Dim(5), Dim(7))), Product((Dim(3), Dim(4)))),
        (Dim(5), Dim(6)),
        (Product((Dim(2), Dim(3))), Product((Dim(2), Dim(3), Dim(2)))),
    ],
)
def test_a_clash_freezes_both(a: Layout, b: Layout) -> None:
    assert not unify(a, b, "they differ")
    assert {atom.reason for layout in (a, b) for atom in atoms(layout)} == {"they differ"}


def test_a_dim_inside_itself_is_a_clash() -> None:
    dim = Dim(6)
    assert not unify(dim, Sum((dim, dim)))
    assert not unify(dim, Product((dim, Dim(2))))
    assert unify(dim, Product((dim, Dim(1))))
    assert dim.frozen


@given(recipes(count=3), st.data())
def test_frozen_stays_frozen(drawn: tuple[list[int], list[Recipe]], data: st.DataObject) -> None:
    sizes, (a, b, c) = drawn
    world = World(sizes)
    frozen = data.draw(st.sampled_from(world.dims))
    if data.draw(st.booleans()):
        freeze(frozen, "on purpose")
        unify(world.build(a), world.build(b))
    else:
        unify(world.build(a), world.build(b))
        freeze(frozen, "on purpose")
    unify(world.build(b), world.build(c))
    assert all(atom.frozen for atom in atoms(frozen))


def test_a_free_dim_meets_only_its_like() -> None:
    batch, fixed = Dim(6, free=True), Dim(6)
    assert unify(batch, Dim(6, free=True))
    assert not unify(batch, fixed)
    assert fixed.frozen


def test_the_first_reason_is_kept() -> None:
    dim = Dim(4)
    freeze(dim, "first")
    freeze(dim, "second")
    assert dim.reason == "first"


# splitting


@given(recipes(count=1), st.data())
def test_split_product_gives_blocks(
    drawn: tuple[list[int], list[Recipe]], data: st.DataObject
) -> None:
    sizes, (recipe,) = drawn
    layout = World(sizes).build(recipe)
    outer = data.draw(st.integers(1, layout.size))
    halves = split_product(layout, outer)
    if halves is None:
        assert not isinstance(resolve(layout), Dim) or layout.size % outer
        return
    assert (halves[0].size, halves[1].size) == (outer, layout.size // outer)
    kept = kept_units([layout], data.draw)
    np.testing.assert_array_equal(index(Product(halves), kept), index(layout, kept))


@given(recipes(count=1), st.data())
def test_split_sum_cuts_at_the_boundary(
    drawn: tuple[list[int], list[Recipe]], data: st.DataObject
) -> None:
    sizes, (recipe,) = drawn
    layout = World(sizes).build(recipe)
    at = data.draw(st.integers(0, layout.size))
    halves = split_sum(layout, at)
    if halves is None:
        assert not isinstance(resolve(layout), Dim)
        return
    assert (halves[0].size, halves[1].size) == (at, layout.size - at)
    kept = kept_units([layout], data.draw)
    np.testing.assert_array_equal(index(Sum(halves), kept), index(layout, kept))
