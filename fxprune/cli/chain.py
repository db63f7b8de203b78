"""Recovery right behind pruning: ``fxprune prune --recover`` and ``fxprune demo --recover``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxprune.cli.recover import Outcome, Teaching, named_method, recover_spec
from fxprune.data.text import Text
from fxprune.errors import RecoveryError
from fxprune.recover import adapters, runs
from fxprune.recover.methods import LoRA
from fxprune.recover.runs import MODEL
from fxprune.recover.settings import Training


@dataclass(frozen=True)
class Chain:
    """What follows pruning. The options that are not here have the values of the page on recovery.

    Attributes:
        model: the original, as it was typed; the teacher.
        pruned: the folder of the pruned model.
        method: ``lora`` or ``full``.
        data: to train on; None for the text that calibrated.
        steps: of 8 x 128 tokens.
        distill: learn from the original as well as from the text.
        seed: of the run.
        learning_rate: None for the method's own.
    """

    model: str
    pruned: Path
    method: str
    data: str | None = None
    steps: int = 100
    distill: bool = True
    seed: int = 0
    learning_rate: float | None = None

    @property
    def run_folder(self) -> Path:
        """The folder of the run, beside that of the pruned model."""
        return self.pruned.with_name(f"{self.pruned.name}-recovered")

    @property
    def folder(self) -> Path:
        """Where the recovered model is saved."""
        return self.run_folder / MODEL

    @property
    def training(self) -> Training:
        """The options of the loop."""
        return Training(
            steps=self.steps,
            batch_size=8,
            length=128,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

    def check(self, text: Path | None = None) -> None:
        """Refuse what would fail once the model is pruned.

        Args:
            text: what calibrates, as it was given.

        Raises:
            RecoveryError: an option makes no sense, or the folder is something else's.
        """
        if self.data is None and str(text) == "self":
            raise RecoveryError("there is no text to train on: give --recover-data")
        if isinstance(named_method(self.method), LoRA):
            adapters.check_installed()
        self.training.check()
        runs.check_new(self.run_folder)

    def run(self, calibration: Text, evaluation: Text, windows: int) -> Outcome:
        """Retrain the saved model.

        Args:
            calibration: the text that calibrated.
            evaluation: the text to measure on.
            windows: of 128 tokens in it at most.

        Raises:
            FxpruneError: see :func:`recover_spec`.
        """
        done = recover_spec(
            str(self.pruned),
            self.data or calibration,
            self.run_folder,
            method=named_method(self.method),
            teaching=Teaching(self.model if self.distill else None),
            training=self.training,
            evaluation=[evaluation],
            windows=windows,
            drop_overlap=True,
        )
        assert done is not None  # one process alone prunes
        return done
