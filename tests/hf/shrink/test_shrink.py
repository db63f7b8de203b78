"""A shorter model of its own class does all that the class does, and equals the rewritten graph."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import fxprune
from fxprune import bypass, shrink
from fxprune.errors import PlanError, ShrinkError
from fxprune.plan import Plan
from tests import zoo
from tests.hf import tiny
from tests.marks import but_slow
from tests.models import Perceptron
from tests.zoo import BY_NAME, HIDDEN, INNER, VOCABULARY, ZOO, disturb


def logits(output: Any) -> Tensor:
    result: Tensor = output if isinstance(output, Tensor) else output.logits
    return result


def plan_for(traced: fxprune.Traced, *names: str) -> Plan:
    return Plan.of(fxprune.discover(bypass(traced, names)), {})


def layer_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Lists of layers, without those inside the layers."""
    found = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    return {p: m for p, m in found.items() if not any(p.startswith(f"{o}.") for o in found)}


def assert_equal(small: PreTrainedModel, plan: Plan, traced: fxprune.Traced, inputs: Any) -> None:
    """The rewritten graph's logits and the plan's number of parameters."""
    args, kwargs = inputs
    graph = fxprune.rewrite(traced, plan)
    with torch.no_grad():
        expected = logits(graph(*args, **kwargs))
        found = logits(small(*args, **kwargs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


def assert_numbered(small: PreTrainedModel) -> None:
    """Whatever in a layer knows its number knows the right one."""
    for layers in layer_lists(small).values():
        for number, layer in enumerate(layers):
            known = {m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")}
            assert known <= {number, None}


def generate(model: Any, ids: Tensor, cache: bool = True, **options: Any) -> Tensor:
    """The eight tokens that the model writes."""
    found: Tensor = model.generate(
        ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0,
        **options,
    )  # fmt: skip
    return found[:, -8:]


# Every family of the zoo, block by block

FAMILIES = [e.name for e in ZOO if e.name not in ("chatglm_block", "resnet", "perceptron")]
DECODERS = [name for name in FAMILIES if name not in ("t5", "bert", "distilbert", "vit")]


def on(names: list[str], *slow: str) -> Any:
    return pytest.mark.parametrize("name", but_slow(names, *slow))


def of_zoo(name: str) -> tuple[Any, fxprune.Traced]:
    backend = BY_NAME[name].backends[-1]
    return zoo.built(name, backend), zoo.traced(name, backend)


def blocks(traced: fxprune.Traced) -> list[str]:
    return [unit.name for unit in fxprune.find_branches(traced).of("block")]


def first_that_shrinks(name: str) -> tuple[Any, Plan]:
    """The model without its first block, and the plan."""
    model, traced = of_zoo(name)
    plan = plan_for(traced, blocks(traced)[0])
    return shrink(model, plan), plan


@on(FAMILIES)
def test_every_block_alone(name: str) -> None:
    model, traced = of_zoo(name)
    inputs = BY_NAME[name].example(*zoo.OTHER)
    state = {n: tensor.clone() for n, tensor in model.state_dict().items()}
    shapes = {n: p.shape for n, p in model.named_parameters()}
    with torch.no_grad():
        before = logits(model(*inputs[0], **inputs[1]))
    names = blocks(traced)
    assert len(names) == len(BY_NAME[name].blocks)
    for block in names:
        plan = plan_for(traced, block)
        if name == "t5" and ".0:" in block:
            with pytest.raises(ShrinkError, match="has_relative_attention_bias is False"):
                shrink(model, plan)
            continue
        small = shrink(model, plan, share=True)
        assert type(small) is type(model)
        assert_equal(small, plan, traced, inputs)
        assert_numbered(small)
        own = {id(p) for p in model.parameters()}
        assert all(id(parameter) in own for parameter in small.parameters())
        assert small.config is not model.config
    # The original is as it was.
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(logits(model(*inputs[0], **inputs[1])), before)


@on(DECODERS)
def test_generation(name: str) -> None:
    small, _ = first_that_shrinks(name)
    ids = BY_NAME[name].example(3, 6)[1]["input_ids"].clamp(min=3)
    found = generate(small, ids)
    assert torch.equal(found, generate(small, ids, cache=False))
    # A left-padded batch writes what each of its rows does alone.
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[2, :4] = 0
    padded = ids.masked_fill(mask == 0, 0)
    together = generate(small, padded, attention_mask=mask)
    for row in range(3):
        alone = generate(small, ids[row : row + 1, int((mask[row] == 0).sum()) :])
        assert torch.equal(together[row], alone[0])


@on(DECODERS)
def test_saved_and_loaded_by_transformers(name: str, tmp_path: Path) -> None:
    small, _ = first_that_shrinks(name)
    small.save_pretrained(tmp_path)
    again = (
        type(small).from_pretrained(tmp_path, attn_implementation=BY_NAME[name].backends[-1]).eval()
    )
    assert again.config.num_hidden_layers == zoo.LAYERS - 1
    types = getattr(again.config, "layer_types", None)
    assert types is None or len(types) == zoo.LAYERS - 1
    inputs = BY_NAME[name].example(*zoo.OTHER)[1]
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, small(**inputs).logits)
    assert torch.equal(generate(again, inputs["input_ids"]), generate(small, inputs["input_ids"]))


# Deeper models, several blocks at once

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_DEEP: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "num_hidden_layers": 4}),
    "tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_SMALL, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "qwen2": (  # the first two layers see everything, the others a window
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            **_SMALL, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_SMALL, "num_hidden_layers": 4, "query_pre_attn_scalar": 8, "sliding_window": 5,
            "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING],
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY, "n_embd": 48, "n_inner": INNER, "n_layer": 4, "n_head": 6,
            "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
        },
    ),
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": INNER,
            "num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": 64,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 8, "d_ff": INNER, "num_layers": 3,
            "num_decoder_layers": 3, "num_heads": 6, "decoder_start_token_id": 0,
        },
    ),
}  # fmt: skip
DEEP = list(_DEEP)


