"""Scores of blocks and branches equal slow recomputations from their formulas."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import fxprune
from fxprune import PPL, AngularDistance, BlockInfluence, Magnitude, Taylor
from fxprune.depth import score_units
from fxprune.errors import CalibrationError, CriterionError, DepthError
from tests import zoo
from tests.depth import by_hand
from tests.depth.by_hand import LAYERS, llama, padding, tokens, traced_llama
from tests.models import ResidualConvNet

IDS = tokens(6, 12)
# Of different sizes, so that a mean over batches is not one over tokens.
DATA = [{"input_ids": tokens(4, 12)}, {"input_ids": tokens(2, 9, seed=1)}]
MASKED = {
    side: [
        {"input_ids": tokens(5, 12), "attention_mask": padding(5, 12, side)},
        {"input_ids": tokens(2, 9, seed=1)},
    ]
    for side in ("left", "right")
}


def block(number: int) -> str:
    return f"model.layers.{number}:block"


def layer(number: int) -> str:
    return f"model.layers.{number}"


def values(scores: fxprune.Scores) -> dict[str, float]:
    assert all(score.shape == (1,) for score in scores.values())
    assert all(score.dtype == torch.float32 for score in scores.values())
    return {name: float(score) for name, score in scores.items()}


def close(found: fxprune.Scores, expected: dict[str, float], rel: float = 2e-5) -> bool:
    assert list(found) == list(expected)
    assert len({round(value, 7) for value in expected.values()}) == len(expected)
    return values(found) == pytest.approx(expected, rel=rel)


# Perplexity


def test_perplexity_without_a_layer() -> None:
    found = score_units(traced_llama(), PPL(), DATA)
    expected = {
        block(i): by_hand.perplexity(by_hand.without(llama(), "model.layers", i), DATA)
        for i in range(LAYERS)
    }
    assert close(found, expected)
    assert found.criterion == "PPL()"
    assert close(score_units(traced_llama(), PPL(), DATA, batch_size=1), expected)


@pytest.mark.parametrize(
    ("kind", "projection"), [("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")]
)
def test_perplexity_without_a_branch(kind: str, projection: str) -> None:
    found = score_units(traced_llama(), PPL(), DATA, units=kind)
    expected = {
        f"{layer(i)}:{kind}": by_hand.perplexity(
            by_hand.zeroed(llama(), f"{layer(i)}.{projection}"), DATA
        )
        for i in range(LAYERS)
    }
    assert close(found, expected)


def test_perplexity_of_parallel_branches() -> None:
    """GPT-NeoX: attention and MLP are two terms of one sum."""
    model, traced = zoo.built("gpt_neox", "eager"), zoo.traced("gpt_neox", "eager")
    found = score_units(traced, PPL(), DATA, units="branch")
    expected = {
        f"gpt_neox.layers.{i}:{kind}": by_hand.perplexity(
            by_hand.zeroed(model, f"gpt_neox.layers.{i}.{projection}"), DATA
        )
        for i in range(zoo.LAYERS)
        for kind, projection in (("attention", "attention.dense"), ("mlp", "mlp.dense_4h_to_h"))
    }
    assert values(found) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_perplexity_leaves_padding_out(side: str) -> None:
    found = score_units(traced_llama(), PPL(), MASKED[side])
    expected = {
        block(i): by_hand.perplexity(by_hand.without(llama(), "model.layers", i), MASKED[side])
        for i in range(LAYERS)
    }
    assert close(found, expected)
    unmasked = [{"input_ids": batch["input_ids"]} for batch in MASKED[side]]
    assert values(found) != pytest.approx(values(score_units(traced_llama(), PPL(), unmasked)))


def test_perplexity_of_labels_in_the_batch() -> None:
    labels = tokens(6, 12, seed=3)
    labels[:, ::3] = -100
    labels[0] = -100
    data = [{"input_ids": IDS, "labels": labels}]
    found = score_units(traced_llama(), PPL(), data)
    expected = {
        block(i): by_hand.perplexity(by_hand.without(llama(), "model.layers", i), data)
        for i in range(LAYERS)
    }
    assert close(found, expected)


def test_perplexity_of_a_masked_language_model() -> None:
    """BERT: labels are of the token itself, and norms stand behind the sums."""
    model, traced = zoo.built("bert", "eager"), zoo.traced("bert", "eager")
    labels = tokens(6, 12, seed=3)
    labels[:, 1:7] = -100
    data = [{"input_ids": IDS, "labels": labels}]
    found = score_units(traced, PPL(), data)
    expected = {
        f"bert.encoder.layer.{i}:block": by_hand.perplexity(
            by_hand.without(model, "bert.encoder.layer", i), data, shifted=False
        )
        for i in range(zoo.LAYERS)
    }
    assert close(found, expected)


def t5_data() -> list[dict[str, Tensor]]:
    labels = tokens(4, 7, seed=2)
    labels[1:, 5:] = -100
    return [
        {"input_ids": tokens(4, 12), "decoder_input_ids": tokens(4, 7, seed=1), "labels": labels}
    ]


def test_perplexity_of_an_encoder_decoder() -> None:
    model, traced = zoo.built("t5", "eager"), zoo.traced("t5", "eager")
    expected = {}
    for stack in ("encoder", "decoder"):
        for i in range(zoo.LAYERS):
            with by_hand.off(model, f"{stack}.block.{i}"):
                ppl = by_hand.perplexity(model, t5_data(), shifted=False)
            expected[f"{stack}.block.{i}:block"] = ppl
    assert close(score_units(traced, PPL(), t5_data()), expected)


@pytest.fixture(scope="module")
def convolutions() -> tuple[nn.Module, fxprune.Traced, dict[str, Any]]:
    entry = zoo.BY_NAME["resnet"]
    (image,), _ = entry.example()
    data = {"image": image, "labels": torch.tensor([0, 6, 2, 2, 1])}
    return zoo.built("resnet", "eager"), zoo.traced("resnet", "eager"), data


PLACES = ("plain", "depthwise", "grouped")


def test_perplexity_of_classes(convolutions: Any) -> None:
    model, traced, data = convolutions
    expected = {}
    for place in PLACES:
        short = copy.deepcopy(model)
        setattr(short, place, nn.Identity())
        expected[f"{place}:block"] = by_hand.perplexity(short, [data], shifted=False)
    assert close(score_units(traced, PPL(), data), expected)


def test_a_scan_computes_what_lies_before_a_unit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    original = fx.Interpreter.run_node

    def counted(self: fx.Interpreter, n: fx.Node) -> Any:
        calls[str(n.target)] += 1
        return original(self, n)

    monkeypatch.setattr(fx.Interpreter, "run_node", counted)
    score_units(traced_llama(), PPL(), DATA)
    assert calls["aten.embedding.default"] == len(DATA)
    linear = 7 * sum(range(LAYERS)) + LAYERS  # of later layers, and the head, after each unit
    assert calls["aten.linear.default"] == len(DATA) * (7 * LAYERS + linear)


# The residual stream


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_the_stream_before_and_behind_a_layer(side: str | None) -> None:
    data = DATA if side is None else MASKED[side]
    masks = [batch.get("attention_mask") for batch in data]
    pairs = {
        block(i): [by_hand.stream(llama(), batch, layer(i)) for batch in data]
        for i in range(LAYERS)
    }
    found = score_units(traced_llama(), BlockInfluence(), data)
    assert close(found, {name: by_hand.influence(each, masks) for name, each in pairs.items()})
    found = score_units(traced_llama(), AngularDistance(), data)
    assert close(found, {name: by_hand.angle(each, masks) for name, each in pairs.items()})
    assert found.criterion == "AngularDistance()"


def test_padding_counts_without_a_mask() -> None:
    """The masked scores are others, or the tests above would prove nothing."""
    hidden, seen = (
        values(score_units(traced_llama(), criterion, data))
        for criterion in (BlockInfluence(),)
        for data in (MASKED["right"], [{"input_ids": b["input_ids"]} for b in MASKED["right"]])
    )
    assert hidden != pytest.approx(seen, rel=1e-3)


def test_a_sequence_of_padding_alone_does_not_count() -> None:
    mask = padding(6, 12, "right")
    mask[2] = 0
    for criterion in (BlockInfluence(), AngularDistance()):
        with_it = score_units(traced_llama(), criterion, {"input_ids": IDS, "attention_mask": mask})
        rows = [0, 1, 3, 4, 5]
        batch = {"input_ids": IDS[rows], "attention_mask": mask[rows]}
        assert values(with_it) == pytest.approx(
            values(score_units(traced_llama(), criterion, batch))
        )


@pytest.mark.parametrize(("kind", "inside"), [("attention", "self_attn"), ("mlp", "mlp")])
def test_the_stream_before_and_behind_a_branch(kind: str, inside: str) -> None:
    norms = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
    expected = {}
    for i in range(LAYERS):
        pairs = []
        for batch in DATA:
            before, _ = by_hand.stream(llama(), batch, f"{layer(i)}.{norms[kind]}")
            _, term = by_hand.stream(llama(), batch, f"{layer(i)}.{inside}")
            pairs.append((before, before + term))
        expected[f"{layer(i)}:{kind}"] = by_hand.influence(pairs, [None] * len(DATA))
    assert close(score_units(traced_llama(), BlockInfluence(), DATA, units=kind), expected)


def test_the_stream_of_a_scaled_residual() -> None:
    """ChatGLM: the skip is a multiple of the normed stream, which enters each branch."""
    model, traced = zoo.built("chatglm_block", "eager"), zoo.traced("chatglm_block", "eager")
    _, batch = zoo.BY_NAME["chatglm_block"].example()
    expected = {}
    for i in range(zoo.LAYERS):
        _, before = by_hand.stream(model, batch, f"layers.{i}.input_layernorm")
        _, term = by_hand.stream(model, batch, f"layers.{i}.attention")
        alpha = model.layers[i].alpha  # type: ignore[union-attr,index]
        expected[f"layers.{i}:attention"] = by_hand.influence(
            [(before, alpha * before + term)], [None]
        )
    assert close(score_units(traced, BlockInfluence(), batch, units="attention"), expected)


def test_the_stream_of_an_encoder_decoder_by_their_own_masks() -> None:
    model, entry = zoo.built("t5", "eager"), zoo.BY_NAME["t5"]
    _, example = entry.example()
    masks = {
        "attention_mask": torch.ones_like(example["input_ids"]),
        "decoder_attention_mask": torch.ones_like(example["decoder_input_ids"]),
    }
    traced = fxprune.trace(model, kwargs={**example, **masks})
    batch = {
        "input_ids": tokens(4, 12),
        "attention_mask": padding(4, 12, "right"),
        "decoder_input_ids": tokens(4, 7, seed=1),
        "decoder_attention_mask": padding(4, 7, "right").flip(0),
    }
    expected = {}
    for stack, name in (("encoder", "attention_mask"), ("decoder", "decoder_attention_mask")):
        for i in range(zoo.LAYERS):
            pair = by_hand.stream(model, batch, f"{stack}.block.{i}")
            expected[f"{stack}.block.{i}:block"] = by_hand.influence([pair], [batch[name]])
    assert close(score_units(traced, BlockInfluence(), batch), expected)


def test_the_stream_of_images(convolutions: Any) -> None:
    """Every position is a token, channels are its features."""
    model, traced, data = convolutions
    expected = {}
    for place in PLACES:
        images = by_hand.stream(model, data, place)
        pair = [each.flatten(2).transpose(1, 2) for each in images]
        expected[f"{place}:block"] = by_hand.influence([(pair[0], pair[1])], [None])
    # Nothing is predicted, so no labels are needed.
    assert close(score_units(traced, BlockInfluence(), {"image": data["image"]}), expected)


# Weights


def parameters(model: nn.Module, i: int, kind: str) -> dict[str, nn.Parameter]:
    """Parameters of a unit of the llama, by name."""
    of = {
        "block": ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
        "attention": ("input_layernorm", "self_attn"),
        "mlp": ("post_attention_layernorm", "mlp"),
    }[kind]
    prefixes = tuple(f"{layer(i)}.{name}." for name in of)
    found = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
    assert len(found) == {"block": 9, "attention": 5, "mlp": 4}[kind]
    return found


@pytest.mark.parametrize("kind", ["block", "attention", "mlp"])
def test_magnitude_sums_over_all_parameters(kind: str) -> None:
    for p in (1, 2):
        expected = {
            f"{layer(i)}:{kind}": sum(
                float(each.detach().double().abs().pow(p).sum())
                for each in parameters(llama(), i, kind).values()
            )
            for i in range(LAYERS)
        }
        found = score_units(traced_llama(), Magnitude(p=p), units=kind)  # type: ignore[arg-type]
        assert close(found, expected)


def gradients(model: nn.Module, data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the mean next-token loss over all tokens of all batches."""
    names, weights = zip(*model.named_parameters(), strict=True)
    losses, count = [], 0
    for batch in data:
        ids = batch["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        losses.append(functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum"))
        count += ids[:, 1:].numel()
    found = torch.autograd.grad(torch.stack(losses).sum() / count, weights)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("kind", ["block", "mlp"])
