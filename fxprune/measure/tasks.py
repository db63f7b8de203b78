"""Tasks by name: lm-eval's own configs, and a local file in place of the data if one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import EvaluationError
from fxprune.hf.open.architecture import last_line
from fxprune.measure import index, rows
from fxprune.measure.silence import silent


@dataclass(frozen=True)
class TaskSpec:
    """A task of lm-eval.

    Attributes:
        name: as lm-eval calls it.
        file: JSONL in the columns of the task's dataset; None takes the dataset itself.
    """

    name: str
    file: Path | None = None


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


def load(specs: Sequence[TaskSpec], num_fewshot: int | None = None) -> dict[str, Any]:
    """Build tasks with their data.

    Args:
        specs: what to build.
        num_fewshot: examples before each question; None for what the task says, else none.

    Returns:
        ``tasks``, ``groups`` and ``group_map``, as lm-eval's ``TaskManager.load`` gives them, and
        ``data``: where the questions of each task are from.

    Raises:
        EvaluationError: lm-eval is not installed, no such task, its data cannot be fetched or read,
            or a file does not have the columns that the task reads.
    """
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}, "data": {}}
    for spec in specs:
        manager = index.manager(spec.name)
        found = _of_hub(manager, spec) if spec.file is None else _of_file(manager, spec)
        if shared := found["tasks"].keys() & loaded["tasks"].keys():
            raise EvaluationError(f"task {min(shared)} is given twice, once within {spec.name}")
        for name, task in found["tasks"].items():
            _set_examples(name, task, num_fewshot, spec.file)
            parts = (task.get_config("dataset_path"), task.get_config("dataset_name"))
            hub = " ".join(str(part) for part in parts if part)
            loaded["data"][name] = hub if spec.file is None else str(spec.file)
        for part, content in loaded.items():
            content.update(found.get(part, {}))
    return loaded


def _of_hub(manager: Any, spec: TaskSpec) -> Any:
    try:
        with silent():
            return manager.load([spec.name])
    except Exception as error:  # no network, data that moved, packages a task needs, ...
        raise EvaluationError(
            f"the data of {spec.name} cannot be loaded: {last_line(error)}. "
            f"Without a network give a file: {spec.name}=FILE.jsonl"
        ) from error


def _of_file(manager: Any, spec: TaskSpec) -> dict[str, Any]:
    assert spec.file is not None
    config = manager.task_index[spec.name].cfg or {}
    if not isinstance(config.get("task"), str) or "class" in config:
        raise EvaluationError(
            f"{spec.name} stands for several tasks or has code of its own: no file can be its data"
        )
    data = rows.read(spec.file)
    rows.check_columns(data, spec.name, config)
    given = {"task": spec.name, "custom_dataset": rows.dataset(data, config)}
    try:
        with silent():
            # As a member of a group, a task takes single fields in place of its own.
            built = manager.load([{"group": f"file of {spec.name}", "task": [given]}])
            task = built["tasks"][spec.name]
    except Exception as error:  # whatever the code of a task raises on other data
        raise EvaluationError(
            f"{spec.file} does not fit {spec.name}: {last_line(error)}"
        ) from error
    rows.check_docs(data, spec.name, task)
    return {"tasks": {spec.name: task}}


def _set_examples(name: str, task: Any, asked: int | None, file: Path | None) -> None:
    """How many examples come before a question, by the rules of lm-eval's ``simple_evaluate``."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = task.get_config("num_fewshot")
    if own is None or (asked is not None and own != 0):
        task.set_config(key="num_fewshot", value=asked or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    if file is not None and task.get_config("num_fewshot") and task.fewshot_cfg.samples is None:
        raise EvaluationError(
            f"{name} puts examples before each question, and they would come from {file}, which "
            "is measured: ask for none (--num-fewshot 0), or take the task's own data"
        )
