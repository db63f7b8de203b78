"""What pruning gives: a model of its class, and a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import fx, nn

import fxprune
from fxprune.errors import CheckpointError, FxpruneWarning, ShrinkError
from tests.hf import tiny
from tests.zoo import BY_NAME

TEXTS = [
    " ".join(f"The horse number {n} is short." for n in range(start, start + 40))
    for start in (0, 40)
]


@pytest.fixture(scope="module")
def result() -> fxprune.PruneResult:
    return fxprune.prune(
        tiny.llama(),
        pruning_ratio="20%",
        calibration=TEXTS,
        tokenizer=tiny.tokenizer(),
        calibration_lengths=(16,),
        calibration_samples=4,
        compensation_samples=8,
    )


def test_text_calibrates(result: fxprune.PruneResult) -> None:
    assert result.plan.criterion == repr(fxprune.OBS())
    assert result.compensation is not None
    assert result.config is not None
    assert result.config.pruning_ratio == 0.2


def test_the_model_generates(result: fxprune.PruneResult) -> None:
    model: Any = result.model
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert result.model is model
    ids = torch.arange(3, 11)[None]
    assert model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 12)
    torch.testing.assert_close(model(ids).logits, result.graph_module(input_ids=ids).logits)


def test_a_folder_of_transformers(result: fxprune.PruneResult, tmp_path: Path) -> None:
    words = result.save(tmp_path / "small")
    assert f"fxprune.load('{tmp_path}/small')" in words
    assert "from_pretrained" in words
    ids = torch.arange(3, 11)[None]
    loaded = fxprune.load(tmp_path / "small")
    assert torch.equal(loaded(input_ids=ids).logits, result.model(ids).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert tokenizer.vocab_size == tiny.VOCABULARY - 1


def test_a_folder_of_a_graph(result: fxprune.PruneResult, tmp_path: Path) -> None:
    words = result.save(tmp_path / "graph", save_as="graph")
    assert "from_pretrained" not in words
    assert isinstance(fxprune.load(tmp_path / "graph"), fx.GraphModule)


def test_what_no_config_can_say(tmp_path: Path) -> None:
    model: Any = BY_NAME["gpt2"].build("eager")  # the size of a head follows from their number
    found = fxprune.prune(model, criterion="magnitude", kinds="attention", pruning_ratio=0.1)
    with pytest.warns(FxpruneWarning, match="result.model is the GraphModule: "):
        assert found.model is found.graph_module
    assert "(not for transformers: " in found.save(tmp_path / "m")
    with pytest.raises(ShrinkError):
        found.save(tmp_path / "n", save_as="transformers")
    assert not (tmp_path / "n").exists()


def test_any_other_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    x = torch.randn(5, 6)
    found = fxprune.prune(model, x, criterion="magnitude", pruning_ratio=0.5)
    assert found.model is found.graph_module
    with pytest.raises(ShrinkError, match="Sequential is not a transformers model"):
        found.save(tmp_path / "m", save_as="transformers")
    with pytest.raises(CheckpointError, match="choose from auto, transformers, graph"):
        found.save(tmp_path / "m", save_as="onnx")


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(
        fxprune.FxpruneError, match=r"calibration is text \(2 texts\): give .* tokenizer="
    ):
        fxprune.prune(tiny.llama(), calibration=TEXTS)