def test_taylor_adds_up_batches_with_their_sign(kind: str) -> None:
    g = gradients(llama(), DATA)
    expected = {
        f"{layer(i)}:{kind}": sum(
            float((p.detach().double() * g[name].double()).abs().sum())
            for name, p in parameters(llama(), i, kind).items()
        )
        for i in range(LAYERS)
    }
    for size in (None, 2):
        found = score_units(traced_llama(), Taylor(), DATA, units=kind, batch_size=size)
        assert close(found, expected, rel=1e-4)
    # Absolute values of single batches would be larger.
    apart = sum(
        float((p.detach() * gradients(llama(), [batch])[name]).abs().sum()) / 2
        for batch in DATA
        for name, p in parameters(llama(), 0, kind).items()
    )
    assert apart > 1.1 * expected[f"{layer(0)}:{kind}"]


def squares(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    result: Tensor = model(**batch).logits.square().mean()
    return result


def test_taylor_with_a_loss_of_ones_own() -> None:
    data = {"input_ids": IDS, "attention_mask": padding(6, 12, "right")}
    names, weights = zip(*llama().named_parameters(), strict=True)
    parts = [{n: v[i : i + 3] for n, v in data.items()} for i in (0, 3)]
    total = torch.stack([squares(llama(), part) for part in parts]).mean()
    g = dict(zip(names, torch.autograd.grad(total, weights), strict=True))
    expected = {
        block(i): sum(
            float((p.detach() * g[n]).abs().sum())
            for n, p in parameters(llama(), i, "block").items()
        )
        for i in range(LAYERS)
    }
    options: dict[str, Any] = {"loss_fn": squares, "batch_size": 3}
    assert close(score_units(traced_llama(), Taylor(), data, **options), expected, rel=1e-4)
    shorter = fxprune.bypass(traced_llama(), [block(1)])
    mine = values(score_units(shorter, Taylor(), data, **options))
    assert mine != pytest.approx(values(score_units(shorter, Taylor(), data)))


def test_random_draws_one_number_per_unit() -> None:
    scores = [score_units(traced_llama(), fxprune.Random(seed)) for seed in (0, 0, 1)]
    one, two, other = map(values, scores)
    assert one == two != other
    assert len(set(one.values())) == LAYERS


# A model that lost units already

CRITERIA = (PPL(), BlockInfluence(), AngularDistance(), Magnitude(p=1), Taylor())


def labelled(name: str) -> dict[str, Any]:
    entry = zoo.BY_NAME[name]
    args, kwargs = entry.example()
    named = dict(kwargs) or {"image" if name == "resnet" else "pixel_values": args[0]}
    generator = torch.Generator().manual_seed(1)
    if entry.inputs == "image":
        labels = torch.randint(7, (len(args[0]),), generator=generator)
    else:
        like = named.get("decoder_input_ids", named["input_ids"])
        labels = torch.randint(3, 101, like.shape, generator=generator)
        labels[1:, 3:5] = -100  # so that batches weigh differently
    return {**named, "labels": labels}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", "model.layers"),
        pytest.param("bert", "bert.encoder.layer", marks=pytest.mark.slow),
        pytest.param("t5", "encoder.block", marks=pytest.mark.slow),
        ("vit", "vit.layers"),
        ("chatglm_block", "layers"),
    ],
)
def test_scores_without_a_layer_are_those_of_a_model_built_without(name: str, path: str) -> None:
    shorter = fxprune.bypass(zoo.traced(name, "eager"), [f"{path}.1:block"])
    model = by_hand.without(zoo.built(name, "eager"), path, 1)
    built = fxprune.trace(model, *zoo.BY_NAME[name].example())
    for criterion in CRITERIA:
        for size in (None, 2):
            found, expected = (
                values(score_units(each, criterion, labelled(name), batch_size=size))
                for each in (shorter, built)
            )
            assert found
            assert found == pytest.approx(expected, rel=1e-5), criterion


