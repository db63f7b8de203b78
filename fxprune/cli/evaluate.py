"""``fxprune eval``: what is typed, checked before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fxprune.data import text
from fxprune.errors import EvaluationError
from fxprune.files import write_text
from fxprune.hf.open.load import check_device, named_dtype
from fxprune.measure import output, tasks
from fxprune.measure.evaluation import Evaluation, evaluate
from fxprune.measure.settings import Settings
from fxprune.measure.subject import open_subject
from fxprune.progress import step


def evaluate_spec(
    model: str,
    texts: Sequence[str | Path] = (),
    task_names: Sequence[str] = (),
    *,
    settings: Settings | None = None,
    num_fewshot: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    json_file: Path | None = None,
    markdown_file: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Open a model, measure it and write the results.

    Args:
        model: see :func:`fxprune.measure.subject.open_subject`.
        texts: files to measure perplexity on, see :func:`fxprune.data.text.read_all`.
        task_names: see :func:`fxprune.measure.tasks.parse`.
        settings: how to measure.
        num_fewshot: see :func:`fxprune.measure.tasks.load`.
        device: where to compute.
        dtype: of the weights, ``float32``, ``bfloat16`` or ``float16``; None for the checkpoint's.
        json_file: where to write everything as JSON.
        markdown_file: where to write the tables.
        progress: show what runs.

    Raises:
        FxpruneError: an option makes no sense, or something cannot be read; see there.
    """
    settings = settings or Settings()
    settings.check()
    as_dtype = named_dtype(dtype)
    if num_fewshot is not None and num_fewshot < 0:
        raise EvaluationError(f"{num_fewshot} examples before each question: take 0 or more")
    check_device(device)
    read, specs = text.read_all(texts), tasks.parse(task_names)
    loaded = None
    if specs:
        with step("reading tasks", progress):
            loaded = tasks.load(specs, num_fewshot)
    with step(f"loading {model}", progress):
        subject = open_subject(model, device, as_dtype)
    assert subject.tokenizer is not None
    found = evaluate(
        subject.model,
        subject.tokenizer,
        subject.config,
        texts=read,
        tasks=loaded,
        settings=settings,
        name=subject.name,
        progress=progress,
    )
    if json_file is not None:
        write_text(json_file, json.dumps(found.as_json(), indent=1) + "\n")
    if markdown_file is not None:
        write_text(markdown_file, output.markdown(found))
    return found
