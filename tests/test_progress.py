"""Progress goes to standard error, as lines where that is not a terminal."""

from __future__ import annotations

import sys

import pytest

from fxprune.progress import step, track


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with step("loading"):
        pass
    assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "loading ...\ncounting ...\n")


def test_nothing_when_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with step("loading", show=False):
        pass
    assert list(track([1, 2], "counting", show=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with step("loading"):
        pass
    assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr().out == ""
