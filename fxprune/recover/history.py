"""The course of a run: losses step by step, as numbers, files and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import RecoveryError
from fxprune.files import replacing, write_text

CSV, JSON, PLOT = "log.csv", "log.json", "loss.svg"


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        step: its number, from 1.
        loss: of training, per predicted token (with a teacher: of both parts).
        learning_rate: that it was made with.
        gradient_norm: before it was scaled down.
        tokens: that were predicted, on all processes.
        seconds: that it took.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The loss on the validation data after so many steps, per predicted token, in nats."""

    step: int
    loss: float


@dataclass(frozen=True)
class History:
    """All steps and evaluations of a run, resumed or not."""

    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]

    @classmethod
    def of(cls, log: Iterable[Mapping[str, Any]]) -> History:
        """Read what transformers' Trainer logged."""
        steps, evaluations = {}, {}
        for row in log:
            number = int(row["step"])
            if "loss" in row:
                steps[number] = Step(
                    number,
                    row["loss"],
                    row["learning_rate"],
                    row.get("grad_norm", 0.0),
                    row["tokens"],
                    row["seconds"],
                )
            elif "eval_loss" in row:
                evaluations[number] = Evaluation(number, row["eval_loss"])
        return cls(tuple(steps.values()), tuple(evaluations.values()))

    @classmethod
    def load(cls, path: Path) -> History:
        """Read the ``log.json`` that :meth:`write` wrote.

        Raises:
            RecoveryError: it cannot be read.
        """
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            steps = tuple(Step(**row) for row in rows["steps"])
            return cls(steps, tuple(Evaluation(**row) for row in rows["evaluations"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecoveryError(f"{path} is not a log of a run ({error!r})") from error

    @property
    def best(self) -> Evaluation | None:
        """The lowest evaluation after training began."""
        after = [each for each in self.evaluations if each.step]
        return min(after, key=lambda each: each.loss) if after else None

    @property
    def tokens_per_second(self) -> float:
        """Predicted tokens over the time of the steps, without evaluation and checkpoints."""
        return sum(s.tokens for s in self.steps) / max(1e-9, sum(s.seconds for s in self.steps))

    def write(self, folder: Path) -> None:
        """Write ``log.csv``, ``log.json`` and, with matplotlib, ``loss.svg``."""
        text = io.StringIO()
        names = list(Step.__annotations__)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, "validation_loss"])
        measured = {each.step: each.loss for each in self.evaluations}
        rows = {each.step: list(asdict(each).values()) for each in self.steps}
        for number in sorted({*rows, *measured}):
            row = rows.get(number, [number, *[""] * (len(names) - 1)])
            writer.writerow([*row, measured.get(number, "")])
        write_text(folder / CSV, text.getvalue())
        content = json.dumps(asdict(self), indent=1) + "\n"
        write_text(folder / JSON, content)
        self.plot(folder / PLOT)

    def plot(self, path: Path) -> bool:
        """Draw the losses as an SVG.

        Returns:
            Whether it was drawn; not without matplotlib.
        """
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            return False
        style: Any = {"svg.fonttype": "none", "svg.hashsalt": "fxprune"}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(6.4, 4), layout="constrained")
            panel = figure.subplots()
            numbers, losses = [s.step for s in self.steps], [s.loss for s in self.steps]
            panel.plot(numbers, losses, color="0.75", linewidth=0.8, label="training, each step")
            panel.plot(numbers, smooth(losses), color="C0", label="training, smoothed")
            if self.evaluations:
                panel.plot(
                    [each.step for each in self.evaluations],
                    [each.loss for each in self.evaluations],
                    color="C1",
                    marker="o",
                    markersize=4,
                    label="validation",
                )
            panel.set_xlabel("step")
            panel.set_ylabel("loss per token, nats")
            panel.grid(alpha=0.3)
            panel.legend()
            with replacing(path) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
        return True


def smooth(values: list[float], window: int = 10) -> list[float]:
    """The mean of each value and those before it, ``window`` at most."""
    return [
        sum(near) / len(near)
        for end in range(1, len(values) + 1)
        for near in [values[max(0, end - window) : end]]
    ]
