"""Text to calibrate and to measure on: a file, or prose that every Python carries.

The two must not overlap: :func:`builtin` and :func:`split` give two disjoint parts, the same on
every run.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.data.chat import Chat, instruction, is_chat, read_chat, tokens
from fxprune.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Text:
    """Records of text (articles, say) and the name to show for them."""

    name: str
    records: tuple[str, ...]


OWN = Text("text that the model writes itself", ())


def read(path: str | Path) -> Text:
    """Read a text file: ``.jsonl`` gives one record per line, any other file one.

    A line is an object with a ``text``; or a conversation: ``messages``, ``conversations`` as
    ShareGPT has them, or ``instruction`` and ``output`` (and perhaps ``input``) as Alpaca. These
    are :class:`fxprune.data.chat.Chat`, and written in the template of the tokenizer later on.

    Raises:
        CalibrationError: the file cannot be read, is empty, or a line has none of these.
    """
    return Text(Path(path).name, tuple(record for record, _ in _records(Path(path))))


def domains(path: str | Path, field: str) -> list[Text]:
    """Read a ``.jsonl`` as one text for each value of a field of its lines, such as ``source``.

    Args:
        path: the file, of lines as :func:`read` takes.
        field: its name; dots lead into objects: ``meta.pile_set_name``.

    Raises:
        CalibrationError: see :func:`read`; or a line has no such string or number.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise CalibrationError(f"{path}: only lines of a .jsonl have domains")
    found: dict[str, list[str]] = {}
    for number, (record, row) in enumerate(_records(path), start=1):
        value: Any = row
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise CalibrationError(f"{path}: record {number} has no string {field!r} as its domain")
        found.setdefault(str(value), []).append(record)
    return [Text(f"{path.name}, {name}", tuple(each)) for name, each in sorted(found.items())]


