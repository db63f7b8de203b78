"""Options of the loop."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fxprune.errors import RecoveryError
from fxprune.recover.methods import Distillation, FullTraining, LoRA
from fxprune.recover.settings import Training


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"batch_size": 10, "micro_batch_size": 4}, "does not divide"),
        ({"length": 1}, "length is 1"),
        ({"learning_rate": 0.0}, "learning-rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning-rate is nan"),
        ({"schedule": "step"}, "no schedule 'step': take cosine, linear, constant"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"weight_decay": -1.0}, "weight-decay is -1.0"),
        ({"max_grad_norm": -1.0}, "max-grad-norm is -1.0"),
        ({"precision": "int8"}, "no precision 'int8'"),
        ({"evaluate_every": 0}, "evaluate-every is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"checkpoints": 0}, "checkpoints is 0"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecoveryError, match=said):
        Training(**options).check()


def test_the_numbers_of_the_papers() -> None:
    Training().check()
    assert (Training().batch_size, Training().length, Training().epochs) == (64, 256, 2)
    assert (LoRA().rank, LoRA().alpha, LoRA().dropout) == (8, 16, 0.05)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "rows"),
    [
        (64, None, 1, 4),
        (6, None, 1, 3),
        (6, None, 2, 3),
        (6, None, 3, 2),
        (8, 8, 1, 8),
        (8, 2, 4, 2),
    ],
)
def test_rows_at_once(batch: int, micro: int | None, processes: int, rows: int) -> None:
    training = Training(batch_size=batch, micro_batch_size=micro)
    assert training.rows_at_once(processes) == rows


def test_a_batch_for_fewer_processes() -> None:
    with pytest.raises(RecoveryError, match="8 sequences does not divide into 3 process"):
        Training(batch_size=8).rows_at_once(3)


def test_steps_of_epochs() -> None:
    assert Training(batch_size=8, epochs=2).planned_steps(17) == 6
    assert Training(batch_size=8, epochs=0.1).planned_steps(17) == 1
    assert Training(batch_size=8, steps=5).planned_steps(17) == 5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoRA(rank=0), "a rank of 0"),
        (lambda: LoRA(dropout=1.0), "a dropout of 1.0"),
        (lambda: LoRA(targets="q_proj"), "give 'all-linear' or a list"),
        (lambda: Distillation(nn.Identity(), temperature=0), "temperature of 0"),
        (lambda: Distillation(nn.Identity(), weight=-1), "weight of -1"),
        (lambda: Distillation(nn.Identity(), weight=1.5), "weight of 1.5"),
        (lambda: Distillation(nn.Identity(), hidden=-1), "weight of -1"),
        (lambda: Distillation(nn.Identity(), hidden=1), "give plan="),
    ],
)
def test_methods_refuse(make: Any, said: str) -> None:
    with pytest.raises(RecoveryError, match=said):
        make()


def test_a_teacher_alone_is_a_distillation() -> None:
    model = nn.Identity()
    found = FullTraining(teacher=model).distillation
    assert found is not None
    assert (found.teacher, found.weight, found.temperature) == (model, 0.5, 1.0)
    assert LoRA().distillation is None


@pytest.mark.parametrize(
    ("steps", "batch", "validation", "expected"),
    [
        (12, 4, 200, (12, 7)),  # as short as that, once at the end
        (150, 8, 200, (15, 32)),
        (1000, 64, 200, (100, 200)),  # all of them, ten times
        (1, 1, 50, (1, 1)),
        (12, 4, 0, (1, 0)),
    ],
)
def test_evaluations_take_a_tenth_of_the_time(
    steps: int, batch: int, validation: int, expected: tuple[int, int]
) -> None:
    training = Training(steps=steps, batch_size=batch)
    every, rows = training.evaluations(10_000, validation)
    assert (every, rows) == expected
    # A row is read three times as fast, and one evaluation comes before the first step.
    if steps > 1:
        assert rows * (steps // every + 1) / 3 <= 0.1 * steps * batch
    asked = Training(steps=steps, batch_size=batch, evaluate_every=1)
    assert asked.evaluations(10_000, validation) == (1, validation)
