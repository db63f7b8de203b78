"""How recovery trains: steps, batches, learning rate, evaluation and early stop."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from fxprune.errors import RecoveryError
from fxprune.recover import rates

SCHEDULES = ("cosine", "linear", "constant")
SHARE, FEW = 0.1, 16  # of the time goes to evaluations; rather fewer of them than fewer rows
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Training:
    """Options of the training loop. The numbers are those of LLM-Pruner unless said otherwise.

    Attributes:
        steps: optimiser steps; None for ``epochs``.
        epochs: passes over the data, where ``steps`` is None.
        batch_size: sequences in an optimiser step, on all processes together: the same command
            means the same on one device and on many.
        micro_batch_size: sequences in one forward pass on one device; gradients are accumulated
            until ``batch_size`` is reached. None for as many as divide it evenly, 4 at most.
        length: tokens in a sequence; longer instructions are cut.
        learning_rate: the highest; None for the method's own; ``find`` to try a few of them first,
            each for a twentieth of the steps, and take the one that validates best.
        schedule: of the learning rate after warm-up: ``cosine`` or ``linear`` to 0, ``constant``.
        warmup: the fraction of all steps in which the learning rate rises from 0.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        precision: what matrix products run in: ``float32``, ``bfloat16``, ``float16``; ``auto``
            for bfloat16 on a GPU that has it and else float32.
        gradient_checkpointing: compute each layer twice instead of keeping its intermediate values.
        evaluate_every: steps between evaluations on the validation data, which are also those
            between checkpoints; None for ten in the whole run, or fewer, so that they take
            about a tenth of the time of training. (Of rows that were held out, some may do; data
            that is given to validate on is read whole.)
        patience: stop after so many evaluations without improvement; None never.
        keep_best: end with the weights of the best evaluation, not with the last ones.
        checkpoints: how many checkpoints are kept, besides the best.
        seed: of the order of the data, of dropout and of adapters.
    """

    steps: int | None = None
    epochs: float = 2.0
    batch_size: int = 64
    micro_batch_size: int | None = None
    length: int = 256
    learning_rate: float | Literal["find"] | None = None
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    keep_best: bool = True
    checkpoints: int = 1
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense, before anything is loaded.

        Raises:
            RecoveryError: an option is out of its range.
        """
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("micro_batch_size", 1),
            ("length", 2),
            ("evaluate_every", 1),
            ("patience", 1),
            ("checkpoints", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecoveryError(f"{_shown(name)} is {value}: at least {least}")
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in choices:
                raise RecoveryError(f"no {name} {value!r}: take {', '.join(choices)}")
        self.rows_at_once(1)
        if self.steps is None and not self.epochs > 0:
            raise RecoveryError(f"epochs is {self.epochs}: above 0")
        rates.check(self.learning_rate)
        if not 0 <= self.warmup < 1:
            raise RecoveryError(f"warmup is {self.warmup}: a fraction of all steps, in [0, 1)")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise RecoveryError(f"{_shown(name)} is {getattr(self, name)}: 0 or more")

    def rows_at_once(self, processes: int) -> int:
        """Sequences in one forward pass on each of some processes.

        Raises:
            RecoveryError: the batch does not divide evenly.
        """
        sizes = (4, 3, 2, 1) if self.micro_batch_size is None else (self.micro_batch_size,)
        for size in sizes:
            if self.batch_size % (size * processes) == 0:
                return size
        raise RecoveryError(
            f"a batch of {self.batch_size} sequences does not divide into {processes} process(es) "
            f"of {sizes[-1]} at a time: change batch-size or micro-batch-size"
        )

    def planned_steps(self, rows: int) -> int:
        """Optimiser steps with so many training sequences, an incomplete batch counted as one."""
        if self.steps is not None:
            return self.steps
        return max(1, ceil(self.epochs * ceil(rows / self.batch_size)))

    def evaluations(self, rows: int, validation: int, whole: bool = False) -> tuple[int, int]:
        """Steps between evaluations, and how many rows each takes.

        A step reads a row three times as long as an evaluation does: forward, and backward for
        inputs and weights.

        Args:
            rows: training sequences.
            validation: sequences to validate on.
            whole: take all of them each time, rather less often.
        """
        steps = self.planned_steps(rows)
        if self.evaluate_every is not None or not validation:
            return self.evaluate_every or max(1, steps // 10), validation
        most = max(2, int(SHARE * 3 * steps * self.batch_size))
        # One more comes before the first step.
        count = min(10, max(1, most // (validation if whole else min(validation, FEW)) - 1))
        taken = validation if whole else max(1, min(validation, most // (count + 1)))
        return max(1, steps // count), taken


def _shown(name: str) -> str:
    return name.replace("_", "-")
