"""Outputs are compared one by one, each on its own scale, slice by slice."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import CausalLMOutput

from fxprune.trace.outputs import TOLERANCE, compared, narrow, paths

GENERATOR = torch.Generator().manual_seed(0)
VALUE = torch.randn(3, 5, 8, generator=GENERATOR)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (VALUE, ["output"]),
        ((VALUE, [VALUE, None]), ["[0]", "[1][0]", "[1][1]"]),
        ({"logits": VALUE, "stages": {"c4": VALUE}}, ["logits", "stages['c4']"]),
        ((VALUE, {"c4": VALUE}), ["[0]", "[1]['c4']"]),
        ({"a b": VALUE, 3: VALUE}, ["['a b']", "[3]"]),
        (OrderedDict(b=VALUE, a=(VALUE,)), ["b", "a[0]"]),
        (defaultdict(list, b=[VALUE, VALUE]), ["b[0]", "b[1]"]),
        (Pair(VALUE, [VALUE]), ["first", "second[0]"]),
        (
            CausalLMOutput(logits=VALUE, hidden_states=(VALUE, VALUE)),
            ["logits", "hidden_states[0]", "hidden_states[1]"],
        ),
    ],
)
def test_paths(outputs: object, expected: list[str]) -> None:
    assert paths(pytree.tree_structure(outputs)) == expected


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.complex64, torch.complex128])
def test_equal_outputs(dtype: torch.dtype) -> None:
    report = compared("x", VALUE.to(dtype), VALUE.to(dtype))
    assert (report.problem, report.error, report.used) == ("", 0, 0)
    assert report.tolerance == TOLERANCE.get(dtype, report.tolerance) > 0
    assert report.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_tolerance_is_relative_to_the_output(dtype: torch.dtype, scale: float) -> None:
    value = (VALUE.clamp(-3, 3) * scale).to(dtype)
    assert not compared("x", value, value + value * 0.2 * TOLERANCE[dtype]).problem
    assert "differs by up to" in compared("x", value, value + value * 2 * TOLERANCE[dtype]).problem


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_small_slice_is_held_against_its_own_scale(axis: int) -> None:
    """One row, position or channel of 1 % of the scale is off by 5 %: 5e-4 of its own scale."""
    factor = torch.ones(VALUE.shape[axis])
    factor[1] = 0.01
    value = VALUE * factor.view([-1 if a == axis else 1 for a in range(3)])
    wrong = value.clone()
    wrong.select(axis, 1).mul_(1.05)
    report = compared("x", value, wrong)
    assert report.problem
    assert report.used > 1
    assert report.relative_error < 1e-2
    wrong.select(axis, 1).zero_()
    assert compared("x", value, wrong).problem


def test_a_slice_below_rounding_asks_for_more_precision() -> None:
    value = VALUE.clone()
    assert not narrow(value)
    value[..., 2] *= 1e-6
    assert narrow(value)
    assert not narrow(value.double())
    value[..., 2] = 0
    assert not narrow(value), "zeros have no scale that could be missed"
    assert not narrow(torch.arange(8))
    assert not narrow(None)
    assert not narrow(torch.tensor([1.0, 1e-9])), "single numbers near zero are no slices"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_zeros_are_compared_absolutely(dtype: torch.dtype) -> None:
    zeros = torch.zeros(4, 4, dtype=dtype)
    assert not compared("x", zeros, zeros).problem
    assert not compared("x", zeros, zeros + 1e-9).problem
    assert compared("x", zeros, zeros + 1).problem
    report = compared("x", zeros, zeros + 0.75)
    assert report.relative_error == report.error == 0.75


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_must_be_at_the_same_places(bad: float) -> None:
    value, other = VALUE.clone(), VALUE.clone()
    value[0, 0, 0] = bad
    assert not compared("x", value, value.clone()).problem
    assert "not finite" in compared("x", value, other).problem
    assert "not finite" in compared("x", other, value).problem
    other[0, 0, 1] = bad
    assert "not finite" in compared("x", value, other).problem
    assert "not finite" in compared("x", value, -value).problem or bad != bad
    value[1, 1, 1] += 1
    assert compared("x", value, value - (value == value[1, 1, 1]) * 1.0).problem


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_are_equal_or_not(dtype: torch.dtype) -> None:
    value = torch.arange(1000).to(dtype)
    assert not compared("x", value, value.clone()).problem
    wrong = value.clone()
    wrong[7] = wrong[7] + 1 if dtype != torch.bool else ~wrong[7]
    assert "1 of 1000 places" in compared("x", value, wrong).problem


@pytest.mark.parametrize("part", ["real", "imag"])
def test_complex_numbers(part: str) -> None:
    value = torch.complex(VALUE, VALUE.flip(0))
    wrong = value.clone()
    getattr(wrong, part)[0, 0, 0] += 0.01
    assert compared("x", value, wrong).problem
    assert not compared("x", value, value * (1 + 1e-6)).problem


@pytest.mark.parametrize(
    ("expected", "actual", "what"),
    [
        (VALUE, VALUE[..., 1:], "shape"),
        (VALUE, VALUE[0], "shape"),
        (VALUE, VALUE.double(), "float64"),
        (VALUE, VALUE.long(), "int64"),
        (VALUE, None, "None"),
        (None, VALUE, "None"),
        (3, 4, "4"),
        (3, 3.0, "3.0"),
        ("a", "b", "'b'"),
        (1.0, 1.1, "differs"),
    ],
)
def test_other_kinds_of_values(expected: object, actual: object, what: str) -> None:
    assert what in compared("x", expected, actual).problem
    assert not compared("x", expected, expected).problem


def test_dtypes_may_differ_where_asked() -> None:
    assert not compared("x", VALUE, VALUE.bfloat16(), same_dtype=False).problem
    assert compared("x", VALUE, VALUE.bfloat16() * 1.2, same_dtype=False).problem
    assert compared("x", VALUE, VALUE.long(), same_dtype=False).problem


def test_empty_outputs() -> None:
    empty = torch.empty(0, 4)
    assert not compared("x", empty, empty).problem
    assert not narrow(empty)
