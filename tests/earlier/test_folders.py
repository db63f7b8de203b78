"""What an earlier version wrote opens, and computes what it computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.inspect.blank import open_blank
from fxprune.plan import Plan
from tests.earlier.folders import IDS, WRITTEN
from tests.hf import tiny

OUTPUTS = load_file(WRITTEN / "outputs.safetensors")


@pytest.mark.parametrize(
    ("folder", "outputs"), [("graph", "plan"), ("stock", "plan"), ("uneven", "uneven")]
)
def test_folders(folder: str, outputs: str) -> None:
    model = fxprune.load(WRITTEN / folder)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, OUTPUTS[outputs])
    assert open_blank(str(WRITTEN / folder)).traced.tensors


@pytest.mark.parametrize(("folder", "remote"), [("stock", False), ("uneven", True)])
def test_transformers_opens_them(folder: str, remote: bool, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(WRITTEN / folder, trust_remote_code=remote)
    with torch.no_grad():
        given = model(input_ids=IDS).logits
    torch.testing.assert_close(given, OUTPUTS["plan" if folder == "stock" else "uneven"])


def test_plan_and_scores() -> None:
    plan, scores = (
        Plan.load(WRITTEN / "plan.json"),
        fxprune.Scores.load(WRITTEN / "scores.safetensors"),
    )
    graph = fxprune.discover(fxprune.trace(tiny.llama()))
    plan.check(graph)
    small = fxprune.rewrite(graph.traced, plan)
    with torch.no_grad():
        torch.testing.assert_close(small(input_ids=IDS).logits, OUTPUTS["plan"])
    assert fxprune.select(graph, scores, pruning_ratio=0.1).kept
