"""Models that amplify rounding are proven in float64, and errors in them are caught."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import OracleError
from fxprune.plan import Plan

UNITS = 64


class Cancelling(nn.Module):
    """The small difference of two large values."""

    def __init__(self, dtype: torch.dtype | None = None, wrong: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.twin = (
            nn.Linear(8, UNITS),
            nn.Linear(UNITS, 8),
            nn.Linear(UNITS, 8),
        )
        with torch.no_grad():
            self.twin.weight.copy_(self.down.weight + 3e-5 * torch.randn(8, UNITS))
            self.twin.bias.copy_(self.down.bias)
        self.dtype, self.wrong = dtype, wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x).relu()
        seen = hidden if self.dtype is None else hidden.to(self.dtype).to(x.dtype)
        return self.down(seen) - self.twin(hidden) + self.wrong


def cut(model: Cancelling, keep: list[int]) -> Cancelling:
    """By hand, so that no tensor is compared bit by bit."""
    small = copy.deepcopy(model)
    small.up = nn.utils.skip_init(nn.Linear, 8, len(keep))
    with torch.no_grad():
        small.up.weight.copy_(model.up.weight[keep])
        small.up.bias.copy_(model.up.bias[keep])
        for name in ("down", "twin"):
            before = getattr(model, name)
            after = nn.Linear(len(keep), 8)
            after.weight.copy_(before.weight[:, keep])
            after.bias.copy_(before.bias)
            setattr(small, name, after)
    return small


def case() -> tuple[fxprune.Traced, Plan, list[int], Cancelling]:
    model = Cancelling()
    traced = fxprune.trace(model, (torch.randn(3, 8),))
    keep = list(range(0, UNITS, 2))
    return traced, Plan.of(fxprune.discover(traced), {"up:units": tuple(keep)}), keep, model


def test_what_rounding_makes_is_no_error() -> None:
    traced, plan, keep, model = case()
    report = fxprune.verify(traced, cut(model, keep), plan)
    assert report.precision == "float64: on these inputs the original amplifies rounding"
    assert report.relative_error < report.tolerance == 1e-9


@pytest.mark.parametrize("wrong", [3e-7, 1e-5])
def test_an_error_below_rounding_is_caught(wrong: float) -> None:
    traced, plan, keep, model = case()
    small = cut(model, keep)
    small.wrong = wrong
    with pytest.raises(OracleError, match="differs by up to"):
        fxprune.verify(traced, small, plan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_that_rounds_more_is_caught(dtype: torch.dtype) -> None:
    traced, plan, keep, model = case()
    small = cut(model, keep)
    small.dtype = dtype
    with pytest.raises(OracleError, match="differs by up to"):
        fxprune.verify(traced, small, plan)


def test_without_float64_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, plan, keep, model = case()
    small = cut(model, keep)

    def hook(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if args[0].dtype is torch.float64:
            raise RuntimeError("no such kernel")

    small.register_forward_pre_hook(hook)
    with pytest.raises(OracleError, match=r"amplifies rounding.*no such kernel"):
        fxprune.verify(traced, small, plan)
