"""The loss against a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.data.loss import IGNORED
from fxprune.errors import RecoveryError
from fxprune.recover.calls import Take, next_token, taker
from fxprune.recover.hidden import HiddenStates
from fxprune.recover.methods import Distillation
from fxprune.trace.modes import evaluation


@dataclass(eq=False)
class Teacher:
    """A teacher beside a student.

    Attributes:
        distillation: how to learn.
        hidden: both models' hidden states; None if they do not count.
    """

    distillation: Distillation
    hidden: HiddenStates | None = None
    _take: Take = field(init=False)

    def __post_init__(self) -> None:
        self._take = taker(self.distillation.teacher)

    def to(self, device: torch.device) -> None:
        """Move the teacher to the student's device."""
        self.distillation.teacher.to(device)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The teacher's logits, (rows * length, vocabulary)."""
        teacher = self.distillation.teacher
        with evaluation(teacher):
            predicted, _ = next_token(teacher(**self._take(batch)), batch["labels"], teacher)
        return predicted

    def loss(
        self, predicted: Tensor, expected: Tensor, labels: Tensor, count: Tensor | int
    ) -> Tensor:
        """Cross entropy and divergence from the teacher together, per predicted token.

        Args:
            predicted: the student's logits (tokens, vocabulary).
            expected: the teacher's logits (tokens, vocabulary).
            labels: (tokens,).
            count: labels in the whole batch, all passes and processes.

        Raises:
            RecoveryError: the two vocabularies are not the same.
        """
        if predicted.shape != expected.shape:
            raise RecoveryError(
                f"the teacher has a vocabulary of {expected.shape[-1]}, the student of "
                f"{predicted.shape[-1]}: it cannot teach it"
            )
        counts = labels != IGNORED
        student, teacher, labels = predicted[counts], expected[counts], labels[counts]
        how = self.distillation
        log_teacher = F.log_softmax(teacher.float() / how.temperature, -1)
        log_student = F.log_softmax(student.float() / how.temperature, -1)
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
        total = how.weight * how.temperature**2 * divergence
        if how.weight < 1:
            plain = log_student if how.temperature == 1 else F.log_softmax(student.float(), -1)
            total = total + (1 - how.weight) * F.nll_loss(plain, labels, reduction="sum")
        return total / count

    def watch(self) -> contextlib.AbstractContextManager[Any]:
        """Keep hidden states of both models while they run."""
        return contextlib.nullcontext() if self.hidden is None else self.hidden.watch()


def make(distillation: Distillation | None, student: nn.Module) -> Teacher | None:
    """The teacher that a method asks for, where it counts in the loss.

    Raises:
        RecoveryError: it takes no text, or nothing of the two models can be matched.
    """
    if distillation is None or not distillation.counts:
        return None
    hidden = HiddenStates.of(distillation, student) if distillation.hidden else None
    return Teacher(distillation, hidden)
