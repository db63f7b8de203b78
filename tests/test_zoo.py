"""The zoo itself: its models build, run, and are as awkward as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.zoo import BY_NAME, CASES, EXAMPLE, OTHER, ZOO, built


def output(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_runs_at_two_sizes(name: str, attention: str) -> None:
    model = built(name, attention)
    for batch, length in (EXAMPLE, OTHER):
        args, kwargs = BY_NAME[name].example(batch, length)
        with torch.no_grad():
            values = output(model(*args, **kwargs))
        assert values.shape[0] == batch
        assert values.isfinite().all()
        assert values.std() > 0.1, "a model that says nothing hides every mistake"


@pytest.mark.parametrize("entry", [e for e in ZOO if len(e.backends) > 1], ids=lambda e: e.name)
def test_backends_agree(entry: Any) -> None:
    args, kwargs = entry.example()
    with torch.no_grad():
        eager, sdpa = (output(built(entry.name, b)(*args, **kwargs)) for b in entry.backends)
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_parameter_is_constant(name: str) -> None:
    for fqn, parameter in built(name, "eager").named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0.05, fqn
