"""Text that commands read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "prose.jsonl"
    lines = (
        f"The {n}th house of the street has {n * n % 97} windows, {n * 31 % 89} doors and "
        f"{n * 7 % 61} stairs that lead from the {n * 3}th floor up to the attic, {n} in all. "
        for n in range(80)
    )
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file
