"""A local JSONL file as the data of a task, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import EvaluationError

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Rows:
    """Records of a file and the lines they are on."""

    file: Path
    lines: tuple[int, ...]
    records: tuple[dict[str, Any], ...]


def read(file: Path) -> Rows:
    """Read JSONL; blank lines are skipped.

    Raises:
        EvaluationError: it cannot be read, is empty, or a line is no JSON object.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file} cannot be read as UTF-8 text: {error}") from error
    lines, records = [], []
    # Not splitlines: a JSON string may hold a line separator (U+2028) as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise EvaluationError(f"{file} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise EvaluationError(f"{file} line {number} is no JSON object")
        lines.append(number)
        records.append(record)
    if not records:
        raise EvaluationError(f"{file} has no lines in it")
    return Rows(file, tuple(lines), tuple(records))


def check_columns(rows: Rows, name: str, config: Mapping[str, Any]) -> None:
    """Refuse rows without a column that the task reads.

    Args:
        rows: of the file.
        name: of the task.
        config: of the task. Its templates say what it reads; where a function of the task reads
            the rows, every row must have the columns of the first.

    Raises:
        EvaluationError: a column is missing; names the line.
    """
    needed = columns(config)
    for number, record in zip(rows.lines, rows.records, strict=True):
        for column in rows.records[0] if needed is None else needed:
            if column not in record:
                why = "which line 1 has" if needed is None else f"which {name} reads"
                raise EvaluationError(
                    f"{rows.file} line {number} has no column {column!r}, {why}; "
                    f"it has {', '.join(record) or 'none'}"
                )


def columns(config: Mapping[str, Any]) -> list[str] | None:
    """The columns that a task's templates read; None where a function of the task reads them."""
    from jinja2 import Environment, meta

    found: dict[str, None] = {}
    if config.get("process_docs") or config.get("use_prompt"):
        return None
    for template in (config.get(key) for key in _TEMPLATES):
        if not isinstance(template, str):
            continue
        # With "!function" a config holds the path of the function until it is built.
        if "{" not in template and ("/" in template or "\\" in template):
            return None
        names = meta.find_undeclared_variables(Environment().parse(template))
        plain = "{" not in template and template.isidentifier()
        found.update(dict.fromkeys([template] if plain else sorted(names)))
    return list(found)


def dataset(rows: Rows, config: Mapping[str, Any]) -> Callable[..., Any]:
    """What lm-eval takes as ``custom_dataset``: gives the rows for every split of the task.

    Nothing is fetched and nothing cached on disk.
    """
    splits = {config.get(key) for key in _SPLITS}
    splits.add((config.get("fewshot_config") or {}).get("split"))

    def make(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        data = Dataset.from_list(list(rows.records))
        return DatasetDict({split: data for split in splits if split})

    return make


def check_docs(rows: Rows, name: str, task: Any) -> None:
    """Refuse rows from which the task cannot make a question, its choices and the answer.

    Raises:
        EvaluationError: names the line.
    """
    docs = task.eval_docs
    numbers = rows.lines if len(docs) == len(rows.lines) else range(1, len(docs) + 1)
    for number, doc in zip(numbers, docs, strict=True):
        try:
            task.doc_to_text(doc)
            target = task.doc_to_target(doc)
            choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
        except Exception as error:  # whatever a template or a function of the task may raise
            raise EvaluationError(
                f"{rows.file} line {number} does not fit {name}: {error}"
            ) from error
        if choices is not None and isinstance(target, int) and not 0 <= target < len(choices):
            raise EvaluationError(
                f"{rows.file} line {number} does not fit {name}: "
                f"answer {target} of {len(choices)} choices"
            )
