"""mlx-lm on the CPU computes what is left of a pruned model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    InternLM3Config,
    IQuestCoderConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

import fxprune
from fxprune.serve.engine import Pruned, engine
from tests.hf import tiny
from tests.serve import fuzz
from tests.serve.blocks import case, llama, of, widths
from tests.serve.models import WIDE

pytestmark = pytest.mark.serve
mx = pytest.importorskip("mlx.core")
mlx_lm = pytest.importorskip("mlx_lm")

LENGTH, PROMPT = 12, 7


def computed(model: Any, ids: torch.Tensor, prompt: int) -> tuple[Any, Any]:
    """Logits at once, and of a prompt and single tokens after it, with a cache."""
    every = mx.array(ids.numpy())
    cache = model.make_cache()
    steps = [every[:, :prompt], *(every[:, n : n + 1] for n in range(prompt, ids.shape[1]))]
    apart = np.concatenate([np.array(model(step, cache=cache)) for step in steps], axis=1)
    return np.array(model(every)), apart


def furthest(found: Pruned, folder: Path, name: str = "mlx") -> float:
    """Largest difference of logits to what mlx-lm computes."""
    from mlx_lm.utils import load_model

    engine(name).write(found, folder)
    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    ids = torch.randint(0, tiny.VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = found.model(ids).logits.numpy()
    return float(max(np.abs(expected - x).max() for x in computed(model, ids, PROMPT)))


@pytest.mark.parametrize(
    ("kept", "removed"),
    [
        ((256, 768, 512), ()),
        ((0, 512), ("0:attention",)),
        ((0, 512), ("1:attention", "2:attention")),
        ((0, 512), ("0:mlp",)),
        ((512,), ("1:mlp", "2:mlp")),
        ((256, 256, 256), ("0:attention", "1:mlp", "2:attention")),
        ((0, 512), ("0:block",)),
        ((512,), ("1:attention", "1:mlp")),
        ((512,), ("0:attention", "1:block")),
    ],
)
def test_blocks(kept: tuple[int, ...], removed: tuple[str, ...], tmp_path: Path) -> None:
    pruned = case(llama(), widths(*kept), [f"model.layers.{name}" for name in removed])
    assert not engine("mlx").check(pruned.plan, pruned.graph)
    assert furthest(pruned.pruned, tmp_path / "out") < 1e-3


ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: llama(tie_word_embeddings=True), id="tied"),
        pytest.param(lambda: llama(num_key_value_heads=1), id="one-kv-head"),
        pytest.param(lambda: llama(num_key_value_heads=4), id="no-groups"),
        pytest.param(lambda: llama(rope_parameters=ROPE), id="llama3-rope"),
        pytest.param(lambda: llama(attention_bias=True, mlp_bias=True), id="biases"),
        pytest.param(lambda: of((MistralConfig, MistralForCausalLM), sliding_window=None), id="m"),
        pytest.param(lambda: of((Qwen2Config, Qwen2ForCausalLM)), id="qwen2"),
        pytest.param(lambda: of((InternLM3Config, LlamaForCausalLM), head_dim=16), id="internlm3"),
        pytest.param(lambda: of((IQuestCoderConfig, LlamaForCausalLM), head_dim=16), id="iquest"),
        pytest.param(lambda: of((SeedOssConfig, SeedOssForCausalLM), head_dim=16), id="seed-oss"),
    ],
)
@pytest.mark.parametrize("name", ["mlx", "nemotron-nas"])
def test_models(model: Any, name: str, tmp_path: Path) -> None:
    removed = ["model.layers.0:attention", "model.layers.1:mlp"]
    pruned = case(model(), widths(512, 0, 256), removed)
    assert furthest(pruned.pruned, tmp_path / "out", name) < 1e-3


def test_model_of_transformers(tmp_path: Path) -> None:
    """What :func:`fxprune.shrink` gives is written as well."""
    pruned = case(llama(), widths(256, 512))
    small = fxprune.shrink(pruned.graph.traced.module, pruned.plan)
    assert furthest(Pruned(small, pruned.pruned.config), tmp_path / "out") < 1e-3


def test_it_can_fail(tmp_path: Path) -> None:
    """Other units of one MLP are far off."""
    one, other = (
        case(llama(), {"model.layers.1.mlp:units": x}) for x in (range(256), range(256, 512))
    )
    engine("mlx").write(one.pruned, tmp_path / "out")
    with torch.no_grad():
        ids = torch.arange(9)[None]
        assert (one.small(ids).logits - other.small(ids).logits).abs().max() > 0.1


def test_it_generates(tmp_path: Path) -> None:
    """The whole folder through its command line's own loader, tokenizer included."""
    pruned = case(llama(), widths(256))
    engine("mlx").write(pruned.pruned, tmp_path / "out")
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    text = mlx_lm.generate(model, tokenizer, "hello", max_tokens=4)
    ids = torch.tensor([tiny.tokenizer().encode("hello")])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, pruned.small(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text == tiny.tokenizer().decode(ids[0, 5:])


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model(tmp_path: Path) -> None:
    """The 32 tokens of transformers, where attention that is gone is one of zeros."""
    from fxprune.hf.open.models import load_model

    loaded = load_model("smollm2")
    smollm2: Any = loaded.model
    kept = {f"model.layers.{n}.mlp:units": range(256 * (3 + n % 3)) for n in range(10, 20)}
    made = case(smollm2, kept, ["model.layers.12:attention", "model.layers.22:attention"])
    engine("mlx").write(Pruned(made.small, smollm2.config, made.plan), tmp_path / "out")
    small: Any = fxprune.shrink(smollm2, replace(made.plan, removed=()))
    with torch.no_grad():
        for number in (12, 22):
            small.model.layers[number].self_attn.o_proj.weight.zero_()
        ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
        whole = small.generate(ids, max_new_tokens=32, min_new_tokens=32, do_sample=False)
        expected = small(whole).logits.log_softmax(-1)
    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.utils.load_model(tmp_path / "out")
    best = expected.topk(20).indices
    for logits in computed(model, whole, ids.shape[1]):
        found = torch.from_numpy(logits).log_softmax(-1)
        assert (found - expected).gather(-1, best).abs().max() < 0.02
        assert torch.equal(found[:, ids.shape[1] - 1 : -1].argmax(-1), whole[:, ids.shape[1] :])


def in_mlx(how: str, path: Path, small: Any, example: Any) -> None:
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    ids = example[1]["input_ids"]
    with torch.no_grad():
        expected = small(ids).logits.numpy()
    for found in computed(load_model(path)[0], ids, ids.shape[1] // 2):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mlx", "nemotron-nas"])
@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_random_plans(name: str, count: int) -> None:
    draw = random.Random(1)
    models = ["wide-tied"] if count == 5 else [*WIDE, "qwen3", "mixtral"]
    found = [fuzz.tried(engine(name), draw.choice(models), seed, in_mlx) for seed in range(count)]
    taken = sum(not each for each in found)
    print(name, count, "taken", taken)
    assert count * 0.2 < taken < count
