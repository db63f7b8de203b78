"""What the tables of perplexities on SmolLM2 share: windows, measuring, lines that are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from fxprune.data import text
from fxprune.measure.perplexity import Window, perplexity, windows

Columns = dict[str, list[Window]]


def columns(
    tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, text.Text], most: Mapping[int, int]
) -> Columns:
    """Windows of each text by name, ``most`` of each length."""
    found = {}
    for name, each in texts.items():
        ids = text.joined(tokenizer, each)
        found |= {f"{name} @ {length}": windows(ids, length, limit=n) for length, n in most.items()}
    return found


def measured(model: nn.Module, found: Columns) -> dict[str, float]:
    """Perplexity in each column, 1024 tokens at a time."""
    return {
        column: round(perplexity(model, cut, batch_size=1024 // len(cut[0].ids)).perplexity, 2)
        for column, cut in found.items()
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """What an earlier run measured."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(path: Path, line: dict[str, Any]) -> None:
    """Add a line, and print it."""
    said = json.dumps(line)
    with path.open("a", encoding="utf-8") as file:
        file.write(said + "\n")
    print(said, flush=True)