def deep(name: str) -> PreTrainedModel:
    """A model of its own, with values disturbed."""
    cls, config, options = _DEEP[name]
    torch.manual_seed(0)
    model: PreTrainedModel = (
        getattr(transformers, cls)
        ._from_config(getattr(transformers, config)(**options), attn_implementation="sdpa")
        .eval()
    )
    disturb(model)
    return model


@functools.cache
def deep_traced(name: str) -> tuple[PreTrainedModel, fxprune.Traced]:
    """The model and its graph. Do not change it."""
    model = deep(name)
    return model, fxprune.trace(model)


def draws(name: str) -> list[list[str]]:
    """Random sets of blocks that leave one in every stack, and T5's first ones."""
    _, traced = deep_traced(name)
    found = blocks(traced)
    may = [block for block in found if not (name == "t5" and ".0:" in block)]
    most = len(may) - (0 if name == "t5" else 1)
    chance = random.Random(len(name))
    return [sorted(chance.sample(may, count), key=found.index) for count in (2, most - 1, most)]


def example(name: str, rows: int = 3, length: int = 17) -> Any:
    return BY_NAME["t5" if name == "t5" else "llama"].example(rows, length)


@on(DEEP, "tied", "bert", "qwen2", "gpt2", "gemma3", "t5")
def test_random_sets_of_blocks(name: str) -> None:
    model, traced = deep_traced(name)
    for names in draws(name):
        plan = plan_for(traced, *names)
        small = shrink(model, plan)
        assert_equal(small, plan, traced, example(name))
        assert_numbered(small)
        gone = {path: sum(n.startswith(f"{path}.") for n in names) for path in layer_lists(model)}
        assert {path: len(layers) for path, layers in layer_lists(small).items()} == {
            path: len(layers) - gone[path] for path, layers in layer_lists(model).items()
        }
        assert sum(gone.values()) == len(names)


@on([name for name in DEEP if name != "bert"], "tied", "gpt2", "t5")
def test_random_sets_generate_and_reload(name: str, tmp_path: Path) -> None:
    model, traced = deep_traced(name)
    # transformers caches no more layers of T5's decoder than the encoder has.
    last = ["decoder.block.1:block", "decoder.block.2:block"] if name == "t5" else draws(name)[1]
    small: Any = shrink(model, plan_for(traced, *last))
    ids = example(name, 2, 9)[1]["input_ids"].clamp(min=3)
    found = generate(small, ids)
    assert torch.equal(found, generate(small, ids, cache=False))
    small.save_pretrained(tmp_path)
    again: Any = type(small).from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert torch.equal(generate(again, ids), found)


