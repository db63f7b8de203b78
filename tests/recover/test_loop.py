"""Which weights a run ends with, when it ends, and how a model is left by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.errors import RecoveryError
from fxprune.recover import runs
from tests.marks import but_slow
from tests.models import PlaneModel
from tests.recover.cases import (
    IDS,
    KINDS,
    METHODS,
    assert_same,
    curve,
    loss_of,
    pruned,
    rows_of,
    run,
    state_of,
)

# Training on eight rows forgets the others, after a while.
FEW, OTHERS = IDS[:8], IDS[8:]
FORGETS: dict[str, Any] = {
    "steps": 10, "learning_rate": 5e-2, "schedule": "constant", "warmup": 0, "evaluate_every": 1,
    "validation": OTHERS, "batch_size": 8,
}  # fmt: skip


# Which weights


@pytest.mark.parametrize("method", but_slow(METHODS, "lora"))
@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_or_the_last(method: str, keep_best: bool) -> None:
    module = pruned("shrunk")
    result = run(module, METHODS[method], FEW, keep_best=keep_best, **FORGETS)
    measured = {each.step: each.loss for each in result.history.evaluations}
    assert sorted(measured) == list(range(11))
    assert all(math.isfinite(loss) for loss in measured.values())
    best = min(range(1, 11), key=measured.__getitem__)
    assert best < 10
    assert result.history.best is not None
    assert result.history.best.step == best
    assert result.step == (best if keep_best else 10)
    assert loss_of(module, rows_of(OTHERS)) == pytest.approx(measured[result.step], rel=1e-5)
    assert measured[10] != pytest.approx(measured[best], rel=1e-4)


def test_no_validation_gives_the_last() -> None:
    result = run(pruned("graph"), METHODS["full"], steps=3, keep_best=True, patience=1)
    assert result.step == 3
    assert result.history.best is None
    assert result.history.evaluations == ()


@pytest.mark.parametrize("keep_best", [True, False])
def test_patience(keep_best: bool) -> None:
    module = pruned("shrunk")
    options = {**FORGETS, "steps": 30}
    result = run(module, METHODS["full"], FEW, patience=2, keep_best=keep_best, **options)
    losses = [each.loss for each in result.history.evaluations if each.step]
    best = losses.index(min(losses)) + 1
    # Two evaluations without improvement, and no more.
    assert len(result.history.steps) == len(losses) == best + 2 < 30
    assert result.step == (best if keep_best else best + 2)
    assert loss_of(module, rows_of(OTHERS)) == pytest.approx(losses[result.step - 1], rel=1e-5)


def test_the_last_step_is_evaluated() -> None:
    history = run(
        pruned("graph"), METHODS["full"], validation=IDS, steps=5, evaluate_every=2
    ).history
    assert [each.step for each in history.evaluations] == [0, 2, 4, 5]
    assert [each.step for each in history.steps] == [1, 2, 3, 4, 5]
    rates = [each.learning_rate for each in history.steps]
    assert max(rates) == pytest.approx(3e-3)
    assert rates == sorted(rates, reverse=True)


def test_checkpoints_that_are_kept(tmp_path: Path) -> None:
    result = run(pruned("graph"), METHODS["lora"], FEW, out=tmp_path / "out", **FORGETS)
    kept = {path.name for path in (tmp_path / "out" / runs.CHECKPOINTS).iterdir()}
    assert kept == {f"checkpoint-{result.step}", "checkpoint-10"}
    tensors = sum(p.stat().st_size for p in (tmp_path / "out").rglob("trained.safetensors"))
    assert tensors < 2 * 4 * result.trained + 20_000  # adapters alone


def test_epochs() -> None:
    result = run(pruned("graph"), METHODS["lora"], IDS[:10], steps=None, epochs=2)
    tokens = [each.tokens // 11 for each in result.history.steps]
    assert tokens == [4, 4, 2, 4, 4, 2]


# How the model is left


@pytest.mark.parametrize(("method", "before"), [("lora", False), ("full", True)])
def test_gradient_checkpointing_of_a_model(method: str, before: bool) -> None:
    """It is switched off again, unless it was on."""
    plain = run(pruned("shrunk"), METHODS[method])
    module = pruned("shrunk")
    if before:
        module.activation_checkpointing_enable({"use_reentrant": False})
    calls: list[bool] = []
    mlp = module.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    saving = run(module, METHODS[method], gradient_checkpointing=True)
    hook.remove()
    assert curve(saving) == pytest.approx(curve(plain), rel=1e-5)
    assert sum(calls) == 8  # each of four passes twice
    on = [m for m in module.modules() if getattr(m, "gradient_checkpointing", False)]
    assert bool(on) == before


class Plain(nn.Module):
    """A language model in plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = PlaneModel()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(input_ids)
        return logits


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_checkpointing_and_nothing_is_left(method: str) -> None:
    module = Plain().eval()
    names, flags = list(module.state_dict()), [p.requires_grad for p in module.parameters()]
    with pytest.raises(RecoveryError, match="Plain has no gradient checkpointing: leave it out"):
        run(module, METHODS[method], gradient_checkpointing=True)
    assert list(module.state_dict()) == names
    assert [p.requires_grad for p in module.parameters()] == flags


def test_a_run_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters do not stay in a module whose training was broken off."""
    from fxprune.recover import trainer

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.RecoveryTrainer, "training_step", interrupt)
    for kind in KINDS:
        module = pruned(kind)
        names, before = list(module.state_dict()), state_of(module)
        with pytest.raises(KeyboardInterrupt):
            run(module, METHODS["lora"])
        assert list(module.state_dict()) == names
        assert_same(module, before)
        assert all(p.requires_grad for p in module.parameters())
        assert not module.training


def test_half_precision_comes_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.recover import trainer
    from tests.hf import tiny

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RecoveryError("broken")

    monkeypatch.setattr(trainer.RecoveryTrainer, "training_step", fail)
    module = tiny.llama().to(torch.bfloat16)
    before = state_of(module)
    with pytest.raises(RecoveryError, match="broken"):
        run(module, METHODS["full"])
    assert_same(module, before)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
