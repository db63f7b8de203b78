"""GGUF files as models: the same as the checkpoint that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.errors import FxpruneWarning, ModelError
from fxprune.hf.open import gguf_file
from fxprune.hf.open.models import load_config, load_model, resolve
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from tests.marks import but_slow
from tests.serve import test_matched
from tests.serve.models import tokenizer, traced

IDS = torch.tensor([[5, 17, 99, 23, 200, 7, 8, 1, 44]])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))


def written(kind: str, path: Path, dtype: str = "f32") -> Any:
    """The model, all of it in a file."""
    of = traced(kind)
    plan = Plan.of(fxprune.discover(of), {})
    module: Any = of.module
    pruned = Pruned(fxprune.rewrite(of, plan), module.config, plan, tokenizer())
    engine("llama.cpp").write(pruned, path, dtype=dtype)
    return module


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    "kind", but_slow(["llama", "linear-rope", "qwen2", "qwen3-tied"], "llama", "qwen2")
)
def test_it_is_the_model(kind: str, tmp_path: Path) -> None:
    module = written(kind, tmp_path / "m.gguf")
    found = load_model(tmp_path / "m.gguf")
    assert found.name == "m"
    assert torch.equal(logits(found.model), logits(module))
    assert found.tokenizer is not None
    assert found.tokenizer("cab").input_ids == tokenizer()("cab").input_ids
    config = load_config(tmp_path / "m.gguf")
    assert config.to_dict() == found.config.to_dict()


@pytest.mark.parametrize(("dtype", "kind"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtypes(dtype: str, kind: torch.dtype, tmp_path: Path) -> None:
    module = written("llama", tmp_path / "m.gguf", dtype)
    found: Any = load_model(tmp_path / "m.gguf").model
    assert found.dtype == kind
    own = module.model.layers[1].self_attn.k_proj.weight.to(kind)
    assert torch.equal(found.model.layers[1].self_attn.k_proj.weight, own)


def test_in_pieces_it_is_pruned_as_in_memory(tmp_path: Path) -> None:
    written("llama", tmp_path / "m.gguf")
    found = [
        fxprune.prune(
            str(tmp_path / "m.gguf"), calibration=IDS, criterion="taylor", stream=stream,
            compensation=None,
        )
        for stream in (False, True)
    ]  # fmt: skip
    assert found[0].plan.kept == found[1].plan.kept
    for number, result in enumerate(found):
        result.save(tmp_path / str(number))
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in "01"]
    assert files[0] == files[1]


def test_experts_are_read_whole(tmp_path: Path) -> None:
    of = test_matched.dense("Qwen3Moe", tmp_path / "m.gguf")
    assert torch.allclose(logits(load_model(tmp_path / "m.gguf").model), logits(of.module))


def test_a_file_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("llama", tmp_path / "m.gguf")
    first = gguf_file.folder(tmp_path / "m.gguf")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_file, "convert", None)
        assert gguf_file.folder(tmp_path / "m.gguf") == first
    written("qwen2", tmp_path / "m.gguf")
    assert gguf_file.folder(tmp_path / "m.gguf") != first


def test_what_transformers_does_not_read(tmp_path: Path) -> None:
    written("llama-biases", tmp_path / "m.gguf")
    with pytest.raises(
        ModelError, match=r"m\.gguf: transformers does not read its blk\.0\.attn_.*bias"
    ):
        load_model(tmp_path / "m.gguf")
    assert not list((tmp_path / "cache").glob("*"))
    written("llama3-rope", tmp_path / "r.gguf")
    with pytest.warns(FxpruneWarning, match=r"does not read rope_freqs\.weight"):
        load_model(tmp_path / "r.gguf")


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF and no more")
    for call in (load_model, load_config):
        with pytest.raises(ModelError, match=r"m\.gguf cannot be read"):
            call(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"no such file or folder: 'models/n\.gguf'"):
        resolve("models/n.gguf")
    of = test_matched.dense("Mixtral", tmp_path / "x.gguf")
    assert of is not None
    with pytest.raises(ModelError, match=r"x\.gguf"):  # llama in the file, and no such layers
        load_model(tmp_path / "x.gguf")
