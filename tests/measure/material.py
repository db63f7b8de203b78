"""Questions in the columns of ARC and PIQA, a few of them, for tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "black", "white")


def arc(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "question": f"Which colour is number {i}?",
            "choices": {
                "text": [COLOURS[(i + k) % 5] + "ish" * (k % 2) for k in range(4)],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(count)
    ]


def piqa(count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "goal": f"Paint it {COLOURS[i]}.",
            "sol1": "Use a brush.",
            "sol2": "Eat it.",
            "label": i % 2,
        }
        for i in range(count)
    ]


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file
