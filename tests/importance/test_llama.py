"""Real groups: a Llama with 9 query heads and 3 key/value heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters, fingerprint
from fxprune.importance import Magnitude, Random, Taylor, estimate
from fxprune.plan import Plan
from fxprune.select.select import select

HEAD, HEADS, KV, UNITS, CHANNELS = 4, 9, 3, 20, 36
IDS = torch.arange(60).reshape(4, 15) % 50


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config()).eval()


def config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=CHANNELS,
        intermediate_size=UNITS,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        head_dim=HEAD,
        vocab_size=50,
        tie_word_embeddings=True,
        attention_dropout=0.5,
    )


@pytest.fixture(scope="module")
def graph(model: LlamaForCausalLM) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(model, kwargs={"input_ids": IDS[:2]}))


def by_kind(graph: DependencyGraph, kind: str) -> list[str]:
    return [group.name for group in graph.groups if group.kind == kind]


def importance(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """|w * g| of every parameter, from one backward without the library."""
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    result = {name: (p * p.grad).abs().detach() for name, p in model.named_parameters()}
    model.zero_grad()
    return result


def test_taylor_by_hand(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    scores = estimate(model, graph, Taylor(), IDS)
    s = importance(model)
    for i in range(2):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        heads = torch.zeros(KV)
        for head in range(HEADS):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            heads[head // (HEADS // KV)] += s[attention + "q_proj.weight"][rows].sum()
            heads[head // (HEADS // KV)] += s[attention + "o_proj.weight"][:, rows].sum()
        for head in range(KV):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            heads[head] += s[attention + "k_proj.weight"][rows].sum()
            heads[head] += s[attention + "v_proj.weight"][rows].sum()
        torch.testing.assert_close(scores[by_kind(graph, "attention")[i]], heads)
        units = s[mlp + "gate_proj.weight"].sum(1) + s[mlp + "up_proj.weight"].sum(1)
        units += s[mlp + "down_proj.weight"].sum(0)
        torch.testing.assert_close(scores[by_kind(graph, "mlp")[i]], units)


def test_the_tied_channel_group(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    scores = estimate(model, graph, Taylor(), IDS)
    expected = torch.zeros(CHANNELS)
    for name, s in importance(model).items():
        outputs = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected += s if s.ndim == 1 else s.sum(1) if outputs else s.sum(0)
    (channel,) = by_kind(graph, "channel")
    torch.testing.assert_close(scores[channel], expected)


def test_rotary_pairs_are_scored_together(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    """A unit of the query/key head dim is the pair that the rotation mixes, in every head."""
    name = next(n for n in by_kind(graph, "head_dim") if graph[n].size == HEAD // 2)
    expected = torch.zeros(HEAD // 2)
    for site in graph[name].parameters:
        if site.endswith(("q_proj.weight", "k_proj.weight")):
            rows = model.get_parameter(site).detach().square().sum(1)
            expected += rows.view(-1, 2, HEAD // 2).sum((0, 1))
    scores = estimate(model, graph, Magnitude())
    torch.testing.assert_close(scores[name], expected)


def test_the_models_own_loss_is_the_default(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    def loss(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
        result: Tensor = model(**batch, labels=batch["input_ids"]).loss
        return result

    own = estimate(model, graph, Taylor(), IDS)
    torch.testing.assert_close(dict(estimate(model, graph, Taylor(), IDS, loss_fn=loss)), dict(own))
    parts = estimate(model, graph, Taylor(), IDS, batch_size=3)
    torch.testing.assert_close(dict(parts), dict(own))


def test_dropout_is_off(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    quiet = estimate(model, graph, Taylor(), IDS)
    model.train()
    try:
        torch.testing.assert_close(dict(estimate(model, graph, Taylor(), IDS)), dict(quiet))
        assert model.training
    finally:
        model.eval()


def test_a_masked_language_model_needs_labels() -> None:
    tiny = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        vocab_size=50,
    )
    model = BertForMaskedLM(tiny).eval()
    graph = fxprune.discover(fxprune.trace(model, kwargs={"input_ids": IDS[:2]}))
    with pytest.raises(CalibrationError, match="BertForMaskedLM needs 'labels'"):
        estimate(model, graph, Taylor(), IDS)
    labels = torch.full_like(IDS, -100)
    labels[:, 0] = IDS[:, 0]  # the first position counts: this loss is not shifted
    data = {"input_ids": IDS, "labels": labels}
    scores = estimate(model, graph, Taylor(), data)
    assert min(float(s.max()) for s in scores.values()) > 0
    parts = estimate(model, graph, Taylor(), data, batch_size=1)
    torch.testing.assert_close(dict(parts), dict(scores))


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_plan_for_the_whole_model(
    model: LlamaForCausalLM, graph: DependencyGraph, ranking: str
) -> None:
    assert count_parameters(graph) == model.num_parameters()
    scores = estimate(model, graph, Taylor(), IDS)
    kinds = ("mlp", "attention", "query", "head_dim", "channel")
    for ratio in (0.1, 0.25, 0.5):
        plan = select(graph, scores, ratio, kinds, ranking=ranking)  # type: ignore[arg-type]
        counts = plan.kept_counts(graph)
        budget = (1 - ratio) * model.num_parameters()
        assert plan.parameters_after <= budget
        for dim, kept in counts.items():
            assert count_parameters(graph, {**counts, dim: kept + 1}) > budget
        plan.check(graph)


def test_plans_and_scores_go_between_weights_and_meta(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    with torch.device("meta"):
        empty = LlamaForCausalLM(config()).eval()
    shapes = fxprune.discover(fxprune.trace(empty, kwargs={"input_ids": IDS[:2].to("meta")}))
    assert fingerprint(shapes) == fingerprint(graph)
    scores = estimate(model, shapes, Taylor(), IDS)
    torch.testing.assert_close(dict(scores), dict(estimate(model, graph, Taylor(), IDS)))
    plan = select(shapes, scores, 0.2)
    plan.check(graph)
    assert plan == select(graph, scores, 0.2)
    random = estimate(empty, shapes, Random(1))
    assert isinstance(select(shapes, random, 0.2), Plan)
