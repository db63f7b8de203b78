"""The command line, run in this process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fxprune.cli import app as cli


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[Any, str, str]:
    """Exit status, standard output and standard error of ``fxprune`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["fxprune", *map(str, arguments)])
    status: Any = 0
    try:
        cli.main()
    except SystemExit as left:
        status = left.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err
