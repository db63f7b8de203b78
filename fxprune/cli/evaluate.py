"""``fxprune eval``: what is typed, checked before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.cli import workflow
from fxprune.data import text
from fxprune.errors import EvaluationError
from fxprune.files import write_text
from fxprune.hf.open.load import check_device, named_dtype
from fxprune.measure import beside, output, speed, tasks
from fxprune.measure.evaluation import Evaluation, evaluate
from fxprune.measure.settings import Settings
from fxprune.measure.subject import check_subject, open_subject
from fxprune.progress import step

if TYPE_CHECKING:
    from rich.console import Console

    from fxprune.hf.open.models import LoadedModel
    from fxprune.measure.output import Section

QUICK_WINDOWS, QUICK_CONTINUATIONS = 32, 16  # of each text


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        found: of each model.
        side_by_side: whether the tables have a column for each model.
    """

    found: tuple[Evaluation, ...]
    side_by_side: bool

    @property
    def heads(self) -> list[str]:
        """A line for each model."""
        return [output.title(each) for each in self.found]

    @property
    def sections(self) -> list[Section]:
        """The tables."""
        return beside.sections(self.found) if self.side_by_side else output.sections(self.found[0])

    def show(self, console: Console) -> None:
        """Print all tables."""
        output.show(self.heads, self.sections, console)

    def write(self, json_file: Path | None, markdown: Path | None, html: Path | None) -> None:
        """Write what is asked for."""
        if json_file is not None:
            several = self.side_by_side
            content = beside.as_json(self.found) if several else self.found[0].as_json()
            write_text(json_file, json.dumps(content, indent=1) + "\n")
        if markdown is not None:
            write_text(markdown, output.markdown(self.heads, self.sections))
        if html is not None:
            from fxprune.inspect.page.measured import write

            write(self.found, self.heads, self.sections, html)


def evaluate_specs(
    models: Sequence[str],
    texts: Sequence[str | Path] = (),
    task_names: Sequence[str] = (),
    *,
    settings: Settings | None = None,
    quick: bool = False,
    domain: str = "",
    num_fewshot: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    table: bool = False,
    progress: bool = True,
) -> Measured:
    """Open models, one after the other, and measure them alike.

    Args:
        models: see :func:`fxprune.measure.subject.open_subject`. The first is what the others are
            compared with.
        texts: files to measure perplexity on, see :func:`fxprune.data.text.read_all`.
        task_names: see :func:`fxprune.measure.tasks.parse`.
        settings: how to measure.
        quick: few windows and continuations of each text, of prose inside Python if there is none.
        domain: see :func:`fxprune.data.text.read_all`.
        num_fewshot: see :func:`fxprune.measure.tasks.load`.
        device: where to compute.
        dtype: of the weights, ``float32``, ``bfloat16`` or ``float16``; None for the checkpoint's.
        table: a column for the model, even if it is one.
        progress: show what runs.

    Raises:
        FxpruneError: an option makes no sense, or something cannot be read; see there.
    """
    settings = settings or Settings()
    if quick:
        settings = replace(
            settings,
            windows=settings.windows or QUICK_WINDOWS,
            continuations=settings.continuations or QUICK_CONTINUATIONS,
        )
    settings.check()
    as_dtype = named_dtype(dtype)
    if num_fewshot is not None and num_fewshot < 0:
        raise EvaluationError(f"{num_fewshot} examples before each question: take 0 or more")
    if twice := [spec for place, spec in enumerate(models) if spec in models[:place]]:
        raise EvaluationError(f"{twice[0]} is given twice")
    check_device(device)
    read, specs = text.read_all(texts, domain=domain), tasks.parse(task_names)
    if quick and not read:
        read = [text.builtin()[1]]
    if settings.continuations and not read:
        raise EvaluationError("continuations begin with text: give --text, or --quick")
    for spec in models:
        check_subject(spec)
    loaded = None
    if specs:
        with step("reading tasks", progress):
            loaded = tasks.load(specs, num_fewshot)
    several = len(models) > 1
    found: list[Evaluation] = []
    kept: list[LoadedModel] = []
    fits = several and settings.generation
    for spec in models:
        with step(f"loading {spec}", progress):
            subject = open_subject(spec, device, as_dtype)
        assert subject.tokenizer is not None
        measured = evaluate(
            subject.model,
            subject.tokenizer,
            subject.config,
            texts=read,
            tasks=loaded,
            settings=settings,
            name=subject.name,
            progress=progress,
        )
        found.append(measured)
        fits = fits and (len(found) == len(models) or workflow.room_for(measured.size, device))
        kept = [*kept, subject] if fits else []
        del subject
    if kept:
        found = _in_turns(found, kept, progress)
    return Measured(tuple(_named(found, models)), several or table)


def _in_turns(
    found: Sequence[Evaluation], kept: Sequence[LoadedModel], progress: bool
) -> list[Evaluation]:
    with step("timing all models in turns", progress):
        times = speed.in_turns(
            [each.model for each in kept],
            [each.speeds for each in found],
            [len(each.tokenizer) for each in kept if each.tokenizer is not None],
            found[0].settings.rounds,
        )
    return [replace(e, speeds=t, in_turns=True) for e, t in zip(found, times, strict=True)]


def _named(found: Sequence[Evaluation], models: Sequence[str]) -> list[Evaluation]:
    """By what was typed, where models in several folders have one name."""
    names = [each.model["name"] for each in found]
    if len(set(names)) == len(names):
        return list(found)
    pairs = zip(found, models, strict=True)
    return [replace(each, model={**each.model, "name": spec}) for each, spec in pairs]
