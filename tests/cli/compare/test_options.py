"""``fxprune compare`` as it is typed: what it has in common with ``fxprune prune``."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune.cli.commands.compare import COMMON
from fxprune.cli.commands.fields import OPTIONS
from tests.command_line import run_command
from tests.hf import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("typed")
    tiny.folder(place / "model")
    for name, word in (("a", "horse"), ("b", "mouse")):
        text = " ".join(f"The {word} number {n} is short." for n in range(60))
        (place / f"{name}.txt").write_text(text)
    return place


def command(place: Path, out: Path, *more: str) -> list[str]:
    texts = ["--text", str(place / "a.txt"), "--eval", str(place / "b.txt")]
    sizes = ["--lengths", "16", "--windows", "4", "--samples", "3", "--length", "16"]
    given = ["--criteria", "magnitude", "--ratios", "0.05", "--compensate", "none", *more]
    return ["compare", str(place / "model"), *texts, *sizes, *given, "--out", str(out)]


def test_limits_are_those_of_prune(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(COMMON) <= OPTIONS.keys()
    limits = ["--max-ratio", "mlp=0.5", "--layer-ratio", "*layers.0*=0", "--ignore", "lm_head"]
    status, shown, _ = run_command(monkeypatch, capsys, *command(place, tmp_path / "out", *limits))
    assert status == 0
    assert "magnitude, global" in shown
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert '"max_ratio": {"mlp": 0.5}' in lines[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-ratio", "7"), "--max-ratio 7.0 is outside [0, 1)"),
        (("--min-kept", "x"), "--min-kept 'x': write a number"),
        (("--search", "best"), "--search 'best': choose from"),
        (("--branches", "block"), "give --search 'measured' too"),
    ],
)
def test_what_is_refused(
    options: tuple[str, ...],
    words: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, _, said = run_command(monkeypatch, capsys, *command(place, tmp_path / "out", *options))
    assert status == 2
    assert words in said
    assert not (tmp_path / "out").exists()
