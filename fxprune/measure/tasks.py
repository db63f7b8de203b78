"""Zero-shot tasks by lm-eval: its own configs, on local files if given, and its own harness."""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.data.loss import logits_of
from fxprune.errors import EvaluationError
from fxprune.hf.open.architecture import last_line
from fxprune.hf.open.quiet import hushed, quiet
from fxprune.progress import step
from fxprune.trace.inputs import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class TaskSpec:
    """A task of lm-eval.

    Attributes:
        name: as lm-eval calls it.
        file: JSONL in the columns of the task's dataset; None takes the dataset itself.
    """

    name: str
    file: Path | None = None


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks with their data, to be run.

    Attributes:
        built: lm-eval's ``Task`` and ``Group`` objects.
        data: the file or dataset that the questions of each task are from.
        num_fewshot: examples before each question; None for what the task says, else none.
    """

    built: list[Any]
    data: dict[str, str]
    num_fewshot: int | None


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: its name.
        data: the file or dataset that the questions are from; empty for a group of tasks.
        metric: as lm-eval calls it: ``acc``, ``acc_norm``, ...
        value: of the metric.
        stderr: its standard error, as lm-eval computes it; None where it does not.
        n: questions that were asked.
        examples: how many came before each question.
        version: of the task, in lm-eval.
        answers: of each question in the order of the data, what the metric is the mean of: 1 for a
            right answer, 0 for a wrong one; empty where lm-eval has no single number for it.
    """

    task: str
    data: str
    metric: str
    value: float
    stderr: float | None
    n: int
    examples: int
    version: str
    answers: tuple[float, ...] = ()


def parse(given: Sequence[str]) -> list[TaskSpec]:
    """Tasks as they are typed: ``NAME`` or ``NAME=FILE.jsonl``, several with commas.

    Raises:
        EvaluationError: an empty name or file, or a task given twice.
    """
    specs: list[TaskSpec] = []
    for part in (part.strip() for each in given for part in each.split(",")):
        name, equals, file = part.partition("=")
        if not name or (equals and not file):
            raise EvaluationError(f"task {part!r}: write NAME or NAME=FILE.jsonl")
        if name in [spec.name for spec in specs]:
            raise EvaluationError(f"task {name} is given twice")
        specs.append(TaskSpec(name, Path(file) if equals else None))
    return specs


def load(specs: Sequence[TaskSpec], num_fewshot: int | None = None) -> Tasks:
    """Build tasks with their data.

    Args:
        specs: what to build.
        num_fewshot: examples before each question; None for what the task says, else none.

    Raises:
        EvaluationError: lm-eval is not installed, no such task, its data cannot be fetched or read,
            or a file does not have what the task reads.
    """
    rows = {spec.name: _read(spec.file) for spec in specs if spec.file is not None}
    found = Tasks([], {}, num_fewshot)
    for spec in specs:
        built = _build(spec, rows.get(spec.name))
        if shared := built["tasks"].keys() & found.data.keys():
            raise EvaluationError(f"task {min(shared)} is given twice, once within {spec.name}")
        for name, task in built["tasks"].items():
            if spec.file is not None:
                _check(spec, task, rows[name], num_fewshot)
            parts = (task.get_config("dataset_path"), task.get_config("dataset_name"))
            hub = " ".join(str(part) for part in parts if part)
            found.data[name] = hub if spec.file is None else str(spec.file)
        # A tag stands for its tasks, a group is one thing.
        group = built["groups"].get(spec.name)
        found.built.extend(built["tasks"].values() if group is None else [group])
    return found


@functools.cache
def _manager() -> Any:
    """lm-eval's ``TaskManager``: it reads the configs of all tasks, which takes some seconds."""
    try:
        with quiet():
            from lm_eval.tasks import TaskManager

            return TaskManager()
    except ImportError as error:
        raise EvaluationError(
            "tasks need lm-eval: pip install 'lm-eval>=0.4.13', or fxprune with its extra, [eval] "
            f"({error})"
        ) from error