def test_an_encoder_shorter_than_the_decoder_generates_without_a_cache() -> None:
    model, traced = deep_traced("t5")
    plan = plan_for(traced, "encoder.block.1:block", "encoder.block.2:block")
    ids = example("t5", 2, 9)[1]["input_ids"]
    found = generate(shrink(model, plan), ids, cache=False)
    with torch.no_grad():
        start = torch.cat([torch.zeros(2, 1, dtype=torch.long), found[:, :-1]], 1)
        graph = fxprune.rewrite(traced, plan)
        again = graph(input_ids=ids, decoder_input_ids=start).logits
    again[..., model.generation_config.eos_token_id] = -torch.inf  # eight tokens at least
    assert torch.equal(found, again.argmax(-1))


def test_types_of_layers_move_along() -> None:
    model, traced = deep_traced("gemma3")
    small: Any = shrink(model, plan_for(traced, "model.layers.0:block"))
    assert small.config.layer_types == [_SLIDING, _FULL, _SLIDING]
    assert small.config.num_hidden_layers == 3
    assert model.config.layer_types == [_SLIDING, _SLIDING, _FULL, _SLIDING]
    window = model.config.sliding_window
    assert [each.self_attn.sliding_window for each in small.model.layers] == [window, None, window]
    model, traced = deep_traced("qwen2")
    small = shrink(model, plan_for(traced, "model.layers.0:block"))
    assert small.config.layer_types == [_FULL, _SLIDING, _SLIDING]
    assert small.config.max_window_layers == 2  # not taken for the number of layers


def test_the_number_of_layers_whatever_it_is_called() -> None:
    model, traced = deep_traced("gpt2")
    small = shrink(model, plan_for(traced, "transformer.h.2:block"))
    assert small.config.n_layer == small.config.num_hidden_layers == 3
    model, traced = deep_traced("t5")
    for names, encoder, decoder in (
        (["encoder.block.1:block"], 2, 3),
        (["decoder.block.1:block", "decoder.block.2:block"], 3, 1),
        (["encoder.block.1:block", "encoder.block.2:block", "decoder.block.1:block"], 1, 2),
    ):
        small = shrink(model, plan_for(traced, *names))
        assert (small.config.num_layers, small.config.num_decoder_layers) == (encoder, decoder)
        assert (len(small.encoder.block), len(small.decoder.block)) == (encoder, decoder)


@pytest.mark.parametrize("name", ["tied", "gpt2", "llama"])
def test_ties_stay(name: str, tmp_path: Path) -> None:
    model, traced = deep_traced(name)
    small: Any = shrink(model, plan_for(traced, blocks(traced)[1]))
    small.save_pretrained(tmp_path)
    again: Any = type(small).from_pretrained(tmp_path)
    for each in (model, small, again):
        one, two = each.get_input_embeddings().weight, each.get_output_embeddings().weight
        assert (one is two) == (name != "llama")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_it_trains_with_gradient_checkpointing(name: str) -> None:
    model: Any = deep(name).train()
    small: Any = shrink(model, plan_for(deep_traced(name)[1], draws(name)[0][0]))
    assert small.training
    small.gradient_checkpointing_enable({"use_reentrant": False})
    _, inputs = example(name)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    small.eval()  # no dropout, so that the losses compare
    loss = small(**inputs, labels=labels).loss
    small.train()
    small(**inputs, labels=labels).loss.backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)
    before = {n: p.detach().clone() for n, p in small.named_parameters()}
    torch.optim.SGD(small.parameters(), lr=0.01).step()
    assert any(not torch.equal(p, before[n]) for n, p in small.named_parameters())
    assert small.eval()(**inputs, labels=labels).loss != loss


