"""Learning rates that a few steps speak for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.errors import RecoveryError
from fxprune.recover import rates
from fxprune.recover.loop import Loop
from fxprune.recover.methods import FullTraining
from tests.recover.cases import IDS, METHODS, assert_same, curve, pruned, run, state_of

FINDS: dict[str, Any] = {"steps": 20, "learning_rate": "find", "validation": 0.25}


def test_from_the_lowest_up_to_the_first_that_is_worse(tmp_path: Path) -> None:
    losses = {1e-4: 4.0, 3e-4: 3.5, 1e-3: 3.1, 3e-3: 3.2, 1e-2: 1.0}
    tried: list[float] = []

    def attempt(rate: float) -> float:
        tried.append(rate)
        return losses[rate]

    found = rates.find(3e-4, attempt, tmp_path / "rates.json")
    assert tried == [1e-4, 3e-4, 1e-3, 3e-3]
    assert min(found, key=found.__getitem__) == 1e-3
    # A run that goes on takes the same.
    assert (
        rates.find(3e-4, lambda rate: pytest.fail("tried again"), tmp_path / "rates.json") == found
    )


def test_losses_that_are_not_finite() -> None:
    assert rates.find(3e-4, lambda rate: rate if rate < 1e-3 else math.nan, None).keys() == {
        1e-4,
        3e-4,
    }
    assert rates.find(3e-4, lambda rate: math.inf if rate == 1e-4 else 5 - rate, None)
    with pytest.raises(RecoveryError, match="gives a finite loss: give one"):
        rates.find(3e-4, lambda _: math.inf, None)


def test_steps() -> None:
    assert [rates.steps(n) for n in (4, 20, 400, 10_000)] == [4, 10, 20, 50]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("lora", "shrunk"),
        ("full", "graph"),
        pytest.param("lora", "graph", marks=pytest.mark.slow),
        pytest.param("full", "shrunk", marks=pytest.mark.slow),
    ],
)
def test_the_run_is_that_of_the_rate_that_was_found(kind: str, method: str) -> None:
    """Trying leaves no trace: weights, order of the data and dropout are as without it."""
    module = pruned(kind)
    found = run(module, METHODS[method], **FINDS)
    best = min(found.rates, key=found.rates.__getitem__)
    assert len(found.rates) > 1
    assert max(each.learning_rate for each in found.history.steps) == pytest.approx(best)
    twin = pruned(kind)
    known = run(twin, METHODS[method], **{**FINDS, "learning_rate": best})
    assert curve(found) == curve(known)
    assert_same(module, state_of(twin))
    assert not known.rates


def test_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(pruned("shrunk"), METHODS["lora"], out=tmp_path / "run", **FINDS)
    monkeypatch.setattr(Loop, "_after_a_few_steps", None)
    again = run(pruned("shrunk"), METHODS["lora"], out=tmp_path / "run", **FINDS)
    assert again.rates == first.rates
    assert curve(again) == curve(first)


class Normalised(nn.Module):
    """What training changes beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(x))
        return found


def test_statistics_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"x": x} for x in torch.randn(16, 4)]
    seen: list[torch.Tensor] = []
    model = Normalised()
    monkeypatch.setattr(
        Loop,
        "run",
        lambda loop, _: seen.append(loop._module.norm.running_var.clone()) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        run(
            model,
            FullTraining(),
            rows,
            loss_fn=lambda model, batch: model(batch["x"]).square().mean(),
            collate_fn=lambda rows: {"x": torch.stack([row["x"] for row in rows])},
            **FINDS,
        )
    assert torch.equal(seen[0], torch.ones(4))
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 0}, "keep some"),
        ({"learning_rate": "best"}, "learning-rate is 'best': a number, or find"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecoveryError, match=words):
        run(pruned("shrunk"), METHODS["lora"], IDS, **{**FINDS, **options})


def test_not_under_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RecoveryError, match="not tried under FSDP"):
        run(pruned("shrunk"), METHODS["lora"], IDS, **FINDS)
