"""Resolving and loading models; every wrong input has a message that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from fxprune.errors import ModelError
from fxprune.hf.open.models import load_model, resolve
from tests.hf import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("smollm2", "smollm2"), ("org/name", "hub"), ("gpt2", "hub")],
)
def test_names_resolve_without_touching_the_disk(spec: str, kind: str) -> None:
    assert resolve(spec).kind == kind


def test_paths_resolve(folder: Path) -> None:
    assert resolve(folder).kind == "folder"
    assert resolve(str(folder / "config.json")).kind == "config"


def test_folder_loads_with_weights_and_tokenizer(folder: Path) -> None:
    loaded = load_model(folder)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    expected = tiny.llama()(input_ids=ids).logits
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert not loaded.model.training
    assert loaded.name == "tiny"
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer("héllo").input_ids) == "héllo"


def test_dtype_and_attention_are_passed_on(folder: Path) -> None:
    loaded = load_model(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("meta", [True, False])
def test_config_gives_a_model_without_weights(folder: Path, meta: bool) -> None:
    loaded = load_model(folder / "config.json", meta=meta, attn_implementation="eager")
    assert all(p.is_meta for p in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.tokenizer is None
    assert loaded.name == "tiny"
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


def test_meta_reads_no_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert all(p.is_meta for p in load_model(tmp_path, meta=True).model.parameters())


def test_smollm2_has_a_config_without_being_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    loaded = load_model("smollm2", meta=True)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(), "LlamaForCausalLM"),
        (transformers.BertConfig(), "BertForMaskedLM"),
        (transformers.BertConfig(is_decoder=True), "BertLMHeadModel"),
        (transformers.T5Config(), "T5ForConditionalGeneration"),
        (transformers.BartConfig(), "BartForConditionalGeneration"),
        (transformers.ViTConfig(), "ViTForImageClassification"),
        (transformers.BertConfig(architectures=["BertModel"]), "BertModel"),
    ],
)
def test_class_is_chosen_by_name_else_by_task(
    config: transformers.PreTrainedConfig, expected: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    assert type(load_model(tmp_path / "config.json").model).__name__ == expected


def _config(path: Path, content: str) -> str:
    file = path / "config.json"
    file.write_text(content)
    return str(file)


def test_missing_path(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "other.json"):
        with pytest.raises(ModelError, match="no such file or folder"):
            resolve(spec)


def test_folder_without_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model folder: it has no config"):
        load_model(tmp_path)


def test_pruned_folder_says_how_to_open_it(tmp_path: Path) -> None:
    (tmp_path / "fxprune.json").write_text("{}")
    with pytest.raises(ModelError, match=r"open it with fxprune\.load"):
        load_model(tmp_path)


def test_file_that_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="give its folder"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "has no model_type"),
        ('{"hidden_size": 3}', "has no model_type"),
        ('{"model_type": "lama"}', "no architecture 'lama'; did you mean .*llama"),
        ('{"model_type": "zzzzqqq"}', "no architecture 'zzzzqqq'; a newer transformers"),
        ('{"model_type": "llama", "hidden_size": "x"}', "is refused by llama: .*hidden_size"),
        ('{"model_type": "llama", "architectures": ["NoSuchLM"]}', "no model class 'NoSuchLM'"),
    ],
)
def test_bad_config(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(_config(tmp_path, content))


def test_unknown_attention(folder: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be built"):
        load_model(folder, meta=True, attn_implementation="nonsense")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder, attn_implementation="nonsense")


def test_folder_without_weights(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no \*.safetensors weights"):
        load_model(tmp_path)


def test_truncated_weights(tmp_path: Path) -> None:
    weights = tiny.folder(tmp_path / "m") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(tmp_path / "m")


def test_incomplete_weights(tmp_path: Path) -> None:
    model = tiny.llama()
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"lacks 3 of the weights .*layers\.1\.mlp"):
        load_model(tmp_path)


def test_damaged_tokenizer(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be loaded"):
        load_model(tmp_path / "m")


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The suite runs with HF_HUB_OFFLINE=1: the hub is never asked.
    for meta in (True, False):
        with pytest.raises(ModelError, match="the hub cannot be reached"):
            load_model("fxprune-tests/no-such-model", meta=meta)


def test_impossible_hub_name() -> None:
    with pytest.raises(ModelError, match="neither a file or folder here nor a model on the hub"):
        load_model("no spaces allowed")


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(folder)
    load_model(folder, meta=True)
    assert capfd.readouterr() == ("", "")


def test_config_values_survive(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert load_model(folder, meta=True).config.intermediate_size == written["intermediate_size"]
