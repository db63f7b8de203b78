"""``fxprune recover`` from folder to folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

import fxprune
from tests.command_line import run_command
from tests.hf import tiny

LINES = [
    f"The {n}th stone lies to the left of the {n + 1}th, and {n * 37} of them lie there."
    for n in range(60)
]
OPTIONS = ("--steps", 4, "--batch-size", 4, "--length", 16, "--learning-rate", 0.01)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    rows = (json.dumps({"text": line}) + "\n" for line in LINES)
    file.write_text("".join(rows), encoding="utf-8")
    return file


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    file = tmp_path / "evaluation.txt"
    file.write_text("Nothing of the kind was ever seen in that valley before. " * 20)
    return file


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A pruned model as a graph (True) and as a transformers model."""
    folder, model = tmp_path_factory.mktemp("pruned"), tiny.llama()
    result = fxprune.prune(model, pruning_ratio=0.1, criterion=fxprune.Magnitude())
    small = fxprune.shrink(model, result.plan, result.graph_module)
    found = {}
    for graph, each in ((True, result.graph_module), (False, small)):
        found[graph] = fxprune.save(
            each,
            folder / str(graph),
            plan=result.plan,
            traced=result.traced,
            tokenizer=tiny.tokenizer(),
        )
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(20).view(2, 10)).logits
    return found


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "module"])
def test_recovers_a_folder(
    tmp_path: Path,
    sources: dict[bool, Path],
    data: Path,
    evaluation: Path,
    graph: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = sources[graph], tmp_path / "out"
    asked = ("recover", source, "--data", data, "--out", out, "--eval", evaluation, *OPTIONS)
    status, printed, errors = run_command(monkeypatch, capsys, *asked)
    assert status == 0, errors
    assert "validation loss" in printed
    assert "perplexity, evaluation.txt" in printed
    assert "step 4/4" in errors
    before, after = fxprune.load(source), fxprune.load(out / "model")
    assert isinstance(after, fx.GraphModule) == graph
    assert not torch.equal(logits(before), logits(after))
    report = json.loads((out / "report.json").read_text())
    perplexity = report["perplexity"]
    assert perplexity["after"]["evaluation.txt"] < perplexity["before"]["evaluation.txt"]
    assert (out / "log.csv").read_text().splitlines()[0].startswith("step,loss,")
    assert (out / "loss.svg").is_file()
    assert (out / "adapter" / "adapter_config.json").is_file()
    # Once more: nothing is trained, the same comes out.
    status, again, errors = run_command(monkeypatch, capsys, *asked)
    assert status == 0, errors
    assert again == printed
    assert torch.equal(logits(fxprune.load(out / "model")), logits(after))


def test_distillation_from_the_original(
    tmp_path: Path,
    sources: dict[bool, Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, teacher = sources[False], tiny.folder(tmp_path / "dense")
    asked = ("recover", source, "--data", data, "--out", tmp_path / "out", *OPTIONS)
    told = ("--method", "full", "--teacher", teacher, "--hidden-weight", "0.5")
    status, printed, errors = run_command(monkeypatch, capsys, *asked, *told)
    assert status == 0, errors
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["teacher"]["model"] == str(teacher)
    assert report["trained"] == sum(p.numel() for p in fxprune.load(source).parameters())
    assert "adapter" not in printed


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
def test_adapter_alone(
    tmp_path: Path,
    sources: dict[bool, Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from peft import PeftModel

    source, out = sources[False], tmp_path / "out"
    asked = ("recover", source, "--data", data, "--out", out, *OPTIONS)
    status, _, errors = run_command(monkeypatch, capsys, *asked, "--no-merge")
    assert status == 0, errors
    assert not (out / "model").exists()
    adapted = PeftModel.from_pretrained(fxprune.load(source), str(out / "adapter"))
    run_command(monkeypatch, capsys, *asked[:5], tmp_path / "merged", *OPTIONS)
    merged = fxprune.load(tmp_path / "merged" / "model")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "qlora"), "no method 'qlora'"),
        (("--method", "full", "--rank", "4"), "are LoRA's"),
        (("--reinitialise",), "take --method full"),
        (("--steps", "0"), "steps is 0"),
        (("--method", "full", "--no-merge"), "only LoRA has an adapter"),
        (("--hidden-weight", "1"), "need a teacher"),
        (("--validation", "0.9"), "0.9"),
        (("--dtype", "int4"), "no dtype 'int4'"),
        (("--batch-size", "5", "--micro-batch-size", "2"), "does not divide"),
    ],
)
def test_refusals(
    tmp_path: Path,
    sources: dict[bool, Path],
    data: Path,
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = sources[False], tmp_path / "out"
    asked = ("recover", source, "--data", data, "--out", out, *options)
    status, printed, errors = run_command(monkeypatch, capsys, *asked)
    assert (status, printed) == (2, "")
    assert said in errors
    assert not out.exists()


def test_text_that_is_measured_on_is_not_trained_on(
    tmp_path: Path,
    sources: dict[bool, Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = sources[False], tmp_path / "out"
    leak = tmp_path / "leak.txt"
    leak.write_text("Something else. " * 20 + LINES[7])
    asked = ("recover", source, "--data", data, "--out", out, "--eval", leak, *OPTIONS)
    status, _, errors = run_command(monkeypatch, capsys, *asked)
    assert status == 2
    assert "data.jsonl line 8" in errors
    assert not out.exists()
    status, printed, errors = run_command(monkeypatch, capsys, *asked, "--drop-overlap")
    assert status == 0, errors
    assert "left out: data.jsonl line 8" in printed
