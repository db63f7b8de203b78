"""What recovery trains: adapters or all parameters, on the text alone or after a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxprune.errors import RecoveryError

if TYPE_CHECKING:
    from torch import nn

    from fxprune.plan import Plan

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, eq=False)
class Distillation:
    """Learning from the predictions of a larger model (Hinton et al. 2015).

    The loss is ``(1 - weight) * cross entropy + weight * temperature**2 * KL(teacher || student)``,
    both as the mean over predicted tokens, and ``hidden`` times the distance of hidden states.

    Attributes:
        teacher: the original model, usually. It takes the same token ids and gives logits over the
            same vocabulary. It is not changed.
        temperature: divides both logits; larger than 1 shows more of the unlikely tokens.
        weight: how much of the loss comes from the teacher, in [0, 1]. At 0 it only writes what is
            trained on (``data="self"``, ``rewrite=True``), or teaches hidden states.
        hidden: weight of the hidden states: at the input of every normalisation of the student, the
            squared distance to what the teacher has there, over the teacher's own squares, as the
            mean over normalisations. Units are matched as ``plan`` says. 0 leaves that out.
        plan: how the student came from the teacher; needed for ``hidden``.
    """

    teacher: nn.Module
    temperature: float = 1.0
    weight: float = 0.5
    hidden: float = 0.0
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecoveryError(f"a temperature of {self.temperature}: it must be above 0")
        if not 0 <= self.weight <= 1:
            raise RecoveryError(f"a teacher's weight of {self.weight}: it must be in [0, 1]")
        if not self.hidden >= 0:
            raise RecoveryError(f"a weight of {self.hidden} for hidden states: 0 or more")
        if self.hidden and self.plan is None:
            raise RecoveryError("hidden states are matched by the plan: give plan=")

    @property
    def counts(self) -> bool:
        """Whether any of the loss comes from the teacher."""
        return self.weight > 0 or self.hidden > 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """Base of the methods.

    Attributes:
        teacher: a model to learn from, or a :class:`Distillation` that says how; None to learn from
            the text alone.
    """

    learning_rate: ClassVar[float]
    teacher: nn.Module | Distillation | None = None

    @property
    def distillation(self) -> Distillation | None:
        """How to learn from the teacher, if there is one."""
        from torch import nn

        if isinstance(self.teacher, nn.Module):
            return Distillation(self.teacher)
        return self.teacher


@dataclass(frozen=True, eq=False)
class LoRA(Method):
    """Low-rank adapters (Hu et al. 2021), trained by PEFT and merged at the end.

    The numbers are those of LLM-Pruner and Shortened LLaMA; the learning rate is the default of
    LLM-Pruner's program, while its paper has 1e-4.

    Attributes:
        rank: of the two factors.
        alpha: the adapter's output is scaled by ``alpha / rank``.
        dropout: on the adapter's input, in [0, 1).
        targets: ``all-linear`` for every linear layer but the output layer, or ends of names, such
            as ``["q_proj", "v_proj"]``.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.05
    targets: str | Sequence[str] = ALL_LINEAR
    learning_rate: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecoveryError(f"a rank of {self.rank}: at least 1")
        if not 0 <= self.dropout < 1:
            raise RecoveryError(f"a dropout of {self.dropout}: it must be in [0, 1)")
        if not self.targets or (isinstance(self.targets, str) and self.targets != ALL_LINEAR):
            raise RecoveryError(
                f"targets={self.targets!r}: give {ALL_LINEAR!r} or a list of names of layers"
            )


@dataclass(frozen=True, eq=False)
class FullTraining(Method):
    """All parameters, as in continued pretraining (Shortened LLaMA).

    Weights in half precision are trained in float32 and cast back at the end.

    Attributes:
        reinitialise: forget the weights first, to compare with training the same small shapes from
            scratch.
    """

    reinitialise: bool = False
    learning_rate: ClassVar[float] = 1e-4
