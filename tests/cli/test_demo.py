"""The demo on a tiny model; the real one where it is asked for."""

from __future__ import annotations

import importlib
import io
import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fxprune
from fxprune.cli.demo import NEW_TOKENS, PROMPT, check_out, continuation, demo
from fxprune.data.text import Text
from fxprune.errors import CheckpointError, RecoveryError, SelectionError
from tests.hf import tiny

# A fraction of its text shows that all of it works; what all of it gives is shown by hand.
FEW = {"WINDOWS": 4, "CROPS": 2, "NEW_TOKENS": 8}


def _sized(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    # By name: the function of the same name hides the module.
    for name, size in sizes.items():
        monkeypatch.setattr(importlib.import_module("fxprune.cli.demo"), name, size)


def _run(out: Path, **options: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    demo(out, console=console, **options)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_everything_is_shown_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sized(monkeypatch, **FEW)
    model = tiny.folder(tmp_path / "tiny")
    shown = _run(tmp_path / "out", model=str(model))
    for word in ("parameters", "MACs", "size on disk", "perplexity", "latency", "proof:"):
        assert word in shown
    assert f"before: {PROMPT}" in shown
    assert f"after: {PROMPT}" in shown
    assert "bit-equal" in shown
    small = fxprune.load(tmp_path / "out" / "pruned")
    after = sum(p.numel() for p in small.parameters())
    assert after < 0.8 * tiny.PARAMETERS
    assert fxprune.Plan.load(tmp_path / "out" / "plan.json").parameters_after == after
    assert "digraph" in (tmp_path / "out" / "groups.dot").read_text()
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text())["after"]["parameters"] == after
    )
    # Again, over the first, with text and ratio of one's own.
    own = Text("my text", ("Some words of mine. " * 50,))
    assert "tokens of my text" in _run(
        tmp_path / "out", model=str(model), evaluation=own, ratio=0.3
    )
    assert fxprune.Plan.load(tmp_path / "out" / "plan.json").pruning_ratio == 0.3


def test_it_recovers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _sized(monkeypatch, RECOVERY_STEPS=3, **FEW)
    model = tiny.folder(tmp_path / "tiny")
    shown = _run(tmp_path / "out", model=str(model), recover=True)
    assert "recovery: LoRA, 3 steps" in shown
    assert "validation loss" in shown
    assert f"recovered: {PROMPT}" in shown
    folder = tmp_path / "out" / "pruned-recovered"
    assert (folder / "loss.svg").is_file()
    fxprune.load(folder / "model")
    with pytest.raises(RecoveryError, match="pruned-recovered exists"):
        _run(tmp_path / "out", model=str(model), recover=True)


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(CheckpointError, match="is not of an earlier demo"):
        demo(tmp_path)
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    check_out(tmp_path / "new")


def test_bad_ratio_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="outside"):
        demo(tmp_path / "out", ratio=2)
    assert not (tmp_path / "out").exists()


def test_continuation_is_what_generate_gives() -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    assert continuation(model, tokenizer) == tokenizer.decode(whole[0, ids.shape[1] :])


@pytest.mark.real
@pytest.mark.parametrize(
    "sizes", [FEW, pytest.param({}, marks=pytest.mark.slow)], ids=["few", "whole"]
)
def test_the_real_one(
    sizes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sized(monkeypatch, **sizes)
    if sizes:
        monkeypatch.setattr(importlib.import_module("fxprune.cli.workflow"), "LATENCY_AT", (1, 64))
    start = time.perf_counter()
    shown = _run(tmp_path / "out")
    assert time.perf_counter() - start < 600
    assert "134,515,008" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["after"]["parameters"] <= 0.8 * 134_515_008
    assert 10 < report["before"]["perplexity"] < 40
    assert report["after"]["perplexity"] < 4 * report["before"]["perplexity"]
