"""The oracle with the weights of one op present finds what it finds in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import fxprune
from fxprune.errors import OracleError
from fxprune.proof.oracle import compare, reference
from tests.compensate.test_streamed import Case
from tests.marks import but_slow

MODELS = but_slow(["tiny", "gpt2", "mixtral"], "gpt2")


def proof(case: Case, source: Any = None) -> fxprune.VerifyReport:
    small = fxprune.rewrite(case.blank, case.plan, share=False)
    source = source or fxprune.Weights(case.model)
    return fxprune.verify(case.blank, small, case.plan, case.traced.kwargs, stream=source)


@pytest.mark.parametrize("name", MODELS)
def test_as_in_memory(name: str) -> None:
    case = Case(name, "mlp", "attention", "channel")
    small = fxprune.rewrite(case.traced, case.plan, share=False)
    known = fxprune.verify(case.traced, small, case.plan, case.traced.kwargs)
    found = proof(case)
    mine = {each.path: each for each in found.outputs}
    assert {each.path: each.error for each in known.outputs}.items() <= {
        path: each.error for path, each in mine.items()
    }.items()
    assert sum("leaving the piece" in path for path in mine) >= 2
    assert found.normalised == known.normalised


def test_blocks_and_half_precision() -> None:
    found = proof(Case("tiny", "mlp", remove=("model.layers.1:block",)))
    assert found.relative_error < 1e-5
    case = Case("tiny", "mlp", dtype=torch.bfloat16)
    found = proof(case)
    assert found.precision.startswith("float32")
    assert found.relative_error < 1e-4


def test_a_damaged_model_is_found() -> None:
    """Other weights on the way, of which the output would not tell by much."""
    case = Case("tiny", "mlp")
    small = fxprune.rewrite(case.blank, case.plan, share=False)
    expected = reference(
        case.blank, case.plan, case.traced.kwargs, stream=fxprune.Weights(case.model)
    )
    other = {name: list(kept) for name, kept in case.plan.kept.items()}
    first = next(iter(other))
    other[first][0] = 1  # instead of 0
    wrong = dataclasses.replace(case.plan, kept={n: tuple(k) for n, k in other.items()})
    expected.original._plan, weights = case.plan, expected.original.small(small)
    assert weights is not None
    graph, resize = expected.original.graph, fxprune.proof.original.planned(case.blank, wrong)[1]
    expected.original.small = lambda small: dataclasses.replace(  # type: ignore[method-assign]
        weights, graph=graph, resize=resize, here={}, _blank={}
    )
    with pytest.raises(OracleError, match="does not compute"):
        compare(expected, small, case.blank)