def test_names_are_those_of_the_whole_model() -> None:
    shorter = fxprune.bypass(traced_llama(), [block(0), "model.layers.2:mlp"])
    expected = by_hand.zeroed(llama(), "model.layers.2.mlp.down_proj")
    scores = score_units(shorter, PPL(), DATA)
    assert close(
        scores,
        {
            block(i): by_hand.perplexity(by_hand.without(expected, "model.layers", 0, i), DATA)
            for i in (1, 2, 3)
        },
    )
    branches = score_units(shorter, PPL(), DATA, units="branch")
    assert set(branches) == {
        *(f"{layer(i)}:attention" for i in (1, 2, 3)),
        *(f"{layer(i)}:mlp" for i in (1, 3)),
    }


def test_units_themselves_may_be_given() -> None:
    found = fxprune.find_branches(traced_llama())
    chosen = [found[block(2)], found["model.layers.0:mlp"]]
    for criterion in CRITERIA:
        scores = values(score_units(traced_llama(), criterion, DATA, units=chosen))
        every = {
            **score_units(traced_llama(), criterion, DATA),
            **score_units(traced_llama(), criterion, DATA, units="mlp"),
        }
        assert scores == {unit.name: float(every[unit.name]) for unit in chosen}
    assert score_units(traced_llama(), PPL(), DATA, units=[]) == {}


