"""A sample of the classes, quick ones, through every stage; and the rule that makes them small."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.classes import results, table
from tests.classes.attempt import Mismatch, NothingThere, Stage, attempt
from tests.classes.build import types
from tests.classes.config import EXPERTS, HEADS, HIDDEN, KV_HEADS, MOST_LAYERS, VOCABULARY, tiny
from tests.classes.stages import facts_of
from tests.marks import but_slow

SAMPLE = ("llama", "mixtral", "gpt2", "falcon", "bert", "phi3")
# What stands against fewer heads, where something does.
FORBIDS = {
    "gpt2": "self.head_dim = self.embed_dim // self.num_heads",
    "bert": "self.attention_head_size = int(config.hidden_size / config.num_attention_heads)",
    "falcon": "self.head_dim = self.hidden_size // self.num_heads",
}
# Like one or another of these; and those that loop over the experts that are hit.
MORE = ("opt", "gpt_neox", "starcoder2", "olmo2", "dbrx", "longcat_flash")


@pytest.mark.parametrize("name", but_slow([*SAMPLE, *MORE], *SAMPLE[1:], *MORE))
def test_no_stage_is_wrong(name: str) -> None:
    facts, stages, _ = facts_of(name)
    found = {stage.name: stage for stage in stages}
    assert not [str(stage) for stage in stages if stage.verdict in ("wrong", "raw")]
    for stage in ("build", "trace", "discover", "coverage", "width 0", "all 0", "depth"):
        assert found[stage].verdict == "ok", str(found[stage])
    assert facts["class"] == types()[name]
    if name in SAMPLE:
        lines = [line.partition(": ")[2] for line in facts.get("forbids", [])]
        assert lines == ([FORBIDS[name]] if name in FORBIDS else [])
    assert "move by 0%" not in found["all 0"].detail, "the proof sees nothing"
    row = {"type": name, **facts, "stages": [stage.as_dict() for stage in stages]}
    assert results.facts(row)["a removable block right"]
    assert results.letter(row, "depth") == "s"


def test_the_rule_makes_small_what_the_class_lets_it() -> None:
    config = tiny("llama")
    assert (config.hidden_size, config.vocab_size) == (HIDDEN, VOCABULARY)
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KV_HEADS)
    assert config.head_dim == HIDDEN // HEADS, "derived by the class"
    assert config.rope_parameters["rope_theta"] == type(config)().rope_parameters["rope_theta"]
    assert tiny("mixtral").num_local_experts == EXPERTS
    latent = tiny("deepseek_v3")
    assert latent.num_key_value_heads == latent.num_attention_heads
    assert latent.qk_head_dim == latent.qk_nope_head_dim + latent.qk_rope_head_dim


def test_every_kind_of_layer_stays() -> None:
    for name in ("gemma2", "qwen3_next", "axk2", "zamba2"):
        default, config = (each.get_text_config() for each in (type(tiny(name))(), tiny(name)))
        lists = [
            field.name
            for field in dataclasses.fields(default)
            if "layer" in field.name
            and isinstance(value := vars(default).get(field.name), list)
            and value
            and isinstance(value[0], str)
        ]
        assert lists, name
        for each in lists:
            assert set(getattr(config, each)) == set(getattr(default, each)), (name, each)
            assert len(getattr(config, each)) == config.num_hidden_layers <= MOST_LAYERS


def test_nested_configs_and_special_tokens_are_small_too() -> None:
    config = tiny("gemma3")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == HIDDEN
    assert config.vision_config.num_hidden_layers <= MOST_LAYERS
    names = (config.image_token_index, config.boi_token_index, config.eoi_token_index)
    assert len(set(names)) == 3
    assert max(names) < VOCABULARY


def test_a_verdict_for_every_end() -> None:
    def fails(error: Exception) -> Stage:
        def run() -> None:
            raise error

        return attempt("it", run)[0]

    assert attempt("it", lambda: "a note")[0].detail == "a note"
    assert fails(NothingThere("no heads")).verdict == "none"
    assert fails(Mismatch("1.0")).verdict == "wrong"
    assert fails(ValueError("oh")).verdict == "raw"
    assert "test_sample.py" in fails(ValueError("oh")).detail


def test_a_file_of_results_is_counted_and_shown(tmp_path: Path) -> None:
    stages = [
        Stage("build", "ok"),
        Stage("trace", "ok"),
        Stage("discover", "ok"),
        Stage("width 0", "ok"),
        Stage("width 1", "wrong", "0.5"),
        Stage("depth", "none", "one stream must enter"),
        Stage("mlp stock", "ok", "s"),
        Stage("attention stock", "refused", "ShrinkError: a head | follows"),
    ]
    row = {
        "type": "one", "class": "One", "cov": 0.5, "uncovered": ["0.50 mixer: only channel"],
        "forbids": ["modeling_one.py:7: size = width // heads"],
        "state": "0", "torch": torch.__version__, "transformers": "5", "date": "2026-01-01",
        "stages": [stage.as_dict() for stage in stages],
    }  # fmt: skip
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({**row, "stages": []}) + "\n" + json.dumps(row) + "\n")
    (found,) = results.read(file).values()
    assert results.line(found) == "cov 0.50 w! a- d- [sx--] -"
    counts = results.counts([found])
    assert (counts["traced"], counts["width right"], counts["wrong"], counts["MLP stock"]) == (
        1, 0, 1, 1,
    )  # fmt: skip
    text = table.page({"one": found})
    assert "| one | One | 0.50 | ! | - | - | sx-- | ---- | - | " in text
    assert "a head \\| follows" in text
    assert "width 1 WRONG: 0.5" in text
    assert "| one | modeling\\_one.py:7: size = width // heads |" in text
