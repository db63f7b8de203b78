"""The command line, run in this process."""

from __future__ import annotations

import sys
from pydoc_data.topics import topics
from typing import Any

import pytest

from fxprune.cli import app as cli

# A ninth of the text that Python carries: with a token a byte, all of it takes longest of all.
FEW_TOPICS = {name: topic for name, topic in topics.items() if 300 < len(topic) < 3000}


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[Any, str, str]:
    """Exit status, standard output and standard error of ``fxprune`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["fxprune", *map(str, arguments)])
    monkeypatch.setattr("pydoc_data.topics.topics", FEW_TOPICS)
    status: Any = 0
    try:
        cli.main()
    except SystemExit as left:
        status = left.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err
