"""Models whose order of values in a GGUF is found by comparing with the dense file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFValueType as Type

import fxprune
from fxprune.errors import ServeError
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.gguf import file, vocabulary
from fxprune.serve.gguf.file import Blank, Entry, integers
from fxprune.serve.gguf.written import halves_to_pairs, pairs_to_halves
from tests.marks import but_slow
from tests.serve import llama
from tests.serve.models import SIZES, tokenizer
from tests.serve.test_llama_cpp import IDS
from tests.zoo import disturb

Array = Any
LLAMA_CPP = engine("llama.cpp")


def shifted(name: str, values: Array) -> Array:
    """As llama.cpp's converter writes Gemma."""
    return values + 1 if name.endswith("norm.weight") else values


def paired(name: str, values: Array) -> Array:
    """As it writes Granite."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    return values if heads is None else halves_to_pairs(values, heads)


def as_it_is(name: str, values: Array) -> Array:
    return values


FLOATS = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {**ROPE, "num_experts_per_tok": 2, "num_experts": 6, "num_local_experts": 6}
COUNTED = {"expert_count": integers(6), "expert_used_count": integers(2)}
MANY = {**COUNTED, "attention.head_count_kv": integers(4)}
WIDTH = {"expert_feed_forward_length": integers(48)}
# Class, name in GGUF, what its converter does, more of its config, and the metadata of its own.
DENSE: dict[str, tuple[str, Callable[[str, Array], Array], dict[str, Any], dict[str, Entry]]] = {
    "Gemma": ("gemma", shifted, {"head_dim": 16}, {}),
    "Granite": ("granite", paired, {}, {key: Entry(1.0, Type.FLOAT32) for key in FLOATS}),
    "Mixtral": ("llama", paired, {**EXPERTS, "sliding_window": None}, COUNTED),
    "Olmoe": ("olmoe", as_it_is, {**EXPERTS, "num_key_value_heads": 4}, MANY),
    "Qwen2Moe": (
        "qwen2moe",
        as_it_is,
        {**EXPERTS, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
        {**COUNTED, **WIDTH, "expert_shared_feed_forward_length": integers(80)},
    ),
    "Qwen3Moe": (
        "qwen3moe",
        as_it_is,
        {**EXPERTS, "moe_intermediate_size": 48, "head_dim": 16, "norm_topk_prob": True},
        {**COUNTED, **WIDTH},
    ),
}


def dense(name: str, path: Path) -> fxprune.Traced:
    """A random model, traced, and a dense file of it."""
    architecture, convert, options, more = DENSE[name]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, "num_hidden_layers": 3, **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    disturb(model)
    code = next(c for c, each in gguf.MODEL_ARCH_NAMES.items() if each == architecture)
    names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    tensors = {}
    for key, values in in_file(model).items():
        stem, _, end = key.rpartition(".")
        values = convert(key, values)
        tensors[f"{names.get_name(stem)}.{end}"] = Blank(values.shape, lambda v=values: v)
    entries = {
        "block_count": integers(3), "context_length": integers(128), "vocab_size": integers(300),
        "embedding_length": integers(64), "feed_forward_length": integers(96),
        "attention.head_count": integers(4), "attention.head_count_kv": integers(2),
        "attention.key_length": integers(16), "attention.value_length": integers(16),
        "rope.dimension_count": integers(16), "rope.freq_base": Entry(1e4, Type.FLOAT32),
        "attention.layer_norm_rms_epsilon": Entry(config.rms_norm_eps, Type.FLOAT32), **more,
    }  # fmt: skip
    words = vocabulary.of(Pruned(model, config, None, tokenizer()))
    every = {f"{architecture}.{key}": entry for key, entry in entries.items()}
    made = {"general.architecture": Entry(architecture, Type.STRING), **words, **every}
    file.write(path, architecture, made, tensors, gguf.GGMLQuantizationType.F32)
    return fxprune.trace(model, kwargs={"input_ids": torch.zeros(2, 9, dtype=torch.long)})


def in_file(model: Any) -> dict[str, Array]:
    """The tensors of a model, those of experts as converters name and part them."""
    found = {}
    for key, tensor in model.named_parameters():
        values = tensor.detach().numpy()
        if key.endswith("gate_up_proj"):
            for half, part in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                found[f"{key.removesuffix('gate_up_proj')}{half}_proj.weight"] = part
        else:
            found[key if key.endswith((".weight", ".bias")) else f"{key}.weight"] = values
    return found


def check(of: fxprune.Traced, plan: Plan, folder: Path) -> file.Metadata:
    """What a plan leaves is right in llama.cpp; the metadata of its file."""
    config: Any = of.module.config
    small = fxprune.rewrite(of, plan)
    pruned = Pruned(small, config, plan, tokenizer())
    LLAMA_CPP.write(pruned, folder / "m.gguf", like=folder / "dense.gguf")
    ignored = tokenizer().eos_token_id
    assert llama.compare(small, folder / "m.gguf", IDS, count=4, ignored=ignored) < 5e-3
    return file.metadata(file.opened(folder / "m.gguf"))


def few(graph: fxprune.DependencyGraph, *kinds: str) -> Plan:
    """Groups of some kinds keep the second half of their units."""
    groups = [g for g in graph.groups if g.kind in kinds]
    return Plan.of(
        graph, {g.name: range(g.size - max(g.least, g.size // 2), g.size) for g in groups}
    )


@pytest.mark.serve
@pytest.mark.parametrize(
    "name",
    but_slow(["Mixtral", "Qwen2Moe", "Olmoe", "Qwen3Moe"], "Qwen2Moe", "Olmoe", "Qwen3Moe"),
)
def test_mixtures_of_experts(name: str, tmp_path: Path) -> None:
    """Experts, their units and whole blocks, in all layers alike, and heads where that is said."""
    of = dense(name, tmp_path / "dense.gguf")
    graph = fxprune.discover(fxprune.bypass(of, ["model.layers.1:block"]))
    heads = name in ("Mixtral", "Qwen3Moe")
    plan = few(graph, "mlp", "expert", *(("attention", "query") if heads else ()))
    assert not LLAMA_CPP.check(plan, graph)
    found, label = check(of, plan, tmp_path), DENSE[name][0]
    assert found[f"{label}.block_count"].value == 2
    assert found[f"{label}.expert_count"].value == 3
    assert found[f"{label}.attention.head_count"].value == (1 if heads else 4)
    width = found.get(f"{label}.expert_feed_forward_length", found[f"{label}.feed_forward_length"])
    assert width.value == (48 if name in ("Mixtral", "Olmoe") else 24)
    if name == "Qwen2Moe":
        assert found["qwen2moe.expert_shared_feed_forward_length"].value == 40
    else:
        uneven = Plan.of(
            graph, {next(g.name for g in graph.groups if g.kind == "expert"): range(3)}
        )
        assert "one number of expert units of 6" in LLAMA_CPP.check(uneven, graph)[0]
    if not heads:
        why = LLAMA_CPP.check(few(graph, "attention"), graph)
        assert all("takes attention groups whole" in each for each in why)
        assert why


@pytest.mark.serve
@pytest.mark.parametrize("name", but_slow(["Gemma", "Granite"], "Granite"))
def test_a_model_of_another_kind(name: str, tmp_path: Path) -> None:
    of = dense(name, tmp_path / "dense.gguf")
    graph = fxprune.discover(fxprune.bypass(of, ["model.layers.1:block"]))
    kept = {g.name: tuple(range(0, g.size, 2)) for g in graph.groups if g.kind == "mlp"}
    plan = Plan.of(graph, kept)
    assert not LLAMA_CPP.check(plan, graph)
    sizes = check(of, plan, tmp_path)
    assert sizes[f"{name.lower()}.block_count"].value == 2
    assert sizes[f"{name.lower()}.feed_forward_length"].value == 48


def test_what_is_refused(tmp_path: Path) -> None:
    of = dense("Granite", tmp_path / "dense.gguf")
    config: Any = of.module.config
    graph = fxprune.discover(of)
    plan = Plan.of(graph, {g.name: (0,) for g in graph.groups if g.kind == "attention"})
    pruned = Pruned(fxprune.rewrite(of, plan), config, plan, tokenizer())
    with pytest.raises(ServeError, match="takes attention groups whole"):
        LLAMA_CPP.write(pruned, tmp_path / "m.gguf", like=tmp_path / "dense.gguf")
    uneven = Plan.of(graph, {"model.layers.0.mlp:units": tuple(range(32))})
    assert "one number of mlp units" in LLAMA_CPP.check(uneven, graph)[0]
    whole = Plan.of(graph, {})
    small = fxprune.rewrite(of, whole)
    with pytest.raises(ServeError, match=r"--like dense\.gguf"):
        LLAMA_CPP.write(Pruned(small, config, whole, tokenizer()), tmp_path / "m.gguf")
    with torch.no_grad():
        for _, parameter in small.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter))
    pruned = Pruned(small, config, whole, tokenizer())
    with pytest.raises(ServeError, match="in any known order"):
        LLAMA_CPP.write(pruned, tmp_path / "m.gguf", like=tmp_path / "dense.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_layers_that_a_config_tells_apart_stay() -> None:
    config = transformers.Gemma2Config(**{**SIZES, "head_dim": 16})
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(config).eval()
    graph = fxprune.discover(fxprune.trace(model))
    assert LLAMA_CPP.target(graph).depth == ()


def test_pairs_and_halves() -> None:
    values = np.arange(24).reshape(12, 2)
    there = halves_to_pairs(values, 2)
    np.testing.assert_array_equal(there[:6, 0] // 2, [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(pairs_to_halves(there, 2), values)
