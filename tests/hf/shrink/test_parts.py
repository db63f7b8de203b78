"""Configs with sizes of each layer, pruned again, and configs nested in one another."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.errors import FxpruneWarning, ShrinkError
from fxprune.hf.shrink import parts
from fxprune.plan import Plan
from tests import zoo
from tests.hf import tiny
from tests.hf.shrink.test_shrink import generate
from tests.marks import but_slow

WIDTH: dict[str, Any] = {"criterion": fxprune.Magnitude(), "ranking": "global"}
IDS = torch.tensor([[5, 3, 8, 13, 21, 34], [9, 4, 7, 6, 11, 12]])


def global_pruned(model: Any, ratio: float = 0.15, **options: Any) -> Any:
    """The model without some of its units, with sizes of each layer, equal to the graph."""
    result = fxprune.prune(model, pruning_ratio=ratio, **{**WIDTH, **options})
    small: Any = fxprune.shrink(model, result.plan, result.graph_module)
    with torch.no_grad():
        found = small(input_ids=IDS, use_cache=False).logits
        expected = result.graph_module(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) == result.plan.parameters_after
    return small


def assert_comes_back(small: Any, folder: Path) -> Any:
    """From disk, bit for bit, and with its cache."""
    again: Any = fxprune.load(fxprune.save(small, folder))
    assert parts.uneven(again.config) == parts.uneven(small.config)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, small(IDS).logits)
    found = generate(again, IDS)
    assert torch.equal(found, generate(again, IDS, cache=False))
    assert torch.equal(found, generate(small, IDS))
    return again


def sizes(model: Any) -> list[tuple[int, int]]:
    """Hidden units and key/value heads of each layer."""
    return [
        (layer.mlp.up_proj.out_features, layer.self_attn.k_proj.out_features // 6)
        for layer in model.model.layers
    ]


def disturbed(**changes: Any) -> Any:
    model = tiny.llama(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4, **changes)
    zoo.disturb(model)
    return model


# Sizes of each layer, pruned again


def test_three_times(tmp_path: Path) -> None:
    model = disturbed()
    for number in range(3):
        small = global_pruned(model)
        assert len(set(sizes(small))) > 1
        assert type(small).__name__ == "LlamaForCausalLM"
        model = assert_comes_back(small, tmp_path / str(number))
        with torch.no_grad():  # as training would
            for parameter in model.parameters():
                parameter.mul_(1.01)


@pytest.mark.parametrize("kind", ["mlp", "attention", "query"])
def test_each_kind_after_mlp_and_heads(kind: str, tmp_path: Path) -> None:
    small = global_pruned(global_pruned(disturbed()), 0.06, kinds=(kind,))
    assert_comes_back(small, tmp_path / "m")


def test_the_stream_after_mlp_and_heads(tmp_path: Path) -> None:
    first = global_pruned(disturbed())
    traced = fxprune.trace(first)
    graph = fxprune.discover(traced)
    (stream,) = (group.name for group in graph.groups if group.kind == "channel")
    plan = Plan.of(graph, {stream: range(16)})
    small: Any = fxprune.shrink(first, plan, traced=traced)
    with torch.no_grad():
        expected = fxprune.rewrite(traced, plan)(input_ids=IDS).logits
        torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-5)
    assert small.config.hidden_size == 16
    assert sizes(small) == sizes(first)
    assert_comes_back(small, tmp_path / "m")


def test_blocks_go_and_the_others_keep_their_sizes(tmp_path: Path) -> None:
    first = global_pruned(disturbed())
    traced = fxprune.trace(first)
    for names, width in ((["model.layers.0:block"], False), (["model.layers.1:block"], True)):
        graph = fxprune.discover(fxprune.bypass(traced, names))
        cut = [g for g in graph.groups if g.kind == "mlp" and g.layer == ("model.layers", 2)]
        plan = Plan.of(graph, {g.name: range(g.size - 5) for g in cut} if width else {})
        small: Any = fxprune.shrink(first, plan, traced=traced)
        gone = int(names[0].split(".")[2].partition(":")[0])
        expected = [each for i, each in enumerate(sizes(first)) if i != gone]
        if width:
            expected[-1] = (expected[-1][0] - 5, expected[-1][1])
        assert sizes(small) == expected
        with torch.no_grad():
            logits = fxprune.rewrite(traced, plan)(input_ids=IDS).logits
            torch.testing.assert_close(small(IDS).logits, logits, rtol=0, atol=1e-5)
        assert_comes_back(small, tmp_path / names[0].replace(":", "-"))


def test_layers_that_are_alike_again_have_a_config_like_any_other(tmp_path: Path) -> None:
    first = global_pruned(disturbed(), kinds=("mlp",))
    graph = fxprune.discover(fxprune.trace(first))
    least = min(group.size for group in graph.groups if group.kind == "mlp")
    kept = {g.name: tuple(range(least)) for g in graph.groups if g.kind == "mlp"}
    small: Any = fxprune.shrink(first, Plan.of(graph, kept))
    assert not small.config.is_heterogeneous
    assert small.config.intermediate_size == least
    small.save_pretrained(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(IDS).logits, small(IDS).logits)


def test_a_folder_of_uneven_layers_is_pruned_without_loading(tmp_path: Path) -> None:
    first = global_pruned(disturbed())
    folder = fxprune.save(first, tmp_path / "first")
    result = fxprune.prune(first, pruning_ratio=0.1, **WIDTH)
    small: Any = fxprune.shrink(first, result.plan, result.graph_module)
    again: Any = fxprune.load(fxprune.apply(result.plan, folder, tmp_path / "second"))
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, small(IDS).logits)


def test_uneven_and_consumed() -> None:
    first = global_pruned(disturbed())
    result = fxprune.prune(first, pruning_ratio=0.1, consume=True, **WIDTH)
    small: Any = fxprune.shrink(first, result.plan, result.graph_module)
    with torch.no_grad():
        expected = result.graph_module(input_ids=IDS).logits
        torch.testing.assert_close(small(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    but_slow(["phi3", "gpt2", "qwen3", "gemma3"], "gpt2", "qwen3", "gemma3"),
)
def test_other_families(name: str, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(zoo.built(name, "eager"))
    first = global_pruned(model, 0.05, kinds=("mlp",))
    small = global_pruned(assert_comes_back(first, tmp_path / "a"), 0.05, kinds=("mlp",))
    assert parts.uneven(small.config)
    assert_comes_back(small, tmp_path / "b")


def test_what_may_be_pruned_of_uneven_layers() -> None:
    first = global_pruned(disturbed())
    graph = fxprune.discover(fxprune.trace(first))
    rows = fxprune.legality(graph).rows
    assert {row.size for row in rows if row.kind == "mlp"} == {size for size, _ in sizes(first)}
    plan = fxprune.select(
        graph, {g.name: torch.rand(g.size) for g in graph.groups}, pruning_ratio=0.1
    )
    assert fxprune.check_plan(graph, plan)


# Configs in a config

IMAGE = 60
TEXT: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 64,
    "num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip


def llava(feature_layer: int = -1) -> Any:
    """Language and pictures; the tower's values come from one of its last layers."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_id=IMAGE,
        vision_feature_layer=feature_layer,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    zoo.disturb(model)
    return model


