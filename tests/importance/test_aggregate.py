"""Folding by layout against index loops, and the reductions over members."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes.dims import Dim, Layout, Product, Sum
from fxprune.errors import CriterionError
from fxprune.importance.aggregate import aggregate, collapse, fold
from tests.toys import positions


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, Dim]:
    """A layout of up to three levels in which a dim may occur any number of times."""
    dims = [Dim(draw(st.integers(2, 4))) for _ in range(3)]

    def build(depth: int) -> Layout:
        kind = draw(st.sampled_from(["dim", "product", "sum"])) if depth else "dim"
        if kind == "dim":
            return draw(st.sampled_from(dims))
        parts = tuple(build(depth - 1) for _ in range(draw(st.integers(1, 3))))
        return Product(parts) if kind == "product" else Sum(parts)

    return build(3), dims[0]


@given(layouts())
def test_fold_equals_index_loops(case: tuple[Layout, Dim]) -> None:
    layout, dim = case
    if layout.size > 3000:
        return
    vector = np.random.default_rng(0).integers(-9, 9, layout.size).astype(np.float32)
    expected = np.zeros(dim.size)
    for position, pairs in enumerate(positions(layout)):
        for held, unit in pairs:
            if held is dim:
                expected[unit] += vector[position]
    folded = fold(torch.from_numpy(vector), layout, dim)
    np.testing.assert_array_equal(folded.numpy(), expected)


@given(layouts(), st.sampled_from([("max", max), ("min", min)]))
def test_fold_to_extremes_equals_index_loops(
    case: tuple[Layout, Dim], how: tuple[str, Callable[[list[float]], float]]
) -> None:
    layout, dim = case
    if layout.size > 3000:
        return
    vector = np.random.default_rng(0).integers(-9, 9, layout.size).astype(np.float32)
    seen: list[list[float]] = [[] for _ in range(dim.size)]
    for position, pairs in enumerate(positions(layout)):
        for held, unit in pairs:
            if held is dim:
                seen[unit].append(vector[position])
    empty = -np.inf if how[0] == "max" else np.inf
    folded = fold(torch.from_numpy(vector), layout, dim, how[0])  # type: ignore[arg-type]
    assert folded.tolist() == [how[1](values) if values else empty for values in seen]


def test_query_heads_fold_onto_their_kv_head() -> None:
    kv, repeat, head = Dim(3), Dim(3), Dim(2)
    query = Product((kv, repeat, head))
    # Head h holds the number 10**h in each of its 2 positions.
    vector = torch.tensor([10**h for h in range(9)], dtype=torch.float64).repeat_interleave(2)
    assert fold(vector, query, kv).tolist() == [222, 222_000, 222_000_000]
    assert fold(vector, query, repeat).tolist() == [2_002_002, 20_020_020, 200_200_200]


def test_fold_through_bound_dims() -> None:
    axis, outer, inner = Dim(6), Dim(2), Dim(3)
    axis.binding = Product((outer, inner))
    assert fold(torch.arange(6.0), axis, outer).tolist() == [3, 12]


def test_fused_qkv_adds_the_occurrences() -> None:
    kv, head = Dim(2), Dim(2)
    heads = Product((kv, head))
    vector = torch.arange(12.0)
    assert fold(vector, Sum((heads, heads, heads)), kv).tolist() == [27, 39]


def test_collapse_keeps_one_axis() -> None:
    elements = torch.arange(24.0).reshape(2, 3, 4)
    for axis in range(3):
        moved = elements.movedim(axis, 0).reshape(elements.shape[axis], -1)
        assert torch.equal(collapse(elements, axis), moved.sum(1))
    assert torch.equal(collapse(torch.arange(3.0), 0), torch.arange(3.0))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", [9.0, 6.0]),
        ("mean", [3.0, 2.0]),
        ("max", [5.0, 3.0]),
        ("prod", [15.0, 6.0]),
        ("last", [3.0, 2.0]),
    ],
)
def test_aggregates(how: str, expected: list[float]) -> None:
    members = [torch.tensor(m) for m in ([1.0, 3.0], [5.0, 1.0], [3.0, 2.0])]
    assert aggregate(members, how).tolist() == expected  # type: ignore[arg-type]


def test_a_product_that_vanishes_is_refused() -> None:
    with pytest.raises(CriterionError, match="too small for float32"):
        aggregate([torch.full((2,), 1e-30)] * 2, "prod")
    assert aggregate([torch.zeros(2), torch.ones(2)], "prod").tolist() == [0, 0]