def test_the_model_is_left_as_it_was_found() -> None:
    model = by_hand.disturbed_llama(2).train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)  # type: ignore[union-attr,index]
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    traced = fxprune.trace(model)
    for criterion in CRITERIA:
        score_units(traced, criterion, IDS)
        score_units(fxprune.bypass(traced, [block(0)]), criterion, IDS)
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][1]
        assert torch.equal(parameter, before[name][0])


def test_progress_is_one_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    for criterion, line in (
        (PPL(), "scanning 4 units ..."),
        (BlockInfluence(), "watching the residual stream ..."),
    ):
        score_units(traced_llama(), criterion, IDS, progress=True)
        assert capsys.readouterr().err.strip() == line


# Refusals


@pytest.mark.parametrize("criterion", [PPL(), BlockInfluence(), AngularDistance(), Taylor()])
def test_data_is_needed(criterion: Any) -> None:
    with pytest.raises(CriterionError, match=r"needs calibration data"):
        score_units(traced_llama(), criterion)


def test_weights_are_needed() -> None:
    with torch.device("meta"):
        model = by_hand.tiny_llama()
    traced = fxprune.trace(model)
    for criterion in CRITERIA:
        with pytest.raises(CriterionError, match="on meta"):
            score_units(traced, criterion, IDS)
    assert len(score_units(traced, fxprune.Random())) == 2


