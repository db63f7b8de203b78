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


# Class, what its converter does, and the metadata of its own.
DENSE: dict[str, tuple[Callable[[str, Array], Array], dict[str, Entry]]] = {
    "Gemma": (shifted, {}),
    "Granite": (
        paired,
        {
            key: Entry(1.0, Type.FLOAT32)
            for key in ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
        },
    ),
}


def dense(name: str, path: Path) -> fxprune.Traced:
    """A random model, traced, and a dense file of it."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, "head_dim": 16})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    disturb(model)
    convert, more = DENSE[name]
    architecture = name.lower()
    code = next(c for c, each in gguf.MODEL_ARCH_NAMES.items() if each == architecture)
    names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    tensors = {}
    for key, tensor in model.named_parameters():
        stem, _, end = key.rpartition(".")
        values = convert(key, tensor.detach().numpy())
        tensors[f"{names.get_name(stem)}.{end}"] = Blank(values.shape, lambda v=values: v)
    entries = {
        "block_count": integers(4), "context_length": integers(128), "vocab_size": integers(300),
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


@pytest.mark.serve
@pytest.mark.parametrize("name", DENSE)
def test_a_model_of_another_kind(name: str, tmp_path: Path) -> None:
    of = dense(name, tmp_path / "dense.gguf")
    config: Any = of.module.config
    graph = fxprune.discover(fxprune.bypass(of, ["model.layers.1:block"]))
    kept = {g.name: tuple(range(0, g.size, 2)) for g in graph.groups if g.kind == "mlp"}
    plan = Plan.of(graph, kept)
    assert not LLAMA_CPP.check(plan, graph)
    small = fxprune.rewrite(of, plan)
    pruned = Pruned(small, config, plan, tokenizer())
    LLAMA_CPP.write(pruned, tmp_path / "m.gguf", like=tmp_path / "dense.gguf")
    ignored = tokenizer().eos_token_id
    assert llama.compare(small, tmp_path / "m.gguf", IDS, ignored=ignored) < 5e-3
    sizes = file.metadata(file.opened(tmp_path / "m.gguf"))
    assert sizes[f"{name.lower()}.block_count"].value == 3
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
