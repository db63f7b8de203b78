"""``fxprune recover``: open a model, retrain it, measure it and save it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxprune.data import text
from fxprune.data.text import Text
from fxprune.errors import EvaluationError, PlanError, RecoveryError
from fxprune.files import write_text
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import PLAN, original
from fxprune.hf.open.load import named_dtype
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.recover import runs
from fxprune.recover.data import Data
from fxprune.recover.history import CSV
from fxprune.recover.methods import ALL_LINEAR, Distillation, FullTraining, LoRA
from fxprune.recover.recover import Recovery, recover
from fxprune.recover.settings import Training
from fxprune.trace import modes

if TYPE_CHECKING:
    from rich.console import Console

    from fxprune.hf.open.models import LoadedModel

METHODS = ("lora", "full")
WINDOWS = 64


@dataclass(frozen=True)
class Teaching:
    """The teacher of a command.

    Attributes:
        model: what to open as the teacher; None for none.
        temperature: see :class:`Distillation`.
        weight: see there.
        hidden: see there.
    """

    model: str | None = None
    temperature: float = Distillation.temperature
    weight: float = Distillation.weight
    hidden: float = Distillation.hidden


@dataclass(frozen=True, eq=False)
class Outcome:
    """A recovered model.

    Attributes:
        recovery: what :func:`recover` gave.
        before: perplexity by text before.
        after: perplexity by text after.
        folder: of the run.
        merged: whether the model is saved whole, not the adapter alone.
    """

    recovery: Recovery
    before: dict[str, float]
    after: dict[str, float]
    folder: Path
    merged: bool

    @property
    def words(self) -> str:
        """What was done and what it was good for, in a sentence."""
        perplexities = "; ".join(
            f"perplexity, {name}: {before:.2f} -> {self.after[name]:.2f}"
            for name, before in self.before.items()
        )
        trained, steps = self.recovery.trained, len(self.recovery.history.steps)
        return f"It was then retrained ({trained:,} parameters, {steps} steps; {perplexities})."

    def show(self, console: Console) -> None:
        """Print the losses and perplexities, and what was left out of the data."""
        from rich.table import Table

        plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
        table = Table("", "before", "after")
        measured = {each.step: each.loss for each in self.recovery.history.evaluations}
        best = self.recovery.step
        if 0 in measured and best in measured:
            table.add_row("validation loss", f"{measured[0]:.3f}", f"{measured[best]:.3f}")
        for name in self.before:
            table.add_row(
                f"perplexity, {name}", f"{self.before[name]:.2f}", f"{self.after[name]:.2f}"
            )
        if table.rows:
            console.print(table)
        if rates := self.recovery.rates:
            tried = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in rates.items())
            best_rate = min(rates, key=rates.__getitem__)
            console.print(
                f"learning rate {best_rate:g} (validation after a few steps: {tried})", **plain
            )
        history, notes = self.recovery.history, self.recovery.notes
        console.print(
            f"trained {self.recovery.trained:,} parameters, {len(history.steps)} steps, "
            f"{history.tokens_per_second:,.0f} tokens/s; weights of step {best}",
            **plain,
        )
        for line in notes[:5]:
            console.print(f"left out: {line}", **plain)
        if len(notes) > 5:
            console.print(f"left out: {len(notes) - 5} more, see {runs.REPORT}", **plain)

    def where(self) -> str:
        """Where the results are, in a line."""
        found = [f"model: {self.folder / runs.MODEL}"] if self.merged else []
        adapter = self.folder / runs.ADAPTER
        found += [f"adapter: {adapter}"] if adapter.exists() else []
        return "   ".join([*found, f"log: {self.folder / CSV}"])


def recover_spec(
    model: str,
    data: Data,
    out: Path,
    *,
    method: LoRA | FullTraining,
    teaching: Teaching | None = None,
    training: Training,
    evaluation: Sequence[Text] = (),
    windows: int = WINDOWS,
    dtype: str | None = None,
    device: str | None = None,
    merge: bool = True,
    progress: bool = True,
    **reading: Any,
) -> Outcome | None:
    """Open a model, retrain it, measure it and save it.

    Args:
        model: what :func:`fxprune.measure.subject.open_subject` opens.
        data: see :func:`recover`.
        out: folder of the run; the model goes to ``out/model``.
        method: without a teacher.
        teaching: the teacher.
        training: options of the loop.
        evaluation: texts to measure perplexity on, before and after.
        windows: of 128 tokens in each at most.
        dtype: to train in; the model is saved in the dtype it came in.
        device: see :func:`recover`.
        merge: save the merged model, not the adapter alone.
        progress: show what runs.
        reading: further options of :func:`recover` about the data.

    Returns:
        What came out; None in all processes but the first.

    Raises:
        FxpruneError: an option makes no sense, or something cannot be read; see there.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    training.check()
    runs.check_target(out)
    teaching = teaching or Teaching()
    taught = teaching.model is not None
    if teaching.hidden and not (taught and (Path(model) / PLAN).is_file()):
        raise RecoveryError("hidden states need a teacher, and a folder with the plan of the model")
    if not merge and not isinstance(method, LoRA):
        raise RecoveryError("only LoRA has an adapter to save alone: leave out --no-merge")
    subject, held = _open(model, dtype, progress and first)
    teacher: Distillation | None = None
    if teaching.model is not None:
        original_model, _ = _open(teaching.model, dtype, progress and first)
        teacher = _teacher(original_model.model, Path(model) / PLAN, teaching)
    before = _perplexities(subject, evaluation, windows, progress) if first else {}
    found = recover(
        subject.model,
        data,
        replace(method, teacher=teacher),
        training=training,
        tokenizer=subject.tokenizer,
        evaluation=evaluation,
        out=out,
        merge=merge,
        device=device,
        progress=progress,
        **reading,
    )
    if not first:
        return None
    if merge:
        found.module.to(held)
    after = _perplexities(replace(subject, model=found.module), evaluation, windows, progress)
    if merge:
        with step("saving", progress):
            _save(subject, model, out / runs.MODEL)
    outcome = Outcome(found, before, after, out, merge)
    facts = {
        "model": model,
        "method": type(method).__name__,
        "teacher": asdict(teaching) if taught else None,
        "training": asdict(training),
        "trained": found.trained,
        "step": found.step,
        "tokens_per_second": found.history.tokens_per_second,
        "perplexity": {"before": before, "after": after, "windows": windows, "length": 128},
        "learning_rates": found.rates,
        "left_out": list(found.notes),
    }
    write_text(out / runs.REPORT, json.dumps(facts, indent=1) + "\n")
    return outcome


