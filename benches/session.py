"""Parts of one run on a GPU machine: a budget of time, and a JSON that a kill leaves whole."""

from __future__ import annotations

import datetime
import json
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import machine
from benches.record import Record
from fxprune.files import write_text


class Session:
    """Runs parts and keeps what they found, in the form that pytest-benchmark saves.

    Args:
        out: the JSON file; written anew after every part.
        minutes: parts that would begin with too little of this left are skipped, and say so.
        title: what is measured.
        size: see :mod:`benches.sizes`.
        command: that makes the file.
    """

    def __init__(self, out: Path, minutes: float, title: str, size: str, command: str) -> None:
        self._out, self._title, self._size = out, title, size
        self._minutes, self._start = minutes, time.monotonic()
        self.failed: list[str] = []
        self._document: dict[str, Any] = {
            "machine_info": machine.info(),
            "commit_info": _commit(),
            "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
            "command": command,
            "benchmarks": [],
        }

    def left(self) -> float:
        """Seconds left of the budget."""
        return 60 * self._minutes - (time.monotonic() - self._start)

    def part(self, name: str, call: Callable[[Record], None], needs: float = 0.0) -> None:
        """Run a part. A failure is noted and ends only this part.

        Args:
            name: of the part.
            call: measures, into a record.
            needs: seconds that must be left of the budget.
        """
        found: dict[str, Any] = {}
        record = Record(found, self._title, self._size)
        self._document["benchmarks"].append(
            {"fullname": f"benches/gpu.py::{name}", "name": name, "extra_info": found}
        )
        if self.left() < needs or self.left() <= 0:
            record.note(
                f"{name}: skipped, {max(0.0, self.left()):.0f} s were left of "
                f"{self._minutes:g} minutes"
            )
        else:
            before = time.monotonic()
            try:
                call(record)
            except Exception as error:
                traceback.print_exc()
                self.failed.append(name)
                first = (str(error).splitlines() or [""])[0][:200]
                record.note(f"{name}: failed, {type(error).__name__}: {first}")
            print(f"-- {name}: {time.monotonic() - before:.1f} s, {self.left():.0f} s left")
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        write_text(self._out, json.dumps(self._document, indent=1) + "\n")

    def show(self) -> None:
        """Print every table, limit and note."""
        from rich.console import Console
        from rich.table import Table

        from benches.record import shown

        console = Console()
        for bench in self._document["benchmarks"]:
            extra = bench["extra_info"]
            for heading, rows in extra["tables"].items():
                table = Table(title=heading)
                columns = list(dict.fromkeys(column for row in rows for column in row))
                for column in columns:
                    table.add_column(column, justify="right")
                for row in rows:
                    table.add_row(*(shown(row.get(column)) for column in columns))
                console.print(table)
            for note in extra["notes"]:
                console.print(f"* {note}", highlight=False)


def _commit() -> dict[str, Any]:
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return found.stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except OSError:
        return {}
