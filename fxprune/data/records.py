"""What a pruned model is retrained on: documents and instructions, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.data import sources
from fxprune.data.chat import Chat, is_chat, read_chat
from fxprune.data.text import Text
from fxprune.errors import CalibrationError, RecoveryError

BAD_ROWS = ("refuse", "skip")
_SURROGATE = "it has half of a surrogate pair, which is not a character"
_SHOWN = 3  # bad rows that an error names


@dataclass(frozen=True)
class Document:
    """A text to learn as it is, and where it is from, as ``wiki.jsonl line 3``."""

    text: str
    where: str


@dataclass(frozen=True)
class Instruction:
    """A task and its answer in Alpaca's format; ``input`` may be empty."""

    instruction: str
    input: str
    output: str
    where: str


@dataclass(frozen=True)
class Conversation:
    """Turns of a user and an assistant, who is learnt from."""

    chat: Chat
    where: str


Record = Document | Instruction | Conversation


@dataclass(frozen=True)
class Records:
    """Records to train on.

    Attributes:
        name: what to show for them.
        records: in their order in the source.
        skipped: one line for each row that was left out: where, and why.
    """

    name: str
    records: tuple[Record, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Bad:
    """A row that is not a record."""

    where: str
    reason: str


def plain(record: Record) -> str:
    """All text of a record: of an instruction its task, its input if any, and its answer."""
    if isinstance(record, Conversation):
        return str(record.chat)
    if isinstance(record, Document):
        return record.text
    return "\n".join(part for part in (record.instruction, record.input, record.output) if part)


def read_records(spec: str | Path, bad_rows: str = "refuse") -> Records:
    """Read what a user names as training data.

    Args:
        spec: a ``.jsonl`` file, each line an object with a string ``text``, with ``instruction``
            and ``output`` and perhaps ``input``, with ``messages``, or with ``conversations`` as
            ShareGPT has them; a ``.json`` file, a list of such objects;
            any other file, which is one document; or ``datasets:NAME[:CONFIG][:SPLIT][:COLUMN]``,
            where the columns ``instruction`` and ``output`` serve if no COLUMN is named and there
            is no ``text``. A row of a file with both a ``text`` and an instruction is the latter.
        bad_rows: what becomes of rows that are malformed or empty: ``refuse`` raises, ``skip``
            leaves them out and lists them in ``skipped``.

    Raises:
        RecoveryError: it cannot be read, a row is bad and not to be skipped, or nothing is left.
    """
    if bad_rows not in BAD_ROWS:
        raise RecoveryError(f"bad_rows is {bad_rows!r}: say one of {', '.join(BAD_ROWS)}")
    if str(spec).startswith(sources.PREFIX):
        return _gathered(str(spec).removeprefix(sources.PREFIX), _dataset(str(spec)), bad_rows)
    path = Path(spec)
    content, suffix = _content(path), path.suffix.lower()
    if suffix == ".jsonl":
        return _gathered(path.name, _lines(path.name, content), bad_rows)
    if suffix == ".json":
        return _gathered(path.name, _entries(path.name, content), bad_rows)
    return _gathered(path.name, [_document(path.name, content)], bad_rows)


def from_text(text: Text) -> Records:
    """The records of a text as documents; empty ones are left out.

    Raises:
        RecoveryError: nothing is left.
    """
    found = (
        Conversation(record, f"{text.name} record {number}")
        if isinstance(record, Chat)
        else _document(f"{text.name} record {number}", record)
        for number, record in enumerate(text.records, start=1)
    )
    return _gathered(text.name, found, "skip")


def _content(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in sources.PICKLES:
        raise RecoveryError(
            f"{path} is a pickle, which may run code and is not read: "
            "give the training data as text, .jsonl or .json"
        )
    if suffix in (".safetensors", ".npy"):
        raise RecoveryError(
            f"{path} holds token ids, not text: give the training data as text, .jsonl or .json"
        )
    try:
        # A byte order mark, as some editors write it, is not a part of the text.
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecoveryError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _lines(name: str, content: str) -> Iterator[Record | _Bad]:
    # Not splitlines: a JSON string may hold a line separator (U+2028) as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _Bad(where, f"it is not JSON ({_short(error)})")
        else:
            yield _row(where, row)


def _entries(name: str, content: str) -> Iterator[Record | _Bad]:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecoveryError(
            f"{name} is not JSON: {error}; if each of its lines is an object, call it .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise RecoveryError(f"{name} holds no list of rows but a {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield _row(f"{name} entry {number}", row)


def _dataset(spec: str) -> Iterator[Record | _Bad]:
    name = spec.removeprefix(sources.PREFIX)
    try:
        rows, column = sources.dataset_rows(spec)
        names = rows.column_names
        if not column and "text" not in names and sources.holds_chats(names):
            for number, row in enumerate(sources.chat_rows(rows), start=1):
                yield _row(f"{name} row {number}", row)
            return
        column = column or "text"
        for number, text in enumerate(sources.dataset_column(spec, rows, column), start=1):
            yield _document(f"{name} row {number}", text, column)
    except CalibrationError as error:
        raise RecoveryError(str(error)) from error


def _row(where: str, row: Any) -> Record | _Bad:
    if not isinstance(row, dict):
        return _Bad(where, f"it is not an object but a {type(row).__name__}")
    if is_chat(row):
        return _conversation(where, row)
    instruction, given, output = (row.get(name) for name in ("instruction", "input", "output"))
    if not isinstance(instruction, str) or not isinstance(output, str):
        # Only then: the first Alpaca has a text too, the three in a template.
        if isinstance(row.get("text"), str):
            return _document(where, row["text"])
        return _Bad(
            where,
            'it has no string "text", no strings "instruction" and "output", and no "messages"',
        )
    given = "" if given is None else given
    if not isinstance(given, str):
        return _Bad(where, 'its "input" is not a string')
    if not (instruction + given).strip():
        return _Bad(where, 'its "instruction" is empty')
    if not output.strip():
        return _Bad(where, 'its "output" is empty')
    if not _encodes(instruction + given + output):
        return _Bad(where, _SURROGATE)
    return Instruction(instruction, given, output, where)


def _conversation(where: str, row: dict[str, Any]) -> Record | _Bad:
    chat = read_chat(row)
    if not isinstance(chat, Chat):
        return _Bad(where, chat)
    return Conversation(chat, where) if _encodes(chat) else _Bad(where, _SURROGATE)


def _document(where: str, text: Any, column: str = "text") -> Record | _Bad:
    if not isinstance(text, str):
        return _Bad(where, f'it has no string "{column}"')
    if not text.strip():
        return _Bad(where, f'its "{column}" is empty')
    if not _encodes(text):
        return _Bad(where, _SURROGATE)
    return Document(text, where)


def _encodes(text: str) -> bool:
    """Whether a tokenizer can take it: JSON may spell half of a surrogate pair, and text not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(error: Exception) -> str:
    """What is wrong with a line of JSON, without a line number: that would always be 1."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _gathered(name: str, rows: Iterable[Record | _Bad], bad_rows: str) -> Records:
    found: list[Record] = []
    bad: list[str] = []
    for row in rows:
        if isinstance(row, _Bad):
            bad.append(f"{row.where}: {row.reason}")
        else:
            found.append(row)
    total = len(found) + len(bad)
    shown = "; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more" * (len(bad) > _SHOWN))
    if not total:
        raise RecoveryError(f"{name} has nothing in it to train on")
    if not found:
        raise RecoveryError(f"{name}: none of its {total} rows can be trained on: {shown}")
    if bad and bad_rows == "refuse":
        raise RecoveryError(
            f"{name}: {len(bad)} of its {total} rows cannot be trained on: {shown}. Mend them, or "
            'leave them out with bad_rows="skip" (command line: --bad-rows skip)'
        )
    return Records(name, tuple(found), tuple(bad))