def _teacher(original: Any, file: Path, teaching: Teaching) -> Distillation:
    """The teacher, without the tokens that the student lost.

    Raises:
        RecoveryError: its hidden states are to be learned as well, of a plan that is about tokens.
    """
    from fxprune.hf.vocabulary.trim import without_tokens

    plan = Plan.load(file) if file.is_file() else None
    if plan is not None and not isinstance(original, fx.GraphModule):
        with contextlib.suppress(PlanError):  # of another model than the teacher
            found = without_tokens(original, plan)
            if found is not original and teaching.hidden:
                raise RecoveryError("hidden states are not learned where tokens went: leave it out")
            original = found
    hidden = plan if teaching.hidden else None
    return Distillation(original, teaching.temperature, teaching.weight, teaching.hidden, hidden)


def named_method(
    name: str,
    *,
    rank: int = LoRA.rank,
    alpha: float = LoRA.alpha,
    dropout: float = LoRA.dropout,
    targets: str = ALL_LINEAR,
    reinitialise: bool = False,
) -> LoRA | FullTraining:
    """The method that a name and options mean.

    Raises:
        RecoveryError: there is none of that name, or an option is of the other one.
    """
    if name == "full":
        if (rank, alpha, dropout, targets) != (LoRA.rank, LoRA.alpha, LoRA.dropout, ALL_LINEAR):
            raise RecoveryError("rank, alpha, dropout and targets are LoRA's: leave them out")
        return FullTraining(reinitialise=reinitialise)
    if name != "lora":
        raise RecoveryError(f"no method {name!r}: take {', '.join(METHODS)}")
    if reinitialise:
        raise RecoveryError("from scratch all parameters are trained: take --method full")
    names = [target.strip() for target in targets.split(",") if target.strip()]
    return LoRA(rank, alpha, dropout, targets if targets == ALL_LINEAR else names)


def validation_data(given: str) -> float | str:
    """A fraction, or the file of that name."""
    try:
        return float(given)
    except ValueError:
        return given


def _open(spec: str, dtype: str | None, progress: bool) -> tuple[LoadedModel, torch.dtype]:
    """A model, in a dtype if one is given, and the dtype that it came in."""
    from fxprune.measure.subject import open_subject

    wanted = named_dtype(dtype)
    with step(f"loading {spec}", progress):
        try:
            subject = open_subject(spec)
        except EvaluationError as error:
            raise RecoveryError(f"{error}; retrain it in Python, with loss_fn=") from error
    held = next(p.dtype for p in subject.model.parameters() if p.is_floating_point())
    if wanted not in (None, held):
        if isinstance(subject.model, fx.GraphModule):
            raise RecoveryError(f"{spec} holds a graph, which trains in the dtype it was saved in")
        subject.model.to(wanted)
    return subject, held


def _perplexities(
    subject: LoadedModel, evaluation: Sequence[Text], count: int, progress: bool
) -> dict[str, float]:
    """Perplexity on each text, in windows of 128 tokens spread over it."""
    from fxprune.measure.perplexity import perplexity, windows

    assert subject.tokenizer is not None
    found = {}
    for each in evaluation:
        ids = windows(text.joined(subject.tokenizer, each), limit=count)
        with modes.evaluation(subject.model):
            found[each.name] = perplexity(subject.model, ids, progress=progress).perplexity
    return found


def _save(subject: LoadedModel, source: str, target: Path) -> None:
    """Save a trained model as the one it came from is saved."""
    model: Any = subject.model
    folder = Path(source).expanduser()
    plan = Plan.load(folder / PLAN) if (folder / PLAN).is_file() else None
    traced = None
    if isinstance(model, fx.GraphModule):
        assert plan is not None
        traced = original(folder, checkpoint.facts_of(folder), plan)
    checkpoint.save(model, target, plan=plan, traced=traced, tokenizer=subject.tokenizer)
