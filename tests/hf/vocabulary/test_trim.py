"""Models without the tokens that a text does not use: exact, saved, applied, retrained."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import fxprune
from fxprune import Budget, FxpruneError, Plan
from fxprune.data.text import Text
from fxprune.errors import (
    CalibrationError,
    OracleError,
    SelectionError,
    ServeError,
    ShrinkError,
    VocabularyError,
)
from fxprune.hf.shrink.token_ids import Numbers, named
from fxprune.hf.vocabulary.trim import Trimmed, trim, without_tokens
from tests.command_line import run_command
from tests.hf.vocabulary.kinds import KINDS, prose
from tests.marks import but_slow

SIZE = 600
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
BART = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 1), ("ffn_dim", 48), ("attention_heads", 4))
}
IDS = {"input_ids": torch.arange(3, 9)[None]}
# Class, its config's class, the tokenizer and what else the config says.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("gpt2", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "LlamaForCausalLM": ("llama3", "LlamaConfig", SIZES),
    "Qwen2ForCausalLM": ("qwen2", "Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "GemmaForCausalLM": ("gemma", "GemmaConfig", {**SIZES, "head_dim": 8}),
    "BertForMaskedLM": ("bert", "BertConfig", SIZES),
    "T5ForConditionalGeneration": ("t5", "T5Config", {**T5, "decoder_start_token_id": 0}),
    "XLMRobertaForMaskedLM": ("xlm_r", "XLMRobertaConfig", SIZES),
    "BartForConditionalGeneration": (
        "xlm_r",
        "BartConfig",
        {**BART, "d_model": 32, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
    ),
}


def chosen() -> Text:
    return Text("prose", prose()[0][:120])


@functools.cache
def built(name: str, padding: int = 5) -> tuple[Any, Any]:
    """A random model, more rows than tokens, and its tokenizer."""
    kind, config, options = MODELS[name]
    tokenizer = KINDS[kind]()
    ids = {
        each: number
        for each in ("bos_token_id", "eos_token_id", "pad_token_id")
        if (number := getattr(tokenizer, each)) is not None
    }
    torch.manual_seed(0)
    size = len(tokenizer) + padding
    made = getattr(transformers, config)(vocab_size=size, **ids, **options)
    model = getattr(transformers, name)(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if (final := getattr(model, "final_logits_bias", None)) is not None:
            final.normal_()
    return model, tokenizer


@functools.cache
def cut(name: str = "LlamaForCausalLM") -> Trimmed:
    model, tokenizer = built(name)
    return trim(model, tokenizer, chosen(), SIZE)


@pytest.mark.parametrize(
    "name",
    but_slow(
        MODELS,
        "GPT2LMHeadModel",
        "GemmaForCausalLM",
        "XLMRobertaForMaskedLM",
        "T5ForConditionalGeneration",
    ),
)
def test_logits_of_tokens_that_stay_are_bit_equal(name: str) -> None:
    (model, _), small = built(name), cut(name)
    assert small.report is not None
    assert small.report.max_abs_error == 0
    assert small.model.config.vocab_size == SIZE == len(small.tokenizer)
    kept = torch.tensor(small.plan.tokens)
    seen = 0
    parts = (part for text in prose()[0][:120] for part in re.split("[.,:;]", text))
    for text in dict.fromkeys(parts):
        old, new = small.before(text).input_ids, small.tokenizer(text).input_ids
        if [small.plan.tokens[number] for number in new] != old or not old:  # type: ignore[index]
            continue
        inputs: list[dict[str, torch.Tensor]] = [
            {"input_ids": torch.tensor([ids])} for ids in (old, new)
        ]
        if model.config.is_encoder_decoder:
            for each in inputs:
                each["decoder_input_ids"] = each["input_ids"][:, :7]
        with torch.no_grad():
            expected, found = model(**inputs[0]).logits, small.model(**inputs[1]).logits
        assert torch.equal(expected[..., kept], found)
        seen += 1
        if seen == 40:
            break
    assert seen > 20


@pytest.mark.filterwarnings("ignore:.*takes only these sizes")
def test_tokens_that_a_model_shifts_by_itself() -> None:
    """Without ids for its decoder the graph holds the number of the token that comes first."""
    model, tokenizer = built("BartForConditionalGeneration")
    small = trim(model, tokenizer, chosen(), SIZE, kwargs=IDS)
    assert small.report is not None
    assert small.report.max_abs_error == 0
    kept = torch.tensor(small.plan.tokens)
    with torch.no_grad():
        expected = model(input_ids=kept[IDS["input_ids"]]).logits[..., kept]
        assert torch.equal(small.model(**IDS).logits, expected)


@pytest.mark.parametrize("name", but_slow(MODELS, "XLMRobertaForMaskedLM", "GemmaForCausalLM"))
def test_configs_name_the_same_tokens(name: str) -> None:
    (model, _), small = built(name), cut(name)
    old = getattr(model, "generation_config", None)
    for before, after in (
        (model.config, small.model.config),
        *([(old, small.model.generation_config)] if old is not None else []),
    ):
        numbers = Numbers(small.plan.tokens or (), model.config.vocab_size)
        for entry, value in before.to_dict().items():
            if entry.endswith("token_id") and value is not None:
                assert getattr(after, entry) == numbers.of(value)
    assert model.config.vocab_size != SIZE


def test_rows_without_a_token_go_first() -> None:
    model, tokenizer = built("LlamaForCausalLM")
    whole = trim(model, tokenizer, chosen(), len(tokenizer))
    assert whole.plan.tokens == tuple(range(len(tokenizer)))
    assert len(whole.tokenizer) == whole.model.config.vocab_size == len(tokenizer)
    with pytest.raises(VocabularyError, match=r"the tokenizer has \d+ tokens, no more"):
        trim(model, tokenizer, chosen(), len(tokenizer) + 1)
    exact, same = built("LlamaForCausalLM", padding=0)
    with pytest.raises(VocabularyError, match="so none would go"):
        trim(exact, same, chosen(), len(same))
    fewer, _ = built("LlamaForCausalLM", padding=-5)
    with pytest.raises(VocabularyError, match=r"a token \d+, and the model has \d+ rows"):
        trim(fewer, tokenizer, chosen(), SIZE)


def test_alone_and_with_other_kinds_in_one_plan(tmp_path: Path) -> None:
    model, tokenizer = built("LlamaForCausalLM")
    alone = fxprune.prune(model, tokenizer=tokenizer, calibration=chosen(), vocabulary=SIZE)
    assert not alone.plan.kept
    assert alone.whole.tokens == cut().plan.tokens
    both = fxprune.prune(
        model,
        tokenizer=tokenizer,
        calibration=chosen(),
        vocabulary=SIZE,
        pruning_ratio=0.4,
        criterion="magnitude",
        ranking="uniform",
        compensation=None,
    )
    assert both.plan.kept
    assert both.whole.tokens == cut().plan.tokens
    before = sum(p.numel() for p in model.parameters())
    after = sum(p.numel() for p in both.model.parameters())
    assert both.whole.parameters_before == before
    assert both.whole.parameters_after == after <= 0.6 * before < after + 200
    # One plan for the original: the same weights, also when it is applied to a folder.
    folder = tmp_path / "dense"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    both.save(tmp_path / "pruned")
    applied = fxprune.apply(tmp_path / "pruned" / "plan.json", folder, tmp_path / "applied")
    expected = both.model.state_dict()
    for place in (tmp_path / "pruned", applied):
        found = AutoModelForCausalLM.from_pretrained(place)
        assert found.config.vocab_size == SIZE
        assert all(torch.equal(found.state_dict()[n], t) for n, t in expected.items())
        text = prose()[1][0]
        new = AutoTokenizer.from_pretrained(place)
        assert new(text).input_ids == both.tokenizer(text).input_ids  # type: ignore[misc]
        out = found.generate(**new(text[:40], return_tensors="pt"), max_new_tokens=3)
        assert out.max() < SIZE
    direct = fxprune.shrink(model, both.whole)
    assert all(torch.equal(direct.state_dict()[n], t) for n, t in expected.items())
    assert fxprune.load(tmp_path / "pruned").config.eos_token_id == both.tokenizer.eos_token_id  # type: ignore[union-attr]


def test_twice_is_one_plan() -> None:
    model, _ = built("LlamaForCausalLM")
    again = trim(cut().model, cut().tokenizer, chosen(), SIZE - 100)
    plan = cut().plan.then(again.plan, fxprune.trace(model))
    assert len(plan.tokens or ()) == SIZE - 100
    texts = again.tokenizer.convert_ids_to_tokens(list(range(SIZE - 100)))
    assert cut().before.convert_ids_to_tokens(list(plan.tokens or ())) == texts
    direct = fxprune.shrink(model, plan).state_dict()
    assert all(torch.equal(t, direct[n]) for n, t in again.model.state_dict().items())


@pytest.mark.parametrize("goal", [{"pruning_ratio": 0.1}, {"budget": Budget(params=0.9)}])
def test_by_budget(goal: dict[str, Any]) -> None:
    model, tokenizer = built("Qwen2ForCausalLM")
    options = {"tokenizer": tokenizer, "calibration": chosen(), "verify": False}
    found = fxprune.prune(model, kinds="vocabulary", **goal, **options).whole
    row = model.config.hidden_size
    assert 0 <= 0.9 * found.parameters_before - found.parameters_after < row
    with pytest.raises(VocabularyError, match="no other budget"):
        fxprune.prune(model, kinds="vocabulary", budget=Budget(macs=0.5), **options)
    with pytest.raises(VocabularyError, match=r"tokens are \d+% of the parameters"):
        fxprune.prune(model, kinds="vocabulary", pruning_ratio=0.9, **options)


def test_the_oracle_sees_what_is_wrong() -> None:
    model, _ = built("LlamaForCausalLM")
    traced = fxprune.trace(model)
    for wrong in ("model.embed_tokens.weight", "lm_head.weight"):
        small = fxprune.rewrite(traced, cut().plan, share=False)
        with torch.no_grad():
            small.get_parameter(wrong).copy_(small.get_parameter(wrong).roll(1, 0))
        with pytest.raises(OracleError, match="output `logits` differs"):
            fxprune.verify(traced, small, cut().plan)


def test_reports_say_what_words_take() -> None:
    lines = list(cut().words(chosen(), Text("others", prose()[1])))
    assert lines[0] == f"tokens: {len(cut().before)} before, {SIZE} after"
    old, new = cut().rates(Text("others", prose()[1]))
    assert 1 < old < new
    assert lines[2] == f"tokens per word of others: {old:.3f} before, {new:.3f} after"
    with pytest.raises(CalibrationError, match="has no words"):
        cut().rates(Text("nothing", (" ",)))


def test_a_teacher_loses_the_same_tokens() -> None:
    model, _ = built("LlamaForCausalLM")
    taught = without_tokens(model, cut().plan)
    found = taught.state_dict()
    assert all(torch.equal(t, found[n]) for n, t in cut().model.state_dict().items())
    other = Plan.of(fxprune.discover(fxprune.trace(model)), {})
    assert without_tokens(model, other) is model


def test_numbers_in_configs() -> None:
    config = transformers.GenerationConfig(
        eos_token_id=[2, 7],
        pad_token_id=0,
        suppress_tokens=[1, 3, 5],
        bad_words_ids=[[3, 4], [5, 7]],
        sequence_bias=[[[5], -1.0], [[1, 2], 0.5]],
        forced_decoder_ids=[[1, 4], [2, 7]],
        max_length=9,
    )
    config.lang_to_id = {"<|en|>": 4}
    config.image_token_id = 50
    assert named(config) == {0, 2, 4, 7, 50}
    Numbers((0, 2, 4, 5, 7), 8).renumber(config)
    assert config.eos_token_id == [1, 4]
    assert config.pad_token_id == 0
    assert config.suppress_tokens == [3]
    assert config.bad_words_ids == [[3, 4]]
    assert config.sequence_bias == [[[3], -1.0]]
    assert config.forced_decoder_ids == [[1, 2], [2, 4]]
    assert config.lang_to_id == {"<|en|>": 2}
    assert config.image_token_id == 50  # no token of the model
    assert config.max_length == 9
    with pytest.raises(ShrinkError, match="names a token that goes"):
        Numbers((0, 1), 8).renumber(transformers.GenerationConfig(eos_token_id=5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": SIZE, "tokenizer": None}, "the model has no tokenizer"),
        ({"vocabulary": SIZE, "calibration": None}, "give calibration= a text"),
        ({"vocabulary": SIZE, "calibration": ["", " "]}, "is empty"),
        ({"vocabulary": SIZE, "calibration": "self"}, "is empty"),
        ({"vocabulary": 5}, "tokens must stay"),
        ({"vocabulary": SIZE, "kwargs": {**IDS, "labels": IDS["input_ids"]}}, "labels out of the"),
        ({"vocabulary": SIZE, "compensation_data": [], "pruning_ratio": 0.1}, "in two steps"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    model, tokenizer = built("LlamaForCausalLM")
    with pytest.raises(FxpruneError, match=words):
        fxprune.prune(model, **{"tokenizer": tokenizer, "calibration": chosen(), **options})


def test_what_has_no_tokens_and_what_a_config_asks_for() -> None:
    _, tokenizer = built("LlamaForCausalLM")
    with pytest.raises(VocabularyError, match="Linear is not a transformers model"):
        trim(torch.nn.Linear(2, 2), tokenizer, chosen(), SIZE)
    model, _ = built("LlamaForCausalLM")
    model.generation_config.pad_token_id = len(tokenizer) + 1  # a row without a token
    try:
        with pytest.raises(VocabularyError, match="which the tokenizer has not"):
            trim(model, tokenizer, chosen(), SIZE)
    finally:
        model.generation_config.pad_token_id = None


@pytest.mark.parametrize(
    "options",
    [
        {"vocabulary": 0},
        {"vocabulary": 2.5},
        {"vocabulary": 9, "kinds": "vocabulary"},
        {"kinds": ("mlp", "vocabulary")},
        {"vocabulary": 9, "criterion": "obs"},
        {"vocabulary": 9, "compensation": "bias"},
        {"vocabulary": 9, "steps": 2},
        {"vocabulary": 9, "budget": Budget(macs=0.5)},
    ],
)
def test_configurations_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(SelectionError):
        fxprune.PruneConfig(**options)


def test_a_configuration_is_written_and_read(tmp_path: Path) -> None:
    for given in (
        fxprune.PruneConfig(vocabulary=9),
        fxprune.PruneConfig(vocabulary=9, pruning_ratio=0.1),
        fxprune.PruneConfig(kinds=("vocabulary",), pruning_ratio=0.1),
    ):
        given.save(tmp_path / "recipe.yaml")
        assert fxprune.PruneConfig.load(tmp_path / "recipe.yaml") == given
        assert given.tokens


def test_a_gguf_follows_the_folder_alone(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from fxprune.serve.gguf.dense import cut as cut_gguf

    with pytest.raises(ServeError, match="apply it to the model's folder"):
        cut_gguf(cut().plan, tmp_path / "dense.gguf", tmp_path / "small.gguf")


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = functools.partial(run_command, monkeypatch, capsys)
    model, tokenizer = built("LlamaForCausalLM")
    dense, out, again = (tmp_path / name for name in ("dense", "small", "run"))
    model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in prose()[0]))
    options = ["prune", dense, "--out", out, "--vocabulary", SIZE]
    status, _, words = run(*options)
    assert status
    assert "give a file, --text" in words
    few = ["--eval-length", 16, "--eval-samples", 4]
    status, shown, _ = run(*options, "--text", text, *few)
    assert not status
    assert f"tokens: {len(tokenizer)} before, {SIZE} after" in shown
    assert "tokens per word of text.jsonl, second half:" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["config"]["vocabulary"] == SIZE
    assert report["notes"][0] in (out / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == SIZE
    taught = ["--teacher", dense, "--method", "full", "--steps", 2, "--learning-rate", 1e-3]
    status, _, _ = run("recover", out, "--data", text, "--out", again, *taught, "--length", 16)
    assert not status
    assert len(AutoTokenizer.from_pretrained(again / "model")) == SIZE
