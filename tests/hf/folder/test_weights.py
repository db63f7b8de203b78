"""Weights read one at a time: the same tensors that transformers loads, or a refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import fxprune
from fxprune.errors import CheckpointError, ModelError
from fxprune.hf.folder import shards
from fxprune.rewrite.on_demand import DenseWeights, tensors_read
from fxprune.trace.traced import Traced
from tests.hf import tiny
from tests.marks import but_slow


def blank(folder: Path, **options: Any) -> Traced:
    """The model of a folder without weights, traced."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), **options)
    return fxprune.trace(model.eval())


def check_all(traced: Traced, source: fxprune.Weights, model: nn.Module) -> None:
    source.check(traced)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert len(traced.tensors) > 10
    for name, tensor in traced.tensors.items():
        found = source.read(traced, name)
        assert not found.requires_grad
        assert found.dtype == tensor.dtype
        assert torch.equal(found, own[name].to(found.dtype)), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("weights") / "model", with_tokenizer=False)


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_folder(tmp_path: Path, tied: bool) -> None:
    model = tiny.llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_all(blank(tmp_path), fxprune.Weights(tmp_path), model)


@pytest.mark.parametrize(("stored", "wanted"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_another_dtype(tmp_path: Path, stored: str, wanted: str) -> None:
    tiny.llama().to(getattr(torch, stored)).save_pretrained(tmp_path)
    dtype = getattr(torch, wanted)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    check_all(blank(tmp_path, dtype=dtype), fxprune.Weights(str(tmp_path)), model)


def test_names_without_the_prefix_of_the_model(tmp_path: Path) -> None:
    """GPT-2 on the hub is saved so."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=24, n_head=4, vocab_size=40, n_positions=32)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    check_all(blank(tmp_path), fxprune.Weights(tmp_path), model)


def test_a_module(folder: Path) -> None:
    model = tiny.llama()
    source = fxprune.Weights(model)
    traced = blank(folder)
    check_all(traced, source, model)
    name = "model.layers.0.mlp.up_proj.weight"
    assert source.read(traced, name).data_ptr() == model.get_parameter(name).data_ptr()
    assert repr(source) == "Weights('LlamaForCausalLM', device='cpu', memory=None)"


@pytest.mark.parametrize("tied", but_slow([False, True], False))
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_weights_that_accelerate_has_put_aside(place: str, tied: bool, tmp_path: Path) -> None:
    """``device_map=`` does so with what does not fit; scores and the result are those in memory."""
    expected = tiny.llama(tie_word_embeddings=tied)
    model = tiny.llama(tie_word_embeddings=tied)
    model.load_state_dict(expected.state_dict())
    if place == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, tmp_path / "aside", torch.device("cpu"))
    assert all(p.is_meta for p in model.parameters())
    source = fxprune.Weights(model)
    with torch.device("meta"):
        twin = type(model)(model.config).eval()
    traced = fxprune.trace(twin)
    source.check(traced)
    check_all(traced, source, expected)
    assert all(p.is_meta for p in model.parameters())
    ids = torch.randint(3, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    options: Any = {"calibration": ids, "criterion": "obs", "pruning_ratio": 0.2}
    inside = fxprune.prune(expected, **options)
    pieces = fxprune.prune(source, stream=True, **options)
    assert pieces.plan.kept == inside.plan.kept
    inside.save(tmp_path / "inside")
    pieces.save(tmp_path / "pieces")
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("inside", "pieces"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6)


def broken(folder: Path, path: Path, **changes: Any) -> Path:
    """A copy of a folder with other tensors; None leaves one out."""
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    return path


def test_what_is_not_there_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    traced = blank(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    lacks = broken(folder, tmp_path / "lacks", **{name: None})
    with pytest.raises(CheckpointError, match=f"has no {name!r}, and LlamaForCausalLM does not"):
        fxprune.Weights(lacks).check(traced)
    other = broken(folder, tmp_path / "other", **{name: torch.zeros(40, 25)})
    with pytest.raises(CheckpointError, match=r"has shape \(40, 25\), and the graph \(40, 24\)"):
        fxprune.Weights(other).check(traced)
    cut = broken(folder, tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is damaged"):
        fxprune.Weights(cut.parent).check(traced)
    with pytest.raises(ModelError, match="no such file or folder"):
        fxprune.Weights(tmp_path / "absent").check(traced)
    with pytest.raises(CheckpointError, match="is on meta: there are no weights"):
        fxprune.Weights(traced.module).check(traced)


def test_a_missing_shard(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path, max_shard_size="20KB")
    traced = blank(tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    taken = load_file(second)
    save_file(dict(list(taken.items())[1:]), second, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks .* which model"):
        fxprune.Weights(tmp_path).check(traced)
    first.unlink()
    with pytest.raises(CheckpointError, match=f"{first.name} is damaged"):
        fxprune.Weights(tmp_path).check(traced)
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] = dict.fromkeys(said["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="not a file of its folder"):
        fxprune.Weights(tmp_path).check(traced)


def test_a_buffer_that_the_class_does_not_compute(folder: Path) -> None:
    """Zeros in its place would give other scores, silently."""
    traced = blank(folder)
    rotary: Any = traced.module.get_submodule("model.rotary_emb")
    del rotary.original_inv_freq  # by which transformers knows what to compute
    with pytest.raises(CheckpointError, match=r"has no 'model\.rotary_emb\.inv_freq'"):
        fxprune.Weights(folder).check(traced)


def test_the_system_is_told_what_is_read_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of a block but the first ones, before it is read."""
    source = fxprune.Weights(folder)
    traced = blank(folder)
    told: list[str] = []
    monkeypatch.setattr(shards, "will_read", lambda _, names: told.extend(names))
    weights = DenseWeights(traced, source)
    held, read = set(shards.names(folder / shards.WEIGHTS)), list[str]()
    for node in traced.graph_module.graph.nodes:
        names = [str(each.target) for each in tensors_read(node)]
        names = [name for name in names if name in held]
        read += names
        assert len(read) < 2 or set(names) <= {*told, *read[:1]}
        weights.bring([node])
    assert len(set(told)) == len({*read}) - 1


def test_where_a_tensor_lies_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / shards.WEIGHTS
    name = shards.names(file)[-1]
    parts: list[bytes] = []

    def advise(number: int, start: int, size: int, _: int) -> None:
        parts.append(os.pread(number, size, start))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    shards.will_read(file, [name])
    with shards.opened(file) as there:
        assert parts == [there.get_tensor(name).numpy().tobytes()]


def test_quantised_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / shards.WEIGHTS)
    name = next(n for n in tensors if n.endswith("up_proj.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / shards.WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is of F8_E4M3, which has no value without"):
        fxprune.Weights(tmp_path).check(blank(folder))
