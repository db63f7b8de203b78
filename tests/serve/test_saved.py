"""From folders to engines: ``fxprune convert --for`` and ``fxprune apply --for``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.errors import PlanError, ServeError
from fxprune.plan import Plan
from fxprune.serve import saved
from tests.command_line import run_command
from tests.hf import tiny
from tests.serve.test_remote import llama


def plan_of(*widths: int) -> Plan:
    graph = llama()
    names = [g.name for g in graph.groups if g.kind == "mlp"]
    return Plan.of(graph, {n: range(w) for n, w in zip(names, widths, strict=True)})


def folder(path: Path, *widths: int, removed: tuple[str, ...] = ()) -> Path:
    """A pruned graph, its values changed since."""
    traced, plan = llama().traced, plan_of(*widths)
    small = fxprune.rewrite(traced, plan, share=False)
    with torch.no_grad():
        small.get_submodule("model.norm").weight.mul_(1.5)
    return fxprune.save(small, path, plan=plan, traced=traced, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("widths", [(9, 9, 9), (40, 40, 40)])
def test_a_graph_becomes_a_stock_checkpoint(tmp_path: Path, widths: Any) -> None:
    source = folder(tmp_path / "a", *widths)
    how = saved.convert(source, tmp_path / "b", "transformers")
    assert how.endswith(f"from_pretrained({str(tmp_path / 'b')!r})")
    ids = torch.randint(250, (2, 9))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        expected = fxprune.load(source)(input_ids=ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected)
    assert (tmp_path / "b" / "tokenizer.json").is_file()
    again = saved.convert(tmp_path / "b", tmp_path / "c", "transformers")
    assert "from_pretrained" in again


def test_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: Any) -> tuple[Any, str, str]:
        return run_command(monkeypatch, capsys, *words)

    source = folder(tmp_path / "a", 9, 8, 40)
    status, _, err = run("convert", source, tmp_path / "b", "--for", "transformers")
    assert status == 2
    assert "transformers-remote does" in err
    status, _, err = run("convert", source, tmp_path / "b", "--dtype", "f16")
    assert (status, err) == (2, "error: transformers-remote has no option 'dtype'\n")
    status, _, err = run("convert", source, tmp_path / "b", "--for", "transformer")
    assert "did you mean transformers" in err
    assert not (tmp_path / "b").exists()
    status, out, _ = run("convert", source, tmp_path / "b")
    assert status == 0
    assert "trust_remote_code=True" in out


def test_a_plan_for_a_dense_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.llama(num_hidden_layers=3).save_pretrained(tmp_path / "dense")
    plan_of(9, 9, 8).save(tmp_path / "plan.json")
    words = ("apply", tmp_path / "plan.json", tmp_path / "dense", tmp_path / "small", "--for")
    status, _, err = run_command(monkeypatch, capsys, *words, "transformers")
    assert status == 2
    assert "transformers has one number of mlp units of 40" in err
    assert not (tmp_path / "small").exists()
    assert run_command(monkeypatch, capsys, *words, "transformers-remote")[0] == 0
    saved.require("transformers", plan_of(9, 9, 9), tmp_path / "dense")
    tiny.llama().save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError, match="another model"):
        saved.require("transformers", plan_of(9, 9, 9), tmp_path / "other")
    short = fxprune.discover(fxprune.bypass(llama().traced, ["model.layers.1:block"]))
    saved.require("transformers", Plan.of(short, {}), tmp_path / "dense")
    short = fxprune.discover(fxprune.bypass(llama().traced, ["model.layers.1:mlp"]))
    with pytest.raises(ServeError, match=r"cannot leave out model\.layers\.1:mlp"):
        saved.require("transformers", Plan.of(short, {}), tmp_path / "dense")
