"""Progress of a run on standard error: loss, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from rich.progress import Progress

    from fxprune.recover.trainer import RecoveryTrainer

LINES = 20  # in a log, where there is no bar


class Watch(TrainerCallback):
    """Takes the time of steps and shows the progress of a run.

    Args:
        show: whether to show it.
    """

    def __init__(self, show: bool) -> None:
        self._show = show
        self._bar: Progress | None = None
        self._task: Any = None
        self._validation: float | None = None
        self._first = 0
        self._began = 0.0
        self.trainer: RecoveryTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self._first, self._began = state.global_step, time.perf_counter()
        self._show = self._show and state.is_world_process_zero
        if not self._show or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("recovering"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when a step begins."""
        assert self.trainer is not None
        self.trainer.tokens, self.trainer.started = 0, time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show a step, or remember an evaluation for the next."""
        logs: dict[str, Any] = kwargs["logs"]
        if "eval_loss" in logs:
            self._validation = logs["eval_loss"]
        if "loss" not in logs or not self._show:
            return
        words = f"loss {logs['loss']:.3f}"
        if self._validation is not None:
            words += f", validation {self._validation:.3f}"
        words += f", {logs['tokens'] / logs['seconds']:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=words)
        elif state.global_step % max(1, state.max_steps // LINES) == 0:
            pace = (time.perf_counter() - self._began) / (state.global_step - self._first)
            left = pace * (state.max_steps - state.global_step)
            minutes, seconds = divmod(round(left), 60)
            print(
                f"step {state.global_step}/{state.max_steps}: {words}, {minutes}:{seconds:02} left",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if the run did not come to its end."""
        if self._bar is not None:
            self._bar.stop()
