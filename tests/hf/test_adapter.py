"""Plans on siblings, and on LoRA adapters: merging commutes with pruning."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import fxprune
from fxprune.errors import CheckpointError, PlanError, ShrinkError
from fxprune.plan import Plan
from tests.hf import tiny
from tests.hf.folder.test_module_folder import halved
from tests.marks import but_slow

# What PEFT says of transformers, and of weights that are tied.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
IDS = torch.tensor([[5, 3, 8, 13, 21], [34, 55, 89, 1, 2]])


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=90, n_positions=32, n_embd=24, n_layer=3, n_head=4, n_inner=40,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(config).eval()


def dense(name: str) -> Any:
    if name == "gpt2":
        return gpt2()
    return tiny.llama(num_hidden_layers=3, vocab_size=90, eos_token_id=None)


KINDS = {"gpt2": ("mlp",), "llama": ("mlp", "attention")}
BLOCK = {"gpt2": "transformer.h.1:block", "llama": "model.layers.1:block"}


@pytest.fixture(scope="module", params=but_slow(["llama", "gpt2"], "gpt2"))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, fxprune.Traced]:
    model = dense(request.param)
    return request.param, model, fxprune.trace(model)


def plans(name: str, traced: fxprune.Traced) -> dict[str, Plan]:
    shorter = fxprune.discover(fxprune.bypass(traced, [BLOCK[name]]))
    graph = fxprune.discover(traced)
    return {
        "width": halved(graph, KINDS[name]),
        "depth": Plan.of(shorter, {}),
        "both": halved(shorter, KINDS[name]),
        "one layer": halved(graph, KINDS[name], layer=1),
    }


def adapted(model: Any, **options: Any) -> PeftModel:
    """A copy of the model with an adapter of random factors."""
    torch.manual_seed(2)
    name = type(model).__name__
    given = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(fan_in_fan_out=name.startswith("GPT2"), **(given | options))
    made = get_peft_model(copy.deepcopy(model), config)
    for key, parameter in made.named_parameters():
        if ".lora_" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def merged(model: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload().eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_a_sibling(family: tuple[str, Any, fxprune.Traced]) -> None:
    name, model, traced = family
    sibling = copy.deepcopy(model)
    for parameter in sibling.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for plan in plans(name, traced).values():
        small = fxprune.shrink(sibling, plan)
        expected = fxprune.rewrite(fxprune.trace(sibling), plan)
        torch.testing.assert_close(logits(small), logits(expected), rtol=0, atol=1e-5)
        assert not torch.allclose(logits(small), logits(fxprune.shrink(model, plan)), atol=0.1)


def test_merging_commutes(family: tuple[str, Any, fxprune.Traced], tmp_path: Path) -> None:
    name, model, traced = family
    adapter = adapted(model)
    adapter.save_pretrained(tmp_path / "dense")
    whole = merged(model, tmp_path / "dense")
    for what, plan in plans(name, traced).items():
        expected = logits(fxprune.shrink(whole, plan))
        small = fxprune.shrink(model, plan)
        assert (expected - logits(small)).abs().max() > 0.1
        for source in (tmp_path / "dense", adapter):
            path = tmp_path / f"{what} {type(source).__name__}"
            folder = fxprune.shrink_adapter(source, plan, path, traced=traced)
            torch.testing.assert_close(logits(merged(small, folder)), expected, rtol=0, atol=2e-5)


def test_without_a_trace(tmp_path: Path) -> None:
    model = dense("llama")
    plan = plans("llama", fxprune.trace(model))["both"]
    adapter = adapted(model)
    adapter.save_pretrained(tmp_path / "dense")
    fxprune.shrink_adapter(adapter, plan, tmp_path / "1")
    fxprune.shrink_adapter(tmp_path / "dense", plan, tmp_path / "2", model=model)
    first, second = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("1", "2"))
    assert first == second
    with pytest.raises(ShrinkError, match="give model or traced"):
        fxprune.shrink_adapter(tmp_path / "dense", plan, tmp_path / "3")


def test_a_model_traced_before_peft_changed_it(tmp_path: Path) -> None:
    model = dense("llama")
    traced = fxprune.trace(model)
    plan = plans("llama", traced)["width"]
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    folder = fxprune.shrink_adapter(adapter, plan, tmp_path / "1", traced=traced)
    merged(fxprune.shrink(dense("llama"), plan), folder)


def test_heads_of_a_joint_projection(tmp_path: Path) -> None:
    """No config of GPT-2 says fewer heads, but the graph has them: compare weights."""
    from safetensors.torch import load_file

    from fxprune.ops.resize import Resizer

    model = dense("gpt2")
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    plan = halved(graph, ("attention", "mlp"))
    folder = fxprune.shrink_adapter(adapted(model), plan, tmp_path / "1", traced=traced)
    adapted(model).save_pretrained(tmp_path / "dense")
    resize = Resizer(graph.inferred, plan.kept_units(graph), traced.sizes)
    changed = 0
    small, large = (
        load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "dense")
    )
    for key in small:
        name, _, last = key.removeprefix("base_model.model.").partition(".lora_")
        if last.startswith("A"):
            before, after = (
                (f[key.replace("lora_A", "lora_B")] @ f[key]).T for f in (large, small)
            )
            expected = resize.slice(before, graph.layouts[f"{name}.weight"])
            torch.testing.assert_close(after, expected)
            changed += before.shape != after.shape
    assert changed == 4 * 3


def test_ranks_and_scales_of_some_layers(tmp_path: Path) -> None:
    model = dense("llama")
    traced = fxprune.trace(model)
    options = {
        "target_modules": r".*\.(q_proj|down_proj)",
        "exclude_modules": r".*\.0\.self_attn\.q_proj",
        "rank_pattern": {"layers.2.self_attn.q_proj": 4, "down_proj": 2},
        "alpha_pattern": {"layers.0.mlp.down_proj": 7, "q_proj": 9},
        "use_rslora": True,
        "lora_dropout": 0.1,
    }
    adapter = adapted(model, **options)
    adapter.save_pretrained(tmp_path / "dense")
    whole = merged(model, tmp_path / "dense")
    for what, plan in plans("llama", traced).items():
        folder = fxprune.shrink_adapter(adapter, plan, tmp_path / what, traced=traced)
        found = merged(fxprune.shrink(model, plan), folder)
        expected = logits(fxprune.shrink(whole, plan))
        torch.testing.assert_close(logits(found), expected, rtol=0, atol=2e-5)


def test_layers_by_number(tmp_path: Path) -> None:
    model = dense("llama")
    traced = fxprune.trace(model)
    plan = plans("llama", traced)["depth"]
    adapter = adapted(model, target_modules=["q_proj"], layers_to_transform=[2])
    folder = fxprune.shrink_adapter(adapter, plan, tmp_path / "1", traced=traced)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == [
        "model.layers.1.self_attn.q_proj"
    ]
    expected = logits(fxprune.shrink(adapter.merge_and_unload(), plan))
    found = merged(fxprune.shrink(model, plan), folder)
    torch.testing.assert_close(logits(found), expected, rtol=0, atol=2e-5)
    alone = adapted(model, target_modules=["q_proj"], layers_to_transform=[1])
    with pytest.raises(ShrinkError, match="removes every layer that the adapter adapts"):
        fxprune.shrink_adapter(alone, plan, tmp_path / "2", traced=traced)


# What is refused


@pytest.fixture(scope="module")
def llama() -> tuple[Any, fxprune.Traced, Plan]:
    model = dense("llama")
    traced = fxprune.trace(model)
    return model, traced, plans("llama", traced)["width"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"not plain LoRA \(use_dora\)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.lora_embedding"),
        ({"init_lora_weights": "pissa"}, "changes the dense weights .*pissa"),
    ],
)
def test_what_is_not_plain_lora(
    llama: tuple[Any, fxprune.Traced, Plan], tmp_path: Path, options: Any, message: str
) -> None:
    model, traced, plan = llama
    with pytest.raises(ShrinkError, match=message):
        fxprune.shrink_adapter(adapted(model, **options), plan, tmp_path / "1", traced=traced)
    assert not (tmp_path / "1").exists()


def test_other_folders(llama: tuple[Any, fxprune.Traced, Plan], tmp_path: Path) -> None:
    model, traced, plan = llama

    def refused(error: type[Exception], message: str, folder: Path, to: str = "new") -> None:
        with pytest.raises(error, match=message):
            fxprune.shrink_adapter(folder, plan, tmp_path / to, traced=traced)

    folder = tmp_path / "dense"
    refused(CheckpointError, "is not a whole adapter", folder)
    adapted(model, target_modules=["q_proj"]).save_pretrained(folder)
    refused(CheckpointError, "dense exists: it is left alone", folder, "dense")
    other = tiny.llama(num_hidden_layers=3, hidden_size=32, vocab_size=90, eos_token_id=None)
    adapted(other).save_pretrained(tmp_path / "wider")
    refused(CheckpointError, "it is for another model", tmp_path / "wider")
    adapted(tiny.llama(num_hidden_layers=4)).save_pretrained(tmp_path / "deeper")
    refused(CheckpointError, "the graph has no layer model.layers.3", tmp_path / "deeper")
    with pytest.raises(PlanError, match="another model"):
        fxprune.shrink_adapter(folder, plan, tmp_path / "new", model=other)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    refused(ShrinkError, "is LOHA, and only LORA", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    refused(CheckpointError, "is not a whole adapter", folder)
    assert not (tmp_path / "new").exists()
