"""The command for a GPU machine, on a tiny model on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benches import gpu, report


def run(path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Any:
    words = ["gpu", "--device", "cpu", "--shape", "tiny", "--out", str(path), *more]
    monkeypatch.setattr(sys, "argv", words)
    gpu.main()
    return json.loads(path.read_text())


@pytest.mark.slow
def test_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "gpu.json", monkeypatch)
    names = [bench["name"] for bench in found["benchmarks"]]
    assert names == [
        "sizes", "rewriting", "models", "forward", "taylor", "recovery", "generation",
    ]  # fmt: skip
    extras = {bench["name"]: bench["extra_info"] for bench in found["benchmarks"]}
    assert not any(extra["notes"] for extra in extras.values()), extras
    rows = {name: list(extra["tables"].values())[-1] for name, extra in extras.items()}
    variants = ["dense", "block 20 %", "depth 1"]
    assert [row["model"] for row in rows["sizes"]] == variants
    dense, twenty = rows["sizes"][:2]
    assert dense["parameters"] == 2 * 96 * 32 + 7 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    # 4 of 7 layers lose a quarter of heads and units.
    assert dense["parameters"] - twenty["parameters"] == 4 * (4 * 32 * 32 + 3 * 32 * 48) // 4
    assert [row["model"] for row in rows["recovery"]] == variants[:2]
    assert [(row["batch"], row["model"]) for row in rows["generation"]] == [
        (batch, name) for batch in (1, 3) for name in variants
    ]
    assert all(row["rounds"] == 1 for row in rows["generation"])
    assert "Generation with a cache" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="quick"):
        report.page([found])
    for extra in extras.values():
        extra["size"] = "full"
    text = report.page([found])
    assert "python -m benches.gpu --shape tiny" in text
    assert f"| dense | {dense['parameters']:,} |" in text


def test_what_does_not_fit_into_the_time_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(tmp_path / "gpu.json", monkeypatch, "--minutes", "0")
    (bench,) = found["benchmarks"]
    assert bench["extra_info"]["notes"] == ["sizes: skipped, 0 s were left of 0 minutes"]


def test_a_failure_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    def sizes(parts: gpu.Parts, record: Any) -> None:
        parts.plans["dense"] = None

    monkeypatch.setattr(gpu.Parts, "sizes", sizes)
    for name in ("rewriting", "shrink", "forward", "generation"):
        monkeypatch.setattr(gpu.Parts, name, lambda *_: None)
    monkeypatch.setattr(gpu.Parts, "taylor", fail)
    monkeypatch.setattr(gpu.Parts, "recovery", fail)
    with pytest.raises(SystemExit, match="failed: taylor, recovery"):
        run(tmp_path / "gpu.json", monkeypatch)
    found = json.loads((tmp_path / "gpu.json").read_text())
    notes = {bench["name"]: bench["extra_info"]["notes"] for bench in found["benchmarks"]}
    assert notes["taylor"] == ["taylor: failed, RuntimeError: out of memory"]
    assert notes["generation"] == []


def test_no_gpu_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main()


def test_published_shapes() -> None:
    """Those of LLM-Pruner and Shortened LLaMA, from the config alone."""
    shape = gpu.SHAPES["llama-7b"]
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    dense = 2 * 32000 * 4096 + 32 * layer + 4096
    assert shape.parameters["dense"] == dense
    for count in shape.depth:
        assert shape.parameters[f"depth {count}"] == dense - count * layer