def test_settings_are_those_of_the_model() -> None:
    model: Any = deep("llama").to(torch.bfloat16)
    model.generation_config.temperature = 0.3
    plan = plan_for(deep_traced("llama")[1], "model.layers.2:block")
    small: Any = shrink(model, plan)
    assert small.dtype == torch.bfloat16
    assert small.config._attn_implementation == "sdpa"
    assert small.generation_config.temperature == 0.3
    small.generation_config.temperature = 0.9
    small.config.rms_norm_eps = 1.0
    assert model.generation_config.temperature == 0.3
    assert model.config.rms_norm_eps != 1.0
    assert not small.training
    assert shrink(model.train(), plan).training


def test_a_frozen_parameter_stays_frozen() -> None:
    model: Any = deep("llama")
    model.model.layers[3].mlp.up_proj.weight.requires_grad_(False)
    small: Any = shrink(model, plan_for(deep_traced("llama")[1], "model.layers.2:block"))
    assert not small.model.layers[2].mlp.up_proj.weight.requires_grad


def test_a_plan_that_removes_nothing() -> None:
    model, traced = deep_traced("llama")
    assert shrink(model, plan_for(traced), share=True) is model


def test_a_plan_from_disk_for_a_sibling(tmp_path: Path) -> None:
    """Another model of the same architecture."""
    plan_for(deep_traced("llama")[1], "model.layers.1:block").save(tmp_path / "plan.json")
    other: Any = deep("llama")
    disturb(other, seed=5)
    small: Any = shrink(other, Plan.load(tmp_path / "plan.json"), share=True)
    assert small.model.layers[1].mlp.up_proj.weight is other.model.layers[2].mlp.up_proj.weight