@pytest.mark.parametrize("criterion", [fxprune.OBS(), fxprune.WandaSP(), fxprune.FLAP()])
def test_criteria_of_units_of_groups(criterion: Any) -> None:
    with pytest.raises(CriterionError, match=r"\) scores units of groups, and no blocks"):
        score_units(traced_llama(), criterion, IDS)


def test_no_such_kind() -> None:
    with pytest.raises(DepthError, match="no unit 'layer': take block, attention"):
        score_units(traced_llama(), PPL(), IDS, units="layer")


def test_every_label_ignored() -> None:
    data = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    for criterion in (PPL(), Taylor()):
        with pytest.raises(CalibrationError, match=r"every label is ignored \(-100\)"):
            score_units(traced_llama(), criterion, data)


def test_every_token_hidden() -> None:
    data = {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}
    for criterion in (BlockInfluence(), AngularDistance()):
        with pytest.raises(CalibrationError, match="mask hides every calibration token"):
            score_units(traced_llama(), criterion, data)


@torch.no_grad()
def test_a_loss_that_is_not_finite() -> None:
    model = by_hand.disturbed_llama(2)
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf  # type: ignore[union-attr,index]
    traced = fxprune.trace(model)
    with pytest.raises(CalibrationError, match=r"the loss without model.layers.0:block is nan"):
        score_units(traced, PPL(), IDS)
    with pytest.raises(CriterionError, match=r"the score of model.layers.1:block is nan"):
        score_units(traced, BlockInfluence(), IDS)


