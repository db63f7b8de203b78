"""GGUF files, read back and run in llama.cpp itself."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import fxprune
from fxprune.errors import PlanError, ServeError
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.gguf import architectures, file
from fxprune.serve.gguf.dense import cut
from tests.marks import but_slow
from tests.serve import llama
from tests.serve.models import KINDS, tokenizer, traced

IDS = [5, 17, 99, 23, 200, 7, 8, 1, 44]
LLAMA_CPP = engine("llama.cpp")
DEPTH = {
    "attention": ["model.layers.0:attention", "model.layers.2:attention"],
    "mlp": ["model.layers.0:mlp", "model.layers.3:mlp"],
    "block": ["model.layers.1:block"],
    "both": ["model.layers.0:attention", "model.layers.0:mlp"],
}


def random_plan(of: fxprune.Traced, seed: int, removed: list[str] | None = None) -> Plan:
    """A plan that takes units of some kinds, of each group another number."""
    draw = random.Random(seed)
    shorter = fxprune.bypass(of, removed) if removed else of
    graph = fxprune.discover(shorter)
    kinds = draw.choice((("mlp",), ("mlp", "attention"), ("attention", "query"), ("channel",)))
    kept = {}
    for group in graph.groups:
        if group.kind in kinds and group.size > 1 and draw.random() < 0.8:
            stay = draw.randint(1, group.size - 1)
            kept[group.name] = tuple(sorted(draw.sample(range(group.size), stay)))
    return Plan.of(graph, kept)


def write(of: fxprune.Traced, plan: Plan, path: Path, **options: Any) -> Any:
    """The smaller graph, written to a file."""
    small = fxprune.rewrite(of, plan)
    module: Any = of.module
    LLAMA_CPP.write(Pruned(small, module.config, plan, tokenizer()), path, **options)
    return small


def check(of: fxprune.Traced, plan: Plan, path: Path) -> None:
    small = write(of, plan, path)
    assert llama.compare(small, path, IDS, ignored=tokenizer().eos_token_id) < 5e-3


@pytest.mark.serve
@pytest.mark.parametrize("kind", but_slow(KINDS, "mistral", "linear-rope", "qwen2"))
def test_own_sizes_in_each_layer(kind: str, tmp_path: Path) -> None:
    of = traced(kind)
    plan = random_plan(of, 3)
    if kind == "qwen3":
        with pytest.raises(ServeError, match="layers of one size"):
            write(of, plan, tmp_path / "m.gguf")
        assert not list(tmp_path.iterdir())
        return
    check(of, plan, tmp_path / "m.gguf")
    sizes = file.metadata(file.opened(tmp_path / "m.gguf"))
    name = "openelm" if kind == "qwen3-tied" else "deci"
    assert len(set(sizes[f"{name}.feed_forward_length"].value)) > 1


@pytest.mark.serve
@pytest.mark.parametrize("kind", KINDS)
def test_one_size_stays_in_the_architecture_of_the_model(kind: str, tmp_path: Path) -> None:
    of = traced(kind)
    graph = fxprune.discover(of)
    scores = fxprune.estimate(of.module, graph, fxprune.Random())
    kinds = ("mlp",) if kind == "qwen2" else ("mlp", "attention")
    plan = fxprune.select(graph, scores, kinds=kinds, budget=fxprune.Budget(units=0.5))
    check(of, plan, tmp_path / "m.gguf")
    found = file.metadata(file.opened(tmp_path / "m.gguf"))["general.architecture"].value
    assert found == (kind[:5] if kind.startswith("qwen") else "llama")


@pytest.mark.serve
@pytest.mark.parametrize("what", DEPTH)
@pytest.mark.parametrize("kind", ["llama-biases", "qwen2", "qwen3-tied"])
def test_branches_and_blocks_left_out(kind: str, what: str, tmp_path: Path) -> None:
    of = traced(kind)
    plan = Plan.of(fxprune.discover(fxprune.bypass(of, DEPTH[what])), {})
    if kind == "qwen3-tied" and what in ("attention", "mlp"):
        with pytest.raises(ServeError, match=f"layer 0 has no {what}"):
            write(of, plan, tmp_path / "m.gguf")
    else:
        check(of, plan, tmp_path / "m.gguf")


@pytest.mark.serve
def test_branches_and_own_sizes_at_once(tmp_path: Path) -> None:
    of = traced("llama")
    check(of, random_plan(of, 1, DEPTH["attention"]), tmp_path / "m.gguf")


@pytest.mark.serve
def test_biases_that_compensation_adds(tmp_path: Path) -> None:
    of = traced("llama")
    graph = fxprune.discover(of)
    scores = fxprune.estimate(of.module, graph, fxprune.Magnitude())
    plan = fxprune.select(graph, scores, 0.2, gain_bias=True)
    assert plan.biases
    small = fxprune.rewrite(of, plan)
    data = torch.randint(0, 290, (8, 12))
    fxprune.compensate(of, small, plan, data, method="bias")
    pruned = Pruned(small, of.module.config, plan, tokenizer())  # type: ignore[arg-type]
    LLAMA_CPP.write(pruned, tmp_path / "m.gguf")
    assert llama.compare(small, tmp_path / "m.gguf", IDS) < 5e-3


@pytest.mark.serve
def test_quantised(tmp_path: Path) -> None:
    of = traced("llama", intermediate_size=128)
    names = ["model.layers.1:mlp", "model.layers.0:attention"]
    plan = Plan.of(fxprune.discover(fxprune.bypass(of, names)), {})
    small = write(of, plan, tmp_path / "m.gguf", dtype="q8_0")
    assert llama.compare(small, tmp_path / "m.gguf", IDS, within=0.5) < 0.2
    kinds = {t.name: t.tensor_type for t in file.opened(tmp_path / "m.gguf").tensors}
    assert (
        kinds["blk.0.ffn_down.weight"]
        == kinds["token_embd.weight"]
        == gguf.GGMLQuantizationType.Q8_0
    )
    assert kinds["blk.0.ffn_norm.weight"] == gguf.GGMLQuantizationType.F32


@pytest.mark.serve
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 200))]
)
def test_any_plan_is_right_or_refused(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    of = traced(draw.choice([*KINDS]))
    removed = DEPTH[draw.choice([*DEPTH])] if draw.random() < 0.5 else None
    plan = random_plan(of, seed, removed)
    shorter = fxprune.discover(fxprune.bypass(of, plan.removed)) if plan.removed else None
    reasons = LLAMA_CPP.check(plan, shorter or fxprune.discover(of))
    if reasons:
        with pytest.raises(ServeError):
            check(of, plan, tmp_path / "m.gguf")
    else:
        check(of, plan, tmp_path / "m.gguf")


def test_everything_but_sizes_comes_from_the_dense_file(tmp_path: Path) -> None:
    of = traced("llama")
    write(of, Plan.of(fxprune.discover(of), {}), tmp_path / "dense.gguf", dtype="f16")
    plan = random_plan(of, 3)
    small = write(of, plan, tmp_path / "m.gguf", like=tmp_path / "dense.gguf")
    before, after = (
        file.metadata(file.opened(tmp_path / f"{name}.gguf")) for name in ("dense", "m")
    )
    assert after["general.architecture"].value == "deci"
    assert after["tokenizer.ggml.tokens"] == before["tokenizer.ggml.tokens"]
    assert not [key for key in after if key.startswith("llama.")]
    assert after["deci.context_length"] == before["llama.context_length"]
    found = {t.name: t for t in file.opened(tmp_path / "m.gguf").tensors}
    down = small.get_parameter("model.layers.0.mlp.down_proj.weight")
    np.testing.assert_array_equal(found["blk.0.ffn_down.weight"].data, down.detach().numpy())


def test_a_dense_file_of_another_model(tmp_path: Path) -> None:
    of, other = traced("llama"), traced("qwen2")
    write(other, Plan.of(fxprune.discover(other), {}), tmp_path / "other.gguf")
    with pytest.raises(ServeError, match=r"architecture qwen2, and the model is llama"):
        write(of, random_plan(of, 3), tmp_path / "m.gguf", like=tmp_path / "other.gguf")
    wider = traced("llama", intermediate_size=128)
    write(wider, Plan.of(fxprune.discover(wider), {}), tmp_path / "wider.gguf")
    with pytest.raises(ServeError, match=r"feed_forward_length is 128, here 96"):
        write(of, random_plan(of, 3), tmp_path / "m.gguf", like=tmp_path / "wider.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 8}, "sliding window of 8"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary embedding is yarn"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "a part of each head"),
    ],
)
def test_what_llama_cpp_does_not_compute(change: dict[str, Any], words: str) -> None:
    config: Any = traced("llama").module.config
    given = {**config.to_dict(), "model_type": "llama"}
    assert architectures.own(SimpleNamespace(**given)) is architectures.LLAMA
    with pytest.raises(ServeError, match=words):
        architectures.own(SimpleNamespace(**{**given, **change}))


def test_options_and_types_that_there_are_not(tmp_path: Path) -> None:
    of = traced("llama")
    plan = random_plan(of, 3)
    with pytest.raises(ServeError, match="dtype 'q9': choose from auto, f32"):
        write(of, plan, tmp_path / "m.gguf", dtype="q9")
    with pytest.raises(ServeError, match="no option 'widths'"):
        write(of, plan, tmp_path / "m.gguf", widths="any")
    with pytest.raises(ServeError, match="cannot be read as GGUF"):
        write(of, plan, tmp_path / "m.gguf", like=Path(__file__))


@pytest.mark.serve
@pytest.mark.parametrize(
    "kind", but_slow(["llama", "llama-biases", "qwen2", "qwen3-tied"], "qwen2", "llama")
)
def test_a_dense_file_is_cut(kind: str, tmp_path: Path) -> None:
    of = traced(kind)
    write(of, Plan.of(fxprune.discover(of), {}), tmp_path / "dense.gguf", dtype="f32")
    plan = random_plan(of, 2, None if kind == "qwen3-tied" else DEPTH["attention"])
    cut(plan, tmp_path / "dense.gguf", tmp_path / "m.gguf")
    small = write(of, plan, tmp_path / "direct.gguf", like=tmp_path / "dense.gguf")
    one, other = (file.opened(tmp_path / f"{name}.gguf") for name in ("m", "direct"))
    assert file.metadata(one) == file.metadata(other)
    assert [t.name for t in one.tensors] == [t.name for t in other.tensors]
    for each, same in zip(one.tensors, other.tensors, strict=True):
        np.testing.assert_array_equal(each.data, same.data, err_msg=each.name)
    assert llama.compare(small, tmp_path / "m.gguf", IDS, ignored=tokenizer().eos_token_id) < 5e-3


@pytest.mark.serve
def test_a_head_that_was_trained_apart_is_written(tmp_path: Path) -> None:
    of = traced("llama-biases")
    plan = Plan.of(fxprune.discover(of), {})
    small = fxprune.rewrite(of, plan)
    apart = torch.nn.Parameter(small.get_parameter("model.embed_tokens.weight").detach().flip(0))
    small.get_submodule("lm_head").weight = apart
    module: Any = of.module
    LLAMA_CPP.write(Pruned(small, module.config, plan, tokenizer()), tmp_path / "m.gguf")
    assert "output.weight" in {t.name for t in file.opened(tmp_path / "m.gguf").tensors}
    assert llama.compare(small, tmp_path / "m.gguf", IDS, ignored=tokenizer().eos_token_id) < 5e-3


def test_files_that_are_not_cut(tmp_path: Path) -> None:
    of = traced("llama", intermediate_size=128)
    graph = fxprune.discover(of)
    write(of, Plan.of(graph, {}), tmp_path / "q.gguf", dtype="q8_0")
    with pytest.raises(ServeError, match=r"blk\.0\.ffn_up\.weight is quantised \(Q8_0\)"):
        cut(random_plan(of, 2), tmp_path / "q.gguf", tmp_path / "m.gguf")
    write(of, Plan.of(graph, {}), tmp_path / "h.gguf", dtype="f16")
    halves = next(g for g in graph.groups if g.kind == "head_dim")
    plan = Plan.of(graph, {halves.name: tuple(range(halves.size // 2))})
    with pytest.raises(ServeError, match=r"takes head_dim groups whole"):
        cut(plan, tmp_path / "h.gguf", tmp_path / "m.gguf")
    with pytest.raises(PlanError):
        cut(random_plan(traced("llama"), 2), tmp_path / "h.gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.serve
def test_the_real_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fxprune.hf.open import smollm2

    model = AutoModelForCausalLM.from_pretrained(smollm2.folder())
    words = AutoTokenizer.from_pretrained(smollm2.folder())
    of = fxprune.trace(model)
    graph = fxprune.discover(of)
    scores = fxprune.estimate(model, graph, fxprune.Magnitude())
    heads = {"model.layers.[1-5].self_attn:heads": 0.34}
    plan = fxprune.select(graph, scores, 0.1, multiple_of={"mlp": 32}, overrides=heads)
    small = fxprune.rewrite(of, plan)
    pruned = Pruned(small, model.config, plan, words)
    LLAMA_CPP.write(pruned, tmp_path / "m.gguf", like=smollm2.fetch(), dtype="f32")
    sizes = file.metadata(file.opened(tmp_path / "m.gguf"))
    assert len(set(sizes["deci.feed_forward_length"].value)) > 3
    assert len(set(sizes["deci.attention.head_count_kv"].value)) > 1
    ids = words("The capital of France is Paris, and the capital of Italy is").input_ids
    assert llama.compare(small, tmp_path / "m.gguf", ids, count=32) < 0.02