def seen() -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 43).view(2, 20)
    ids[:, 2:18] = IMAGE
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


def written(model: Any, cache: bool = True) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        **seen(), attention_mask=torch.ones(2, 20, dtype=torch.long), max_new_tokens=4,
        min_new_tokens=4, do_sample=False, use_cache=cache,
    )  # fmt: skip
    return found


def traced_quietly(model: Any) -> fxprune.Traced:
    """Without the warning that the number of pictures is fixed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)
        return fxprune.trace(model, kwargs=seen())


@pytest.fixture(scope="module")
def sight() -> tuple[Any, fxprune.Traced]:
    model = llava()
    return model, traced_quietly(model)


TOWER, WRITER = "model.vision_tower.encoder.layers", "model.language_model.layers"


def hidden(graph: fxprune.DependencyGraph, less: Mapping[tuple[str, int], int]) -> Plan:
    """So many hidden units fewer in these layers."""
    kept = {
        group.name: tuple(range(less[group.layer], group.size))
        for group in graph.groups
        if group.kind == "mlp" and group.layer in less
    }
    return Plan.of(graph, kept)


_EVEN_TEXT = {(WRITER, 0): 7, (WRITER, 1): 7}
_EVEN_VISION = {(TOWER, 0): 5, (TOWER, 1): 5, (TOWER, 2): 5}
_CASES: dict[str, tuple[dict[tuple[str, int], int], list[parts.Part]]] = {
    "language": (_EVEN_TEXT, []),
    "vision": (_EVEN_VISION, []),
    "both": ({**_EVEN_TEXT, **_EVEN_VISION}, []),
    "language unevenly": ({(WRITER, 1): 7}, [("text_config",)]),
    "vision unevenly": ({(TOWER, 0): 5, (TOWER, 2): 3}, [("vision_config",)]),
    "one evenly": ({**_EVEN_TEXT, (TOWER, 0): 5}, [("vision_config",)]),
    "both unevenly": ({(WRITER, 1): 7, (TOWER, 0): 5}, [("text_config",), ("vision_config",)]),
}


@pytest.mark.parametrize("what", but_slow(_CASES, "language", "one evenly"))
def test_the_part_that_speaks_of_a_layer(
    what: str, sight: tuple[Any, fxprune.Traced], tmp_path: Path
) -> None:
    model, traced = sight
    less, uneven = _CASES[what]
    plan = hidden(fxprune.discover(traced), less)
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert sorted(parts.uneven(small.config)) == uneven
    if ("text_config",) not in uneven:
        assert small.config.text_config.intermediate_size == (33 if (WRITER, 0) in less else 40)
    if ("vision_config",) not in uneven:
        assert small.config.vision_config.intermediate_size == (39 if (TOWER, 0) in less else 44)
    with torch.no_grad():
        expected = fxprune.rewrite(traced, plan)(**seen())["logits"]
        torch.testing.assert_close(small(**seen()).logits, expected, rtol=0, atol=1e-5)
    found = written(small)
    assert torch.equal(found, written(small, cache=False))
    again: Any = fxprune.load(fxprune.save(small, tmp_path / "m", plan=plan))
    assert torch.equal(written(again), found)
    auto = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "m", trust_remote_code=bool(uneven)
    )
    assert torch.equal(written(auto.eval()), found)


@pytest.mark.parametrize("path", [TOWER, WRITER])
def test_blocks_of_either(path: str, sight: tuple[Any, fxprune.Traced], tmp_path: Path) -> None:
    model, traced = sight
    name = f"{path}.1:block" if path == WRITER else f"{path}.0:block"
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, [name])), {})
    small: Any = fxprune.shrink(model, plan)
    counts = (
        small.config.text_config.num_hidden_layers,
        small.config.vision_config.num_hidden_layers,
    )
    assert counts == ((1, 3) if path == WRITER else (2, 2))
    with torch.no_grad():
        expected = fxprune.rewrite(traced, plan)(**seen())["logits"]
        torch.testing.assert_close(small(**seen()).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(written(fxprune.load(fxprune.save(small, tmp_path / "m"))), written(small))


def test_a_part_pruned_again(sight: tuple[Any, fxprune.Traced], tmp_path: Path) -> None:
    model, traced = sight
    first = fxprune.shrink(model, hidden(fxprune.discover(traced), {(WRITER, 1): 7}), traced=traced)
    again: Any = fxprune.load(fxprune.save(first, tmp_path / "a"))
    second = traced_quietly(again)
    plan = hidden(fxprune.discover(second), {(WRITER, 0): 3, (TOWER, 1): 2})
    small: Any = fxprune.shrink(again, plan, traced=second)
    with torch.no_grad():
        expected = fxprune.rewrite(second, plan)(**seen())["logits"]
        torch.testing.assert_close(small(**seen()).logits, expected, rtol=0, atol=1e-5)
    last: Any = fxprune.load(fxprune.save(small, tmp_path / "b"))
    assert torch.equal(written(last), written(small))
    layers = last.model.language_model.layers
    assert [layer.mlp.up_proj.out_features for layer in layers] == [37, 33]


def test_a_layer_that_nothing_reads_stays_as_it_is() -> None:
    """The default of such models: the last layer of the tower is there, and is not run."""
    model = llava(feature_layer=-2)
    traced = traced_quietly(model)
    plan = hidden(fxprune.discover(traced), {(TOWER, 0): 5, (TOWER, 1): 5})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    layers = small.model.vision_tower.encoder.layers
    assert [layer.mlp.fc1.out_features for layer in layers] == [39, 39, 44]
    with torch.no_grad():
        expected = fxprune.rewrite(traced, plan)(**seen())["logits"]
        torch.testing.assert_close(small(**seen()).logits, expected, rtol=0, atol=1e-5)


def test_default_kinds_leave_the_projector(sight: tuple[Any, fxprune.Traced]) -> None:
    graph = fxprune.discover(sight[1])
    kinds = {g.kind for g in graph.groups if "projector" in g.name}
    assert kinds == {"other"}


# Encoder and decoder

STACKS: dict[str, Any] = {
    "vocab_size": 64, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 36, "encoder_attention_heads": 6,
    "decoder_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
    "decoder_start_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
FIRST, SECOND = "model.encoder.layers", "model.decoder.layers"


@pytest.fixture(scope="module")
def bart() -> tuple[Any, fxprune.Traced]:
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**STACKS)).eval()
    return model, fxprune.trace(model)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(7, 0, marks=pytest.mark.slow),
        pytest.param(0, 5, marks=pytest.mark.slow),
        (7, 5),
    ],
)
def test_a_size_for_each_of_two_lists(first: int, second: int, bart: Any, tmp_path: Path) -> None:
    model, traced = bart
    less = {(FIRST, i): first for i in range(2)} | {(SECOND, i): second for i in range(3)}
    plan = hidden(fxprune.discover(traced), {k: v for k, v in less.items() if v})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert (small.config.encoder_ffn_dim, small.config.decoder_ffn_dim) == (40 - first, 36 - second)
    folder = fxprune.save(small, tmp_path / "m", plan=plan)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(**traced.kwargs).logits, small(**traced.kwargs).logits)
    found = again.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        found, again.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False)
    )


def test_sizes_of_each_layer_of_one_of_two_lists(bart: Any) -> None:
    model, traced = bart
    with pytest.raises(ShrinkError, match=r"2 lists of layers \(model.encoder.layers, model.dec"):
        fxprune.shrink(model, hidden(fxprune.discover(traced), {(FIRST, 1): 7}), traced=traced)


def test_a_size_that_two_lists_share(tmp_path: Path) -> None:
    """Where all layers of a list lose alike, that is no advice: the other list has to go along."""
    config = transformers.T5Config(
        vocab_size=64, d_model=48, d_kv=8, d_ff=40, num_layers=2, num_heads=6,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    both = {(path, i): 7 for path in ("encoder.block", "decoder.block") for i in range(2)}
    one = {key: less for key, less in both.items() if key[0] == "decoder.block"}
    with pytest.raises(ShrinkError, match=r"alone; .*: encoder.block.0.layer.1.DenseReluDense"):
        fxprune.shrink(model, hidden(graph, one), traced=traced)
    plan = hidden(graph, both)
    small: Any = fxprune.shrink(model, plan, traced=traced)
    folder = fxprune.save(small, tmp_path / "m", plan=plan)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(**traced.kwargs).logits, small(**traced.kwargs).logits)


def test_what_a_class_leaves_out_of_its_files(tmp_path: Path) -> None:
    """Positions of Marian: computed when it is loaded, whatever they were."""
    model: Any = transformers.MarianMTModel(transformers.MarianConfig(**STACKS)).eval()
    traced = fxprune.trace(model)
    plan = hidden(fxprune.discover(traced), {(FIRST, i): 7 for i in range(2)})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    again: Any = fxprune.load(fxprune.save(small, tmp_path / "m", plan=plan))
    with torch.no_grad():
        assert torch.equal(again(**traced.kwargs).logits, small(**traced.kwargs).logits)
        model.model.encoder.embed_positions.weight.mul_(2)
    with pytest.raises(ShrinkError, match=r"encoder.embed_positions.weight is not saved, and Mari"):
        fxprune.shrink(model, plan, traced=traced)


def test_a_config_that_says_again_whether_there_is_a_cache(tmp_path: Path) -> None:
    sizes = {**TEXT, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    nested = {"encoder": {**sizes}, "decoder": {**sizes, "cross_attention_hidden_size": 48}}
    model: Any = transformers.T5GemmaForConditionalGeneration(
        transformers.T5GemmaConfig(**nested, vocab_size=64)
    ).eval()
    model.config.decoder.use_cache = False
    traced = fxprune.trace(model)
    plan = hidden(fxprune.discover(traced), {(SECOND, i): 7 for i in range(2)})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert small.config.decoder.intermediate_size == small.config.encoder.intermediate_size - 7
    folder = fxprune.save(small, tmp_path / "m", plan=plan)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(**traced.kwargs).logits, small(**traced.kwargs).logits)


def test_a_part_that_no_module_holds(tmp_path: Path) -> None:
    """Experts in a loop over those that are hit, whose sizes stand in a config of their own."""
    torch.manual_seed(0)
    config = transformers.DbrxConfig(
        d_model=32, n_heads=4, n_layers=1, vocab_size=48, max_seq_len=32,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 12, "hidden_size": 32, "moe_num_experts": 5, "moe_top_k": 2},
    )  # fmt: skip
    model: Any = transformers.DbrxForCausalLM._from_config(config).eval()
    zoo.disturb(model)
    assert parts.unheld(model, ()) == (("attn_config",), ("ffn_config",))
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    kept = {"expert": (0, 2, 4), "mlp": range(1, 8)}
    found = [group for group in graph.groups if group.kind in kept]
    assert len(found) == 2
    plan = Plan.of(graph, {group.name: tuple(kept[group.kind]) for group in found})
    small: Any = fxprune.shrink(model, plan, traced=traced)
    assert (small.config.ffn_config.moe_num_experts, small.config.ffn_config.ffn_hidden_size) == (
        3, 7,
    )  # fmt: skip
    graph_module = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, graph_module, plan).relative_error < 1e-5
    again = type(model).from_pretrained(fxprune.save(small, tmp_path, plan=plan)).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, small(IDS).logits)
        torch.testing.assert_close(small(IDS).logits, graph_module(IDS).logits, rtol=0, atol=1e-5)
