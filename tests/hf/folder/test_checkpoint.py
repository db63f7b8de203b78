"""Pruned graphs on disk: bit-equal when they come back, and no damage goes unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CheckpointError
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.tensors import tensors_of
from tests.hf import tiny
from tests.marks import but_slow
from tests.models import Perceptron, ResidualConvNet

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def _prune(model: nn.Module, args: tuple[Any, ...] = (), **kwargs: Any) -> fxprune.PruneResult:
    return fxprune.prune(
        model,
        args,
        kwargs,
        pruning_ratio=0.2,
        criterion=fxprune.Magnitude(),
        kinds=("mlp", "attention", "channel"),
    )


def _save(path: Path, result: fxprune.PruneResult, **options: Any) -> Path:
    return checkpoint.save(
        result.graph_module, path, plan=result.plan, traced=result.traced, **options
    )


@pytest.fixture(scope="module")
def result() -> fxprune.PruneResult:
    return _prune(tiny.llama(), input_ids=IDS)


@pytest.fixture(scope="module")
def saved(result: fxprune.PruneResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("c") / "m", result, tokenizer=tiny.tokenizer())


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_comes_back_bit_equal(result: fxprune.PruneResult, saved: Path) -> None:
    again = checkpoint.load(saved)
    for ids in (IDS, IDS[:1, :5], IDS.repeat(3, 4)):
        expected = result.graph_module(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, expected)
    assert not again.training


def test_comes_back_trainable_and_tied(saved: Path) -> None:
    again = checkpoint.load(saved)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    again(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_folder_holds_no_pickle_and_tied_tensors_once(
    result: fxprune.PruneResult, saved: Path
) -> None:
    from safetensors import safe_open

    names = {p.name for p in saved.iterdir()}
    assert {"fxprune.json", "plan.json", "config.json", "model.safetensors"} <= names
    assert "tokenizer.json" in names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja"}
    with safe_open(saved / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    aliases = json.loads((saved / "fxprune.json").read_text())["aliases"]
    assert stored | set(aliases) == set(tensors_of(result.graph_module))
    assert not stored & set(aliases)
    assert aliases


def test_values_trained_after_pruning_are_kept(tmp_path: Path) -> None:
    result = _prune(tiny.llama(), input_ids=IDS)
    with torch.no_grad():
        for parameter in result.graph_module.parameters():
            parameter.add_(0.01)
    expected = result.graph_module(input_ids=IDS).logits
    assert torch.equal(
        checkpoint.load(_save(tmp_path / "m", result))(input_ids=IDS).logits, expected
    )


def test_survives_consumed_weights(tmp_path: Path) -> None:
    model = tiny.llama()
    result = fxprune.prune(
        model,
        kwargs={"input_ids": IDS},
        pruning_ratio=0.2,
        criterion=fxprune.Magnitude(),
        consume=True,
    )
    expected = result.graph_module(input_ids=IDS).logits
    assert torch.equal(
        checkpoint.load(_save(tmp_path / "m", result))(input_ids=IDS).logits, expected
    )


@pytest.mark.parametrize("dtype", but_slow([torch.bfloat16, torch.float64], torch.float64))
def test_dtype_that_the_config_does_not_know(tmp_path: Path, dtype: torch.dtype) -> None:
    result = _prune(tiny.llama().to(dtype), input_ids=IDS)
    expected = result.graph_module(input_ids=IDS).logits
    again = checkpoint.load(_save(tmp_path / "m", result))
    assert again.model.embed_tokens.weight.dtype == dtype
    assert torch.equal(again(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("attention", but_slow(["eager", "sdpa"], "eager"))
def test_attention_is_remembered(tmp_path: Path, attention: str) -> None:
    model = tiny.llama()
    model.set_attn_implementation(attention)
    result = _prune(model, input_ids=IDS)
    again = checkpoint.load(_save(tmp_path / "m", result))
    names = {str(n.target) for n in again.graph.nodes}
    assert any("scaled_dot_product" in name for name in names) == (attention == "sdpa")
    assert torch.equal(again(input_ids=IDS).logits, result.graph_module(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("make", "shape", "meta"),
    [
        (Perceptron, (5, 20), True),
        (Perceptron, (5, 20), False),
        (ResidualConvNet, (5, 3, 16, 16), True),
        pytest.param(ResidualConvNet, (5, 3, 16, 16), False, marks=pytest.mark.slow),
    ],
)
def test_plain_modules_need_the_original(
    make: type[nn.Module], shape: tuple[int, ...], meta: bool, tmp_path: Path
) -> None:
    example = torch.randn(shape)
    result = _prune(make().eval(), (example,))
    folder = _save(tmp_path / "m", result)
    with pytest.raises(CheckpointError, match=f"pruned {make.__name__}.*model="):
        checkpoint.load(folder)
    with torch.device("meta" if meta else "cpu"):
        original = make()  # in training mode, as it is when it is new
    before = {name: t.clone() for name, t in original.state_dict().items()}
    again = checkpoint.load(folder, model=original)
    assert torch.equal(again(example), result.graph_module(example))
    assert original.training
    for name, tensor in original.state_dict().items():
        assert meta or torch.equal(tensor, before[name])


def test_replaces_its_own_folder_only(result: fxprune.PruneResult, tmp_path: Path) -> None:
    folder = _save(tmp_path / "m", result)
    assert _save(folder, result) == folder
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    for place in ("other", "file"):
        with pytest.raises(CheckpointError, match="not written by fxprune: it is left alone"):
            _save(tmp_path / place, result)
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_graph_without_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = tiny.llama()
    traced = fxprune.trace(model, kwargs={"input_ids": IDS.to("meta")})
    plan = fxprune.Plan.of(fxprune.discover(traced), {})
    with pytest.raises(CheckpointError, match="without weights cannot be saved"):
        checkpoint.save(fxprune.rewrite(traced, plan), tmp_path / "m", plan=plan, traced=traced)
    assert not (tmp_path / "m").exists()


def test_input_that_json_cannot_hold(result: fxprune.PruneResult, tmp_path: Path) -> None:
    odd = fxprune.trace(tiny.llama(), kwargs={"input_ids": IDS})
    odd.kwargs["extra"] = {"x": [object()]}
    with pytest.raises(CheckpointError, match=r"example input extra\['x'\]\[0\] is a object"):
        checkpoint.save(result.graph_module, tmp_path / "m", plan=result.plan, traced=odd)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        checkpoint.load(tmp_path / "m")


def test_folder_of_something_else(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"fxprune\.json is missing.*not a folder written"):
        checkpoint.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "config.json"])
class TestDamage:
    def test_missing(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            checkpoint.load(copy)

    def test_truncated(self, copy: Path, name: str) -> None:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            checkpoint.load(copy)

    def test_one_bit(self, copy: Path, name: str) -> None:
        content = bytearray((copy / name).read_bytes())
        content[-7] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            checkpoint.load(copy)

    def test_of_another_model(self, copy: Path, name: str, tmp_path: Path) -> None:
        """Even where the sums were made to match."""
        other = _save(tmp_path / "other", _prune(tiny.llama(intermediate_size=60), input_ids=IDS))
        shutil.copy(other / name, copy / name)
        facts = json.loads((copy / "fxprune.json").read_text())
        facts["sha256"][name] = checkpoint._sha256(copy / name)
        (copy / "fxprune.json").write_text(json.dumps(facts))
        with pytest.raises(CheckpointError, match="another model"):
            checkpoint.load(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not of fxprune"),
        ('{"format": "other"}', "is not of fxprune"),
        ('{"format": "fxprune", "version": 1}', r"is damaged \(no model\)"),
    ],
)
def test_damaged_facts(copy: Path, content: str, message: str) -> None:
    (copy / "fxprune.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(copy)


def _edit(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / "fxprune.json").read_text())
    (folder / "fxprune.json").write_text(json.dumps({**facts, **changes}))


def test_newer_version(copy: Path) -> None:
    _edit(copy, version=99)
    with pytest.raises(CheckpointError, match="version 99: a newer fxprune"):
        checkpoint.load(copy)


def test_damaged_inputs(copy: Path) -> None:
    _edit(copy, inputs={"args": [{}], "kwargs": {}})
    with pytest.raises(CheckpointError, match=r"example inputs .* are damaged"):
        checkpoint.load(copy)


def test_unknown_class(copy: Path) -> None:
    _edit(copy, model={"library": "transformers", "class": "NoSuchModel"})
    with pytest.raises(CheckpointError, match="no model class 'NoSuchModel'"):
        checkpoint.load(copy)


def test_wrong_original(tmp_path: Path) -> None:
    folder = _save(tmp_path / "m", _prune(Perceptron().eval(), (torch.randn(5, 20),)))
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        checkpoint.load(folder, model=nn.Linear(20, 3))


def test_other_dtype_of_a_given_original(tmp_path: Path) -> None:
    folder = _save(tmp_path / "m", _prune(Perceptron().eval(), (torch.randn(5, 20),)))
    with pytest.raises(CheckpointError, match=r"x is torch\.float32 and the model torch\.float16"):
        checkpoint.load(folder, model=Perceptron().half())


# Pruned, trained, pruned again


def test_pruned_again_comes_back_into_the_class(tmp_path: Path) -> None:
    images = (torch.randn(2, 3, 16, 16),)
    one = _prune(ResidualConvNet().eval(), images)
    two = _prune(one.graph_module, images)
    with torch.no_grad():
        for parameter in two.graph_module.parameters():
            parameter.mul_(1.01)
    path = _save(tmp_path / "m", two)
    with torch.device("meta"):
        original = ResidualConvNet()
    again = checkpoint.load(path, original)
    assert torch.equal(again(*images), two.graph_module(*images))
    plan = fxprune.Plan.load(path / "plan.json")
    plan.check_model(original)
    assert plan.parameters_after == sum(p.numel() for p in again.parameters())
    with pytest.raises(CheckpointError, match="the model that was pruned first, not a graph"):
        checkpoint.load(path, one.graph_module)
    # And once more, from the folder.
    three = _prune(again, images)
    last = checkpoint.load(_save(tmp_path / "n", three), original)
    assert torch.equal(last(*images), three.graph_module(*images))


def test_pruned_again_a_graph_of_transformers_needs_no_class(
    result: fxprune.PruneResult, tmp_path: Path
) -> None:
    two = _prune(result.graph_module, input_ids=IDS)
    path = _save(tmp_path / "m", two)
    again = checkpoint.load(path)
    assert torch.equal(again(input_ids=IDS).logits, two.graph_module(input_ids=IDS).logits)
    fxprune.Plan.load(path / "plan.json").check_model(tiny.llama())


def test_pruned_again_and_then_grown_is_not_written(
    result: fxprune.PruneResult, tmp_path: Path
) -> None:
    two = _prune(result.graph_module, input_ids=IDS)
    two.graph_module.model.norm.register_buffer("more", torch.ones(3))
    with pytest.raises(CheckpointError, match=r"model.norm.more has shape \(3,\) in this graph"):
        _save(tmp_path / "m", two)
    assert not (tmp_path / "m").exists()