def _build(spec: TaskSpec, rows: Mapping[int, Any] | None) -> Any:
    """What lm-eval's ``TaskManager.load`` gives for one name, with the rows as its data."""
    index = _manager().task_index
    if spec.name not in index:
        close = difflib.get_close_matches(spec.name, index, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EvaluationError(f"lm-eval has no task {spec.name!r}{hint}")
    given: Any = spec.name
    if rows is not None:
        config = index[spec.name].cfg or {}
        if not isinstance(config.get("task"), str) or "class" in config:
            raise EvaluationError(
                f"{spec.name} stands for several tasks or has code of its own: "
                "no file can be its data"
            )
        # As a member of a group, a task takes single fields in place of its own.
        task = {"task": spec.name, "custom_dataset": _dataset(config, list(rows.values()))}
        given = {"group": f"file of {spec.name}", "task": [task]}
    try:
        with quiet():
            return _manager().load([given])
    except Exception as error:  # no network, data that moved, what the code of a task raises, ...
        if rows is not None:
            raise EvaluationError(
                f"{spec.file} does not fit {spec.name}: {last_line(error)}"
            ) from error
        raise EvaluationError(
            f"the data of {spec.name} cannot be loaded: {last_line(error)}. "
            f"Without a network give a file: {spec.name}=FILE.jsonl"
        ) from error


def _dataset(config: Mapping[str, Any], records: list[Any]) -> Callable[..., Any]:
    """The records for every split of the task.

    Not ``load_dataset("json")``, which takes strings that look like dates for dates, and keeps a
    copy on disk.
    """
    splits = [config.get(key) for key in _SPLITS]
    splits.append((config.get("fewshot_config") or {}).get("split"))

    def make(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict(dict.fromkeys(filter(None, splits), Dataset.from_list(records)))

    return make


def _read(file: Path) -> dict[int, dict[str, Any]]:
    """Records of a JSONL file by their line; blank lines are skipped.

    Raises:
        EvaluationError: it cannot be read, is empty, or a line is not a JSON object.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file} cannot be read as UTF-8 text: {error}") from error
    rows: dict[int, dict[str, Any]] = {}
    # Not splitlines: a JSON string may hold a line separator (U+2028) as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line)
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{file} line {number} is not JSON: {error}") from error
        if not isinstance(rows[number], dict):
            raise EvaluationError(f"{file} line {number} is not a JSON object")
    if not rows:
        raise EvaluationError(f"{file} has no lines in it")
    return rows


def _check(spec: TaskSpec, task: Any, rows: Mapping[int, Any], asked: int | None) -> None:
    """Refuse rows from which the task cannot make a question, its choices and the answer.

    Where a function of the task reads the rows, every row must have the columns of the first.

    Raises:
        EvaluationError: names the line; or examples would come from what is measured.
    """
    config = task.config
    shots = config.num_fewshot if asked is None or config.num_fewshot == 0 else asked
    if shots and task.fewshot_cfg.samples is None:
        raise EvaluationError(
            f"{spec.name} puts examples before each question, and they would come from "
            f"{spec.file}, which is measured: ask for none (--num-fewshot 0), or take the task's "
            "own data"
        )
    fields = [getattr(config, key) for key in _TEMPLATES]
    if config.process_docs or config.use_prompt or any(map(callable, fields)):
        needed, why = list(next(iter(rows.values()))), "which the first line has"
    else:  # templates refuse what is missing, but a name alone would be taken for text
        needed = [field for field in fields if isinstance(field, str) and field.isidentifier()]
        why = f"which {spec.name} reads"
    docs = task.eval_docs if config.process_docs else list(rows.values())
    numbers = list(rows) if len(docs) == len(rows) else range(1, len(docs) + 1)
    for number, row in rows.items():
        for column in needed:
            if column not in row:
                raise EvaluationError(
                    f"{spec.file} line {number} has no column {column!r}, {why}; "
                    f"it has {', '.join(row) or 'none'}"
                )
    for number, doc in zip(numbers, docs, strict=True):
        try:
            task.doc_to_text(doc)
            target = task.doc_to_target(doc)
            choices = None if config.doc_to_choice is None else task.doc_to_choice(doc)
            if choices is not None and isinstance(target, int) and not 0 <= target < len(choices):
                raise ValueError(f"answer {target} of {len(choices)} choices")
        except Exception as error:  # whatever a template or a function of the task may raise
            raise EvaluationError(
                f"{spec.file} line {number} does not fit {spec.name}: {error}"
                f"; it has {', '.join(doc)}"
            ) from error


class _WithLogits(nn.Module):
    """What lm-eval needs of a model, around a graph."""

    def __init__(self, graph_module: nn.Module, config: PreTrainedConfig | None) -> None:
        super().__init__()
        self.graph_module, self.config = graph_module, config
        self.device = device_of(graph_module)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        output = self.graph_module(input_ids=input_ids)
        return SimpleNamespace(logits=logits_of(self.graph_module, output))

    def tie_weights(self) -> None:
        """Tied weights of a graph are one tensor already."""


def run(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> list[TaskScore]:
    """Run tasks by lm-eval's ``simple_evaluate``, with its seeds.

    Args:
        model: a transformers model, or a GraphModule of one, called with ``input_ids=``.
        tokenizer: of the model; a copy is used.
        config: of the original, for a GraphModule: says how long a text may be.
        tasks: from :func:`load`.
        limit: only the first questions of each task.
        batch_size: rows per forward pass.
        progress: show what runs.

    Returns:
        One entry per task and metric, in lm-eval's order.
    """
    bars = progress and sys.stderr.isatty()
    names = ", ".join(tasks.data)
    with step(f"tasks: {names}", progress and not bars), hushed() if bars else quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        given: Any = _WithLogits(model, config) if isinstance(model, fx.GraphModule) else model
        found: Any = simple_evaluate(
            HFLM(
                pretrained=given,
                backend="causal",
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
            ),
            tasks=tasks.built,
            task_manager=_manager(),
            num_fewshot=tasks.num_fewshot,
            limit=limit,
            log_samples=True,
        )
    return [score for name in found["results"] for score in _scores(name, found, tasks.data)]


def _scores(name: str, found: Mapping[str, Any], data: Mapping[str, str]) -> list[TaskScore]:
    entries: dict[str, Any] = found["results"][name]
    samples = found["n-samples"]
    members = [name] if name in samples else found["group_subtasks"].get(name, [])
    n = sum(samples[each]["effective"] for each in members if each in samples)
    scores = []
    for key, value in entries.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = entries.get(f"{metric}_stderr,{filtered}")
        known = isinstance(stderr, int | float) and math.isfinite(stderr)
        scores.append(
            TaskScore(
                task=name,
                data=data.get(name, ""),
                metric=metric if filtered == "none" else key,
                value=float(value),
                stderr=float(stderr) if known and stderr is not None else None,
                n=n,
                examples=int(found["n-shot"].get(name) or 0),
                version=str(found["versions"].get(name, "")),
                answers=_answers(found["samples"].get(name, ()), metric, filtered),
            )
        )
    return scores


def _answers(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str) -> tuple[float, ...]:
    those = sorted((s for s in samples if s["filter"] == filtered), key=lambda s: s["doc_id"])
    values = [sample.get(metric) for sample in those]
    known = all(isinstance(value, bool | int | float) for value in values)
    return tuple(float(value) for value in values if value is not None) if known else ()