@torch.no_grad()
def test_a_perplexity_beyond_numbers() -> None:
    model = by_hand.disturbed_llama(2)
    model.lm_head.weight.mul_(1e4)  # type: ignore[union-attr,operator]
    with pytest.raises(CriterionError, match=r"PPL\(\): the score of model.layers.0:block is inf"):
        score_units(fxprune.trace(model), PPL(), IDS)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(CalibrationError, match="traced without the calibration input 'token_type"):
        score_units(traced_llama(), PPL(), {"input_ids": IDS, "token_type_ids": IDS})
    bert = zoo.traced("bert", "eager")
    with pytest.raises(CalibrationError, match="BertForMaskedLM needs 'labels'"):
        score_units(bert, PPL(), IDS)
    with pytest.raises(CalibrationError, match=r"logits \(6, 12, 101\) and labels \(6, 11\)"):
        score_units(bert, PPL(), {"input_ids": IDS, "labels": IDS[:, 1:]})
    t5 = zoo.traced("t5", "eager")
    for traced in (t5, fxprune.bypass(t5, ["encoder.block.1:block"])):
        for criterion in (PPL(), BlockInfluence(), Taylor()):
            if traced is t5 and criterion == Taylor():
                continue  # there the model makes them from the labels
            with pytest.raises(CalibrationError, match="lacks the input 'decoder_input_ids'"):
                score_units(traced, criterion, {"input_ids": IDS, "labels": IDS})


def test_a_model_without_labels_of_its_own_needs_a_class_each(convolutions: Any) -> None:
    assert isinstance(convolutions[0], ResidualConvNet)
    _, traced, data = convolutions
    with pytest.raises(CalibrationError, match="ResidualConvNet needs 'labels'"):
        score_units(traced, PPL(), {"image": data["image"]})