def _records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """What is not blank in a file, each with the row that it stands in."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read as UTF-8 text: {error}") from error
    records: list[tuple[str, Mapping[str, Any]]] = [(content, {})]
    if path.suffix == ".jsonl":
        # Not splitlines: a JSON string may hold a line separator (U+2028) as it is.
        lines = enumerate(content.split("\n"), start=1)
        records = [_record(path, number, line) for number, line in lines if line.strip()]
    records = [(record, row) for record, row in records if record.strip()]
    if not records:
        raise CalibrationError(f"{path} has no text in it")
    return records


def read_all(
    files: Sequence[str | Path], reader: Callable[[str | Path], Text] = read, domain: str = ""
) -> list[Text]:
    """Read several texts; two files of one name in two folders are told apart by their folders.

    Args:
        files: what to read.
        reader: of one file.
        domain: divide each by this field instead, see :func:`domains`.

    Raises:
        CalibrationError: one is given twice, or cannot be read.
    """
    paths = [Path(file).resolve() for file in files]
    if twice := [file for n, file in enumerate(files) if paths[n] in paths[:n]]:
        raise CalibrationError(f"{twice[0]} is given twice to measure on")
    found: dict[str, Text] = {}
    for file in files:
        for text in domains(file, domain) if domain else [reader(file)]:
            where = text.name.replace(Path(file).name, str(file), 1)
            name = where if text.name in found else text.name
            found[name] = Text(name, text.records)
    return list(found.values())


def _record(path: Path, number: int, line: str) -> tuple[str, Mapping[str, Any]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{path} line {number} is not JSON: {error}") from error
    try:
        found = record_of(row) if isinstance(row, dict) else None
    except CalibrationError as error:
        raise CalibrationError(f"{path} line {number}: {error}") from error
    if found is None:
        raise CalibrationError(
            f'{path} line {number} has no string "text", no "messages" or "conversations", and no '
            'strings "instruction" and "output"'
        )
    return found, row


def record_of(row: Mapping[str, Any]) -> str | None:
    """The text or conversation of a row, if it holds one.

    Raises:
        CalibrationError: its conversation is not one.
    """
    if isinstance(row.get("text"), str):
        return str(row["text"])
    if is_chat(row):
        chat = read_chat(row)
        if not isinstance(chat, Chat):
            raise CalibrationError(chat)
        return chat
    task, given, output = row.get("instruction"), row.get("input") or "", row.get("output")
    if isinstance(task, str) and isinstance(given, str) and isinstance(output, str):
        return instruction(task, given, output)
    return None


def split(text: Text) -> tuple[Text, Text]:
    """Two disjoint halves: the first records to calibrate on, the rest to measure on.

    A text of one record is cut behind its middle, at a paragraph if one ends there. Records that
    occur twice count once.
    """
    records = list(dict.fromkeys(text.records))
    if len(records) == 1:
        records = _cut(records[0])
    half, done, count = sum(map(len, records)) / 2, len(records[0]), 1
    while count < len(records) - 1 and done + len(records[count]) / 2 <= half:
        done += len(records[count])
        count += 1
    return (
        Text(f"{text.name}, first half", tuple(records[:count])),
        Text(f"{text.name}, second half", tuple(records[count:])),
    )


def _cut(record: str) -> list[str]:
    middle, reach = len(record) // 2, len(record) // 10
    for separator in ("\n\n", "\n", " "):
        place = record.find(separator, middle, middle + reach)
        if place >= 0:
            middle = place
            break
    return [record[:middle], record[middle:]]


def builtin() -> tuple[Text, Text]:
    """The language reference inside Python itself (``pydoc_data.topics``), in two disjoint parts.

    Some topics quote others, so topics with a paragraph in common stay on one side. The families
    go, the largest first, to the side with less text.

    Returns:
        Text to calibrate on and text to measure on, one record per topic.
    """
    from pydoc_data.topics import topics

    sides: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    families = sorted(_families(topics), key=lambda f: (-sum(len(topics[n]) for n in f), f))
    for family in families:
        side = 0 if sizes[0] <= sizes[1] else 1
        sides[side].extend(family)
        sizes[side] += sum(len(topics[name]) for name in family)
    calibration, evaluation = (tuple(topics[name] for name in sorted(side)) for side in sides)
    return (
        Text("Python's language reference, calibration topics", calibration),
        Text("Python's language reference, evaluation topics", evaluation),
    )


def _families(topics: dict[str, str]) -> list[list[str]]:
    """Names of topics, those that share a paragraph of some length together; sorted."""
    import networkx

    graph: networkx.Graph[str] = networkx.Graph()
    first: dict[str, str] = {}
    for name in sorted(topics):
        graph.add_node(name)
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            key = " ".join(paragraph.split())
            if len(key) >= 60:
                graph.add_edge(first.setdefault(key, name), name)
    return [sorted(family) for family in networkx.connected_components(graph)]


def joined(tokenizer: PreTrainedTokenizerBase, text: Text) -> torch.Tensor:
    """Token ids of all records, a blank line between texts; int64 of shape (n,)."""
    parts: list[str] = []
    for record in text.records:
        if parts and not isinstance(record, Chat) and not isinstance(parts[-1], Chat):
            parts[-1] += f"\n\n{record}"
        else:
            parts.append(record)
    return torch.cat([tokens(tokenizer, part) for part in parts])


def per_word(tokenizer: PreTrainedTokenizerBase, text: Text) -> float:
    """Tokens per word of a text; words are what white space parts.

    Raises:
        CalibrationError: it has none.
    """
    words = sum(len(record.split()) for record in text.records)
    if not words:
        raise CalibrationError(f"{text.name} has no words in it")
    return sum(len(tokens(tokenizer, record)) for record in text.records) / words


def crops(
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    count: int = 10,
    length: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """Random crops to calibrate on, as LLM-Pruner draws them (10 of 128 tokens).

    Each is a random record among those long enough, cropped at a random place. No special tokens.

    Args:
        tokenizer: of the model.
        text: where to draw from.
        count: number of crops.
        length: tokens in each.
        seed: the same seed gives the same crops.

    Returns:
        int64 tensor of shape (count, length).

    Raises:
        CalibrationError: no record has ``length`` tokens.
    """
    if count < 1 or length < 2:
        raise CalibrationError(f"{count} crops of {length} tokens: take at least 1 of at least 2")
    draw = random.Random(seed)
    ids: dict[int, torch.Tensor] = {}
    candidates = list(range(len(text.records)))
    found: list[torch.Tensor] = []
    while len(found) < count:
        if not candidates:
            longest = max((len(record) for record in ids.values()), default=0)
            raise CalibrationError(
                f"{text.name}: the longest record has {longest} tokens, {length} are needed; "
                "give a longer text, or ask for shorter samples"
            )
        place = draw.randrange(len(candidates))
        record = candidates[place]
        if record not in ids:
            # Only what is drawn is tokenised: a text may have a million records.
            ids[record] = tokens(tokenizer, text.records[record])
        if len(ids[record]) < length:
            candidates.pop(place)
            continue
        start = draw.randint(0, len(ids[record]) - length)
        found.append(ids[record][start : start + length])
    return torch.stack(found)