def test_on_meta() -> None:
    with torch.device("meta"):
        model = tiny.llama(num_hidden_layers=3)
    traced = fxprune.trace(model)
    plan = plan_for(traced, "model.layers.1:block")
    small = shrink(model, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
    assert all(p.is_meta for p in small.parameters())


# Refusals


@pytest.mark.parametrize("patched", [False, True])
def test_outputs_must_be_those_of_the_graph(patched: bool) -> None:
    """Shapes and attributes are right in any case; an activation is not what the config says."""
    model: Any = deep("llama")
    if patched:
        model.model.layers[1].mlp.act_fn.forward = nn.GELU().forward
    ids = torch.arange(22).view(2, 11) + 3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    traced = fxprune.trace(model, kwargs=inputs)
    plan = Plan.of(fxprune.discover(traced), {"model.layers.2.mlp:units": tuple(range(8))})
    pruned = fxprune.rewrite(traced, plan)
    if patched:
        with pytest.raises(ShrinkError, match="does not compute what the rewritten graph does"):
            shrink(model, plan, pruned)
        return
    with torch.no_grad():
        found, expected = (m(**inputs).logits for m in (shrink(model, plan, pruned), pruned))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_outputs_are_compared_without_a_width_too() -> None:
    """A plan that removes blocks alone needs no graph; with the trace one is made to compare."""
    model: Any = deep("llama")
    model.model.layers[1].mlp.act_fn.forward = nn.GELU().forward
    traced = fxprune.trace(model)
    plan = plan_for(traced, "model.layers.2:block")
    shrink(model, plan)
    with pytest.raises(ShrinkError, match="does not compute what the rewritten graph does"):
        shrink(model, plan, traced=traced)


def test_every_layer() -> None:
    model, traced = deep_traced("llama")
    with pytest.raises(ShrinkError, match=r"no layer of model.layers would stay"):
        shrink(model, plan_for(traced, *blocks(traced)))


def test_another_model() -> None:
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    for other, message in (
        ("gpt2", "the plan is for another model: this one has no parameter 'lm_head.weight'"),
        ("tied", "the plan is for another model: this one has no parameter 'lm_head.weight'"),
        ("qwen2", "another model: the parameter 'model.layers.0.self_attn.k_proj.bias' is not in"),
    ):
        with pytest.raises(PlanError, match=message):
            shrink(deep_traced(other)[0], plan)
    with pytest.raises(PlanError, match="another model"):
        shrink(shrink(deep_traced("llama")[0], plan), plan)


def test_no_model_of_transformers() -> None:
    with pytest.raises(ShrinkError, match="Perceptron is not a transformers model"):
        shrink(Perceptron(), plan_for(zoo.traced("perceptron", "eager")))  # type: ignore[arg-type]
    model, traced = of_zoo("chatglm_block")
    with pytest.raises(ShrinkError, match="PlaneModel is not a transformers model"):
        shrink(model, plan_for(traced, "layers.0:block"))


def test_a_layer_unlike_the_one_whose_place_it_takes() -> None:
    model: Any = copy.deepcopy(deep_traced("llama")[0])
    model.model.layers[2].self_attn.scaling = 3.0
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    with pytest.raises(ShrinkError, match=r"model.layers.2.self_attn.scaling is 3.0, and as model"):
        shrink(model, plan)


def test_a_module_of_another_class() -> None:
    model: Any = copy.deepcopy(deep_traced("llama")[0])
    model.model.layers[3].mlp.act_fn = nn.GELU()
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    with pytest.raises(ShrinkError, match=r"layers.3.mlp.act_fn is a GELU, and as .*SiLU"):
        shrink(model, plan)


@pytest.mark.parametrize(("factor", "fits"), [(1 + 2**-22, True), (1.001, False)])
def test_a_buffer_that_is_computed_anew(factor: float, fits: bool) -> None:
    """Of a model made on a GPU its last bits differ; what the model has is kept."""
    model: Any = copy.deepcopy(deep_traced("llama")[0])
    model.model.rotary_emb.inv_freq.mul_(factor)
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    if fits:
        small: Any = shrink(model, plan)
        assert small.model.rotary_emb.inv_freq.equal(model.model.rotary_emb.inv_freq)
    else:
        with pytest.raises(ShrinkError, match=r"rotary_emb.inv_freq is not saved"):
            shrink(model, plan)


def test_a_tensor_that_has_no_place() -> None:
    model: Any = copy.deepcopy(deep_traced("llama")[0])
    model.model.layers[3].register_buffer("extra", torch.zeros(2))
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    with pytest.raises(ShrinkError, match=r"model.layers.3.extra has no place in the smaller"):
        shrink(model, plan)
    del model.model.layers[3].extra
    model.model.layers[1].register_buffer("extra", torch.zeros(2))  # it goes with its layer
    shrink(model, plan)


def test_a_class_of_ones_own() -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    model: Any = copy.deepcopy(deep_traced("llama")[0])
    model.__class__ = Mine
    plan = plan_for(deep_traced("llama")[1], "model.layers.1:block")
    with pytest.raises(ShrinkError, match="transformers has no class Mine"):
        shrink(model, plan)


def test_a_graph_that_was_pruned_twice(tmp_path: Path) -> None:
    """The plan of the second pruning speaks of the first graph; the model is the original."""
    model = tiny.llama()
    options: dict[str, Any] = {"pruning_ratio": 0.1, "criterion": fxprune.Magnitude()}
    one = fxprune.prune(model, **options)
    two = fxprune.prune(one.graph_module, kwargs=dict(one.traced.kwargs), **options)
    small = shrink(model, two.plan, two.graph_module)
    ids = torch.arange(3, 37).view(2, 17)
    with torch.no_grad():
        assert torch.equal(small(ids).logits, two.graph_module(input_ids=ids).logits)
    assert sum(p.numel() for p in small.parameters()) == two.plan.parameters_after
    with pytest.raises(PlanError, match="for another model"):
        shrink(model, two.plan)


def test_a_classifier_whose_pooler_no_config_counts() -> None:
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=6, max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.arange(3, 37).view(2, 17)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options: dict[str, Any] = {
        "budget": fxprune.Budget(units=0.25),
        "criterion": fxprune.Magnitude(),
    }
    result = fxprune.prune(model, kwargs=inputs, kinds=("mlp",), **options)
    small = shrink(model, result.plan, result.graph_module)
    assert small.config.intermediate_size == 30
    with torch.no_grad():
        expected = result.graph_module(**inputs).logits
        torch.testing.assert_close(small(**inputs).logits, expected, rtol=0, atol=1e-6)
    result = fxprune.prune(model, kwargs=inputs, kinds=("mlp", "other"), **options)
    with pytest.raises(ShrinkError, match=r'overrides=\{"bert.pooler.*:units": 0\} leaves'):
        shrink(model, result.plan, result.graph_module)
