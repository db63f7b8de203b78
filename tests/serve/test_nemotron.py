"""The folder of Nemotron-NAS: what stands in it, and what cannot."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, GenerationConfig

import fxprune
from fxprune.errors import CheckpointError, ServeError
from fxprune.hf.folder.folders import taken
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.nemotron import ffn_mult
from tests.hf import tiny
from tests.serve.blocks import Case, case, llama, widths

REMOVED = ("model.layers.0:attention", "model.layers.1:mlp", "model.layers.2:block")


@pytest.fixture(scope="module")
def uneven() -> Case:
    """Four layers, of which three are left: without attention, without MLP, and whole."""
    kept = widths(512) | {"model.layers.3.mlp:units": range(256)}
    return case(llama(num_hidden_layers=4), kept, REMOVED)


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_config(uneven: Case, tmp_path: Path) -> None:
    how = engine("mlx").write(uneven.pruned, tmp_path / "out")
    assert how == f"mlx_lm.generate --model {tmp_path / 'out'} --prompt TEXT"
    found = config(tmp_path / "out")
    assert found["model_type"] == "nemotron-nas"
    assert found["architectures"] == ["DeciLMForCausalLM"]
    assert (found["num_hidden_layers"], found["intermediate_size"]) == (3, 512)
    assert (found["hidden_size"], found["num_attention_heads"], found["head_dim"]) == (64, 4, 16)
    assert found["rope_theta"] == 10_000.0
    assert "rope_scaling" not in found
    attention = {"no_op": False, "replace_with_linear": False, "n_heads_in_group": 2}
    no_attention = {"no_op": True, "replace_with_linear": False, "n_heads_in_group": None}
    assert found["block_configs"] == [
        {
            "attention": no_attention,
            "ffn": {"no_op": False, "replace_with_linear": False, "ffn_mult": 12.0},
        },
        {
            "attention": attention,
            "ffn": {"no_op": True, "replace_with_linear": False, "ffn_mult": None},
        },
        {
            "attention": attention,
            "ffn": {"no_op": False, "replace_with_linear": False, "ffn_mult": 6.0},
        },
    ]


def test_tensors(uneven: Case, tmp_path: Path) -> None:
    engine("mlx").write(uneven.pruned, tmp_path / "out")
    there = load_file(tmp_path / "out/model.safetensors")
    own = uneven.small.state_dict()
    new = {"model.layers.3.": "model.layers.2."}
    expected = {
        name.replace(old, now): tensor
        for name, tensor in own.items()
        for old, now in new.items()
        if "rotary" not in name
    }
    assert there.keys() == expected.keys()
    assert all(torch.equal(there[name], tensor) for name, tensor in expected.items())
    assert "model.layers.0.input_layernorm.weight" not in there
    assert "model.layers.1.post_attention_layernorm.weight" not in there


def test_what_else_is_in_the_folder(uneven: Case, tmp_path: Path) -> None:
    engine("nemotron-nas").write(uneven.pruned, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "configuration_fxprune.py", "fxprune.json", "generation_config.json",
        "model.safetensors", "plan.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    engine("mlx").write(uneven.pruned, tmp_path / "mlx")
    assert not (tmp_path / "mlx/configuration_fxprune.py").exists()
    assert "auto_map" not in config(tmp_path / "mlx")


def test_generation_config_of_a_model(tmp_path: Path) -> None:
    model: Any = llama()
    model.generation_config = GenerationConfig(eos_token_id=[3, 7], do_sample=True, temperature=0.5)
    engine("mlx").write(Pruned(model, model.config), tmp_path / "out")
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.temperature) == ([3, 7], 0.5)


def test_config_class(uneven: Case, tmp_path: Path) -> None:
    """It gives attributes, is written as JSON again, and goes to other processes."""
    engine("vllm").write(uneven.pruned, tmp_path / "out")
    found = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    first, second, third = found.block_configs
    assert [b.attention.no_op for b in found.block_configs] == [False] * 3
    assert (second.ffn.no_op, third.ffn.intermediate_size) == (True, 256)
    assert not hasattr(first.ffn, "ffn_mult")
    assert found.rope_parameters == {"rope_theta": 10_000.0, "rope_type": "default"}
    assert json.loads(found.to_json_string())["block_configs"] == list(found.block_configs)
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found.block_configs))):
        blocks = getattr(again, "block_configs", again)
        assert blocks[0].attention.n_heads_in_group == 4
    found.save_pretrained(tmp_path / "again")
    assert config(tmp_path / "again")["block_configs"] == config(tmp_path / "out")["block_configs"]


def test_scaled_rotary_embedding(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 5000.0,
    }  # fmt: skip
    small = case(llama(rope_parameters=rope), widths(256))
    engine("mlx").write(small.pruned, tmp_path / "out")
    found = config(tmp_path / "out")
    assert found["rope_theta"] == rope.pop("rope_theta")
    assert found["rope_scaling"] == rope


@given(st.integers(1, 400), st.integers(1, 40_000))
def test_widths_are_exact(multiples: int, hidden: int) -> None:
    """What mlx-lm, vLLM, SGLang and TensorRT-LLM compute."""
    width = 256 * multiples
    factor = round(float(json.dumps(ffn_mult(width, hidden))), 6)
    assert 256 * math.ceil(int(2 * factor * hidden / 3) / 256) == width


def test_layer_without_attention_in_front(uneven: Case, tmp_path: Path) -> None:
    how = engine("nemotron-nas").write(uneven.pruned, tmp_path / "out")
    assert "the first layer has attention of zeros" in how
    assert not config(tmp_path / "out")["block_configs"][0]["attention"]["no_op"]
    there = load_file(tmp_path / "out/model.safetensors")
    shapes = {n: tuple(there[f"model.layers.0.self_attn.{n}_proj.weight"].shape) for n in "qkvo"}
    assert shapes == {"q": (64, 64), "k": (16, 64), "v": (16, 64), "o": (64, 64)}
    assert not there["model.layers.0.self_attn.o_proj.weight"].any()


def test_biases_that_some_linears_have(tmp_path: Path) -> None:
    """A bias that compensates what went is a bias of one Linear; the form has all or none."""
    model = llama()
    graph = fxprune.discover(fxprune.trace(model))
    bias = "model.layers.1.mlp.down_proj.bias"
    plan = fxprune.Plan.of(graph, widths(0, 256), biases=(bias,))
    assert not engine("mlx").check(plan, graph)
    small = fxprune.rewrite(graph.traced, plan)
    with torch.no_grad():
        small.get_parameter(bias).normal_()
    engine("mlx").write(Pruned(small, graph.traced.module.config, plan), tmp_path / "out")
    found, there = config(tmp_path / "out"), load_file(tmp_path / "out/model.safetensors")
    assert (found["attention_bias"], found["mlp_bias"]) == (False, True)
    assert torch.equal(there[bias], small.get_parameter(bias))
    assert there.keys() >= {f"model.layers.0.mlp.{n}_proj.bias" for n in ("gate", "up", "down")}
    assert there["model.layers.1.mlp.up_proj.bias"].shape == (256,)
    assert not there["model.layers.1.mlp.up_proj.bias"].any()


def test_target(uneven: Case) -> None:
    target = engine("mlx").target(uneven.graph)
    assert (target.name, target.kinds) == ("mlx", ("mlp",))
    assert target.multiple_of == {"mlp": 256}
    assert target.depth == ("block", "attention", "mlp")
    assert engine("vllm").target(uneven.graph).multiple_of == {"mlp": 1}


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({"model.layers.0.mlp:units": range(300)}, "mlx takes multiples of 256"),
        ({"model.layers.1.self_attn:heads": [0]}, "mlx takes attention groups whole"),
        ({"model.layers.1.self_attn:queries": [1]}, "mlx takes query groups whole"),
        ({"residual:channels": range(60)}, "mlx takes channel groups whole"),
    ],
)
def test_plans_that_it_cannot_say(kept: dict[str, Any], reason: str, tmp_path: Path) -> None:
    pruned = case(llama(), kept)
    (found,) = engine("mlx").check(pruned.plan, pruned.graph)
    assert reason in found
    with pytest.raises(ServeError, match="mlx cannot run this llama"):
        engine("mlx").write(pruned.pruned, tmp_path / "out")
    assert not taken(tmp_path / "out")


def test_attention_must_stay_somewhere(tmp_path: Path) -> None:
    pruned = case(llama(), {}, [f"model.layers.{n}:attention" for n in range(3)])
    (reason,) = engine("mlx").check(pruned.plan, pruned.graph)
    assert reason == "mlx cannot run this llama: no layer has attention left, and one must have"
    with pytest.raises(ServeError, match="no layer has attention left"):
        engine("vllm").write(pruned.pruned, tmp_path / "out")


def test_sizes_of_the_model(tmp_path: Path) -> None:
    """Some are no multiple to begin with, and heads may have a size of their own."""
    odd = fxprune.discover(fxprune.trace(llama(intermediate_size=300)))
    with pytest.raises(
        ServeError, match=r"model.layers.0 has 300 units, no multiple of 256; vllm takes"
    ):
        engine("nemotron-nas").target(odd)
    assert engine("vllm").target(odd).name == "vllm"
    small_heads = fxprune.discover(fxprune.trace(llama(head_dim=8)))
    with pytest.raises(ServeError, match="4 heads have 8 channels each, and engines take 64 / 4"):
        engine("mlx").target(small_heads)
    assert engine("vllm").target(small_heads).name == "vllm"


def test_other_models_are_refused(tmp_path: Path) -> None:
    graph = fxprune.discover(fxprune.trace(nn.Linear(4, 4), torch.rand(2, 4)))
    with pytest.raises(ServeError, match="mlx cannot run this Linear: not a transformers model"):
        engine("mlx").target(graph)


def test_without_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        model: Any = llama()
    with pytest.raises(ServeError, match="on meta"):
        engine("mlx").write(Pruned(model, model.config), tmp_path / "out")


def test_options(uneven: Case, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="mlx has no option 'dtype'"):
        engine("mlx").write(uneven.pruned, tmp_path / "out", dtype="f16")


def test_a_folder_is_replaced_and_not_loaded(uneven: Case, tmp_path: Path) -> None:
    for name in ("nemotron-nas", "mlx"):
        engine(name).write(uneven.pruned, tmp_path / "out")
    assert not (tmp_path / "out/configuration_fxprune.py").exists()
    with pytest.raises(CheckpointError, match="written for the engine mlx"):
        fxprune.load(tmp_path / "out")
    tiny.folder(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was not written by fxprune"):
        engine("mlx").write(uneven.pruned, tmp_path / "other")
