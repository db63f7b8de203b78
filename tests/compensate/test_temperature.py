"""One number for the logits: the one of least loss, and written so that they are divided by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.compensate import CompensationReport, compensate
from fxprune.compensate.head import Factor, factors
from fxprune.compensate.temperature import least
from fxprune.data.loss import batch_loss
from fxprune.errors import CalibrationError, FxpruneWarning
from fxprune.plan import Plan
from tests.zoo import ALIKE, BY_NAME, disturb

# What scales the logits, less the bias that a norm has beside its weight.
FACTORS = {
    "gemma2": Factor("model.norm.weight", 1.0),
    "gemma3": Factor("model.norm.weight", 1.0),
    "gpt2": Factor("transformer.ln_f.weight"),
    "gpt_neox": Factor("gpt_neox.final_layer_norm.weight"),
    "opt": Factor("model.decoder.final_layer_norm.weight"),
    "bloom": Factor("transformer.ln_f.weight"),
    "falcon_multi_query": Factor("transformer.ln_f.weight"),
    "falcon_grouped": Factor("transformer.ln_f.weight"),
    "t5": Factor("decoder.final_layer_norm.weight"),
    "bert": Factor("cls.predictions.transform.LayerNorm.weight"),
    "distilbert": Factor("vocab_layer_norm.weight"),
    "vit": Factor("vit.layernorm.weight"),
    "chatglm_block": Factor("final_layernorm.weight"),
    "resnet": Factor("head.weight"),
    "perceptron": Factor("layers.4.weight"),
}
CAPPED = {"gemma2"}
CAUSAL = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt",
    "bloom", "falcon_grouped", "glm", "stablelm",
]  # fmt: skip
IDS = torch.randint(3, 101, (12, 13), generator=torch.Generator().manual_seed(8))


def build(name: str) -> Any:
    """With the attention that the other tests of the zoo trace all models with."""
    return BY_NAME[name].build(BY_NAME[name].backends[-1])


def traced(name: str, model: nn.Module | None = None) -> fxprune.Traced:
    args, kwargs = BY_NAME[name].example()
    return fxprune.trace(build(name) if model is None else model, args, kwargs)


def pruned(traced: fxprune.Traced) -> tuple[Plan, Any, Any]:
    """A plan that keeps every second MLP unit, and two smaller models."""
    graph = fxprune.discover(traced)
    kept = {g.name: tuple(range(0, g.size, 2)) for g in graph.groups if g.kind == "mlp"}
    plan = Plan.of(graph, kept)
    return plan, fxprune.rewrite(traced, plan), fxprune.rewrite(traced, plan)


def logits(module: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        output = module(input_ids=ids)
    found: Tensor = getattr(output, "logits", output)
    return found


def loss(logits: Tensor, ids: Tensor = IDS) -> float:
    flat = logits[:, :-1].flatten(0, 1).double()
    return float(nn.functional.cross_entropy(flat, ids[:, 1:].flatten()))


def _each(names: Iterable[str]) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in names]
    )


@_each(BY_NAME)
def test_what_scales_the_logits(name: str) -> None:
    found = factors(fxprune.discover(traced(name)))
    assert not isinstance(found, str)
    assert found[0] == FACTORS.get(name, Factor("model.norm.weight"))
    if len(found) > 1:
        assert found[1:] == (Factor(found[0].tensor.removesuffix("weight") + "bias"),)


@_each(CAUSAL)
def test_logits_are_divided_by_the_temperature_of_least_loss(name: str) -> None:
    model = build(name)
    disturb(model)
    original = traced(name, model)
    plan, plain, scaled = pruned(original)
    before = copy.deepcopy(model.state_dict())
    compensate(original, plain, plan, IDS, temperature=False)
    report = compensate(original, scaled, plan, IDS)
    assert report.temperature is not None
    assert report.no_temperature is None
    assert f"temperature {report.temperature:.3f}" in str(report)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    there, here = logits(plain), logits(scaled)
    cap = 1.0
    if name in CAPPED:
        cap = model.config.final_logit_softcapping
        there, here = (cap * torch.atanh(x.double() / cap) for x in (there, here))
    torch.testing.assert_close(here * report.temperature, there, atol=1e-4, rtol=1e-3)

    def at(temperature: float) -> float:
        found = there.double() / temperature
        return loss(cap * torch.tanh(found / cap) if name in CAPPED else found)

    tried = [math.exp(k / 400) for k in range(161)]
    best = min(tried, key=at)
    assert 1 <= report.temperature <= math.exp(0.4) * (1 + 1e-9)
    assert abs(math.log(report.temperature / best)) < 0.01
    assert loss(logits(scaled)) <= loss(logits(plain)) + 1e-9


def test_data_that_can_be_read_once() -> None:
    original = traced("llama")
    plan, one, other = pruned(original)
    first = compensate(original, one, plan, IDS, batch_size=4)
    second = compensate(original, other, plan, iter(IDS.split(4)), batch_size=None)
    assert first.temperature is not None
    assert first.temperature == pytest.approx(second.temperature, rel=1e-6)


def test_masked_tokens_do_not_count() -> None:
    mask = torch.ones_like(IDS)
    mask[:, 9:] = 0
    model = build("llama")
    original = fxprune.trace(model, kwargs={"input_ids": IDS, "attention_mask": mask})
    plan, one, other = pruned(original)
    noise = IDS.clone()
    noise[:, 9:] = 7
    first = compensate(original, one, plan, {"input_ids": IDS, "attention_mask": mask})
    second = compensate(original, other, plan, {"input_ids": noise, "attention_mask": mask})
    assert first.temperature == pytest.approx(second.temperature, rel=1e-5)


def test_labels_of_a_classifier() -> None:
    """The head's own weight, where no norm stands before it."""
    original = traced("perceptron")
    (x,), _ = BY_NAME["perceptron"].example()
    many = torch.randn(40, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = original.module(many)
    labels = torch.arange(40) % outputs.shape[-1]  # it cannot know those
    plan, plain, scaled = pruned(original)
    (name,) = [n.name for n in original.graph_module.graph.nodes if n.op == "placeholder"]
    data = {name: many, "labels": labels}
    compensate(original, plain, plan, data, temperature=False)
    report = compensate(original, scaled, plan, data)
    assert report.temperature is not None
    with torch.no_grad():
        there, here = plain(many), scaled(many)
    torch.testing.assert_close(here * report.temperature, there, atol=1e-5, rtol=1e-4)
    cross_entropy = nn.functional.cross_entropy
    assert report.temperature > 1
    assert cross_entropy(here, labels) < cross_entropy(there, labels)


def test_without_labels_it_is_left_alone() -> None:
    original = traced("perceptron")
    args, _ = BY_NAME["perceptron"].example()
    plan, plain, scaled = pruned(original)
    compensate(original, plain, plan, args[0], temperature=False)
    report = compensate(original, scaled, plan, args[0])
    assert report.temperature is None
    assert "needs 'labels'" in str(report.no_temperature)
    assert f", no temperature: {report.no_temperature}" in str(report)
    assert torch.equal(plain(*args), scaled(*args))


class Tied(nn.Module):
    """A language model without a norm at its end, whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x + self.down(torch.relu(self.up(x)))
        return x @ self.embed.weight.T


class Doubled(nn.Module):
    """Its norm is read by two heads, of which one has a bias that is computed."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.embed, self.own = nn.Embedding(101, 16), own
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head, self.other = nn.LayerNorm(16), nn.Linear(16, 101), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(input_ids)
        x = self.norm(x + self.down(torch.relu(self.up(x))))
        if self.own:
            return self.head(x), self.other(x)
        bias = self.head.bias * 2
        return nn.functional.linear(x, self.head.weight, bias), self.other(x)


@pytest.mark.parametrize("model", [Tied(), Doubled(own=False)], ids=["tied", "computed bias"])
def test_what_has_other_uses_is_left_alone(model: nn.Module) -> None:
    original = fxprune.trace(model, (IDS,))
    plan, plain, scaled = pruned(original)
    compensate(original, plain, plan, IDS, temperature=False)
    report = compensate(original, scaled, plan, IDS)
    assert report.temperature is None
    assert "the weight of its head has other uses" in str(report.no_temperature)
    assert all(
        torch.equal(one, other)
        for one, other in zip(plain.parameters(), scaled.parameters(), strict=True)
    )


def test_a_norm_with_other_readers_stays() -> None:
    original = fxprune.trace(Doubled(own=True), (IDS,))
    plan, plain, scaled = pruned(original)
    compensate(original, plain, plan, IDS, temperature=False)
    report = compensate(original, scaled, plan, IDS)
    assert report.temperature is not None
    (there, other), (here, same) = plain(IDS), scaled(IDS)
    torch.testing.assert_close(here * report.temperature, there, atol=1e-4, rtol=1e-4)
    assert torch.equal(other, same)


class Fixed(Doubled):
    """It takes twelve sequences and no other number."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(input_ids.view(12, 13))


def test_a_graph_that_takes_no_single_sequence() -> None:
    with pytest.warns(FxpruneWarning, match="is fixed at 12"):
        original = fxprune.trace(Fixed(own=True), (IDS,))
    plan, small, _ = pruned(original)
    with pytest.raises(CalibrationError, match=r"has shape \(6, 13\), and the graph takes"):
        compensate(original, small, plan, IDS[:6])
    for size in (None, 4):
        report = compensate(original, small, plan, IDS, batch_size=size)
        assert report.no_temperature is None
        assert report.temperature is not None


def test_a_loss_that_is_not_finite_takes_everything_back() -> None:
    model = build("llama")
    original = traced("llama", model)
    plan, small, _ = pruned(original)
    with torch.no_grad():
        model.get_submodule("lm_head").weight[5] = float("nan")
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(CalibrationError, match="the loss of the pruned model"):
        compensate(original, small, plan, IDS, scope="pruned")
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_it_never_makes_a_model_surer() -> None:
    """Of tokens that the model knows by heart."""
    original = traced("perceptron")
    (x,), _ = BY_NAME["perceptron"].example()
    with torch.no_grad():
        labels = original.module(x).argmax(-1)
    plan, plain, scaled = pruned(original)
    (name,) = [n.name for n in original.graph_module.graph.nodes if n.op == "placeholder"]
    data = {name: x, "labels": labels}
    compensate(original, plain, plan, data, temperature=False)
    assert compensate(original, scaled, plan, data).temperature == 1.0
    assert torch.equal(plain(x), scaled(x))


def test_bias_compensation_has_none() -> None:
    original = traced("gpt2")
    plan, small, _ = pruned(original)
    report = compensate(original, small, plan, IDS, method="bias")
    assert report == CompensationReport(
        "bias", "residual", report.consumers, report.seconds, None, None
    )


def test_a_model_of_transformers_has_it() -> None:
    model = build("llama")
    result = fxprune.prune(model, pruning_ratio=0.2, calibration=IDS, compensation="least-squares")
    assert result.compensation is not None
    assert result.compensation.temperature not in (None, 1.0)
    small = fxprune.shrink(model, result.plan, result.graph_module)
    torch.testing.assert_close(logits(small), logits(result.graph_module), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        own = float(batch_loss(small, {"input_ids": IDS}))
    assert own == pytest.approx(loss(logits(result.graph_module)), rel=1e-4)


@given(st.floats(0.0, 0.37), st.floats(0.1, 10.0))
def test_the_least_of_a_parabola(vertex: float, scale: float) -> None:
    asked: list[float] = []

    def parabola(x: float) -> float:
        asked.append(x)
        return scale * (x - vertex) ** 2

    assert least(parabola) == pytest.approx(vertex, abs=1e-6)
    assert len(asked) == len(set(asked)) <= 4 + vertex / 0.05


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (lambda x: x, 0.0),
        (lambda x: (x + 0.1) ** 2, 0.0),
        (lambda x: -x, 0.4),
        (lambda x: 0.0, 0.0),
        (abs, 0.0),
    ],
)
def test_the_least_at_a_bound_or_nowhere(function: Any, place: float) -> None:
    assert least(function) == pytest.approx(place, abs=1e-12)
