"""Find a task among lm-eval's configs, without its index of all of them, which takes a minute."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from fxprune.errors import EvaluationError
from fxprune.measure.silence import silent

INSTALL = "tasks need lm-eval: pip install 'lm-eval>=0.4.13', or fxprune with its extra, [eval]"
_NAME = re.compile(rb"^task:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)
_OTHER = re.compile(
    rb"^(?:group|tag):[ \t]*[\"']?([\w.+-]+)|^[ \t]*-[ \t]+([\w.+-]+)", re.MULTILINE
)


def manager(name: str) -> Any:
    """lm-eval's ``TaskManager``, with at least the task of that name in its index.

    Raises:
        EvaluationError: lm-eval is not installed, or has no such task, group or tag.
    """
    files, others = _scan(_folder())
    file = files.get(name)
    if file is not None:
        return _manager(file.parent)
    # Groups and tags stand for tasks that may be anywhere.
    found = _manager(None) if name in others else None
    if found is None or name not in found.all_tasks:
        close = difflib.get_close_matches(name, [*files, *others], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EvaluationError(f"lm-eval has no task {name!r}{hint}")
    return found


def _folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise EvaluationError(INSTALL)
    return Path(spec.origin).parent / "tasks"


@functools.cache
def _scan(folder: Path) -> tuple[dict[str, Path], set[str]]:
    """Config files by the name of their task, and what may be names of groups and tags."""
    files: dict[str, Path] = {}
    others: set[str] = set()
    # Sorted as lm-eval does: of two files with one name, the first counts.
    for path in sorted(folder.glob("**/*.yaml"), key=lambda path: path.as_posix()):
        text = path.read_bytes()
        for name in _NAME.findall(text):
            files.setdefault(name.decode(), path)
        for pair in _OTHER.findall(text):
            others.add((pair[0] or pair[1]).decode())
    return files, others


@functools.cache
def _manager(folder: Path | None) -> Any:
    try:
        with silent():
            from lm_eval.tasks import TaskManager

            if folder is None:
                return TaskManager()
            return TaskManager(include_path=str(folder), include_defaults=False)
    except ImportError as error:
        raise EvaluationError(f"{INSTALL} ({error})") from error
