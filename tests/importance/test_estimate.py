"""Estimation leaves the model as it was, frees gradients, and says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import CalibrationError, CriterionError
from fxprune.groups.group import Group
from fxprune.importance import (
    Criterion,
    ElementCriterion,
    Evidence,
    Gradients,
    Magnitude,
    Taylor,
    estimate,
)
from tests.toys import ToyGraph, ToyLM, toy_graph

IDS = torch.arange(24).reshape(4, 6) % 11


@pytest.fixture
def model() -> ToyLM:
    return ToyLM()


@pytest.fixture
def graph(model: ToyLM) -> ToyGraph:
    return toy_graph(model)


def state(model: nn.Module) -> list[Any]:
    modes = [module.training for module in model.modules()]
    parameters = [
        (p.requires_grad, p.grad, p._post_accumulate_grad_hooks) for p in model.parameters()
    ]
    return [modes, [(r, g, h or None) for r, g, h in parameters]]


def test_micro_batches_give_the_gradient_of_the_whole(model: ToyLM, graph: ToyGraph) -> None:
    whole = estimate(model, graph, Taylor(), IDS)
    for size in (1, 3):
        parts = estimate(model, graph, Taylor(), IDS, batch_size=size)
        for name, scores in whole.items():
            torch.testing.assert_close(parts[name], scores)


def test_batches_weigh_by_their_labels(model: ToyLM, graph: ToyGraph) -> None:
    labels = IDS.clone()
    labels[1:, 3:] = -100
    data = {"input_ids": IDS, "labels": labels}
    whole = estimate(model, graph, Taylor(), data)
    parts = estimate(
        model, graph, Taylor(), ({k: v[i : i + 1] for k, v in data.items()} for i in range(4))
    )
    torch.testing.assert_close(dict(parts), dict(whole))


def test_a_batch_without_labels_left_weighs_nothing(model: ToyLM, graph: ToyGraph) -> None:
    labels = IDS.clone()
    labels[3] = -100
    whole = estimate(model, graph, Taylor(), IDS[:3])
    parts = estimate(model, graph, Taylor(), {"input_ids": IDS, "labels": labels}, batch_size=1)
    torch.testing.assert_close(dict(parts), dict(whole))


def test_padding_is_no_label(graph: ToyGraph) -> None:
    class Masked(ToyLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids)

    model = Masked()
    graph = toy_graph(model)
    mask = torch.ones_like(IDS)
    mask[:, 4:] = 0
    masked = estimate(model, graph, Taylor(), {"input_ids": IDS, "attention_mask": mask})
    cut = estimate(model, graph, Taylor(), IDS[:, :4])
    torch.testing.assert_close(dict(masked), dict(cut))


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_model_is_left_as_it_was(model: ToyLM, graph: ToyGraph, batch_size: int | None) -> None:
    model.layers[0].eval()
    model.layers[1].up.weight.requires_grad_(False)
    model.layers[1].down.weight.grad = torch.ones(8, 10)
    before = state(model)
    scores = estimate(model, graph, Taylor(), IDS, batch_size=batch_size)
    assert state(model) == before
    assert scores["layers.1.mlp:units"].min() > 0


def test_the_model_is_left_as_it_was_on_errors(model: ToyLM, graph: ToyGraph) -> None:
    before = state(model)

    def fail(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        assert not model.training
        raise RuntimeError("no loss today")

    with pytest.raises(RuntimeError, match="no loss today"):
        estimate(model, graph, Taylor(), IDS, loss_fn=fail)
    assert state(model) == before

    @dataclass(frozen=True)
    class Broken(Taylor):
        def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
            raise RuntimeError("broken criterion")

    with pytest.raises(RuntimeError, match="broken criterion"):
        estimate(model, graph, Broken(), IDS)
    assert state(model) == before


def test_gradients_never_exist_together(model: ToyLM, graph: ToyGraph) -> None:
    alive = []

    @dataclass(frozen=True)
    class Watching(Taylor):
        def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
            alive.append(sum(p.grad is not None for p in model.parameters()))
            return super().elements(weight, gradients)

    estimate(model, graph, Watching(), IDS)
    # The one being consumed is already off the parameter.
    assert max(alive) == 0
    assert len(alive) == 2 * 9 + 1


def test_only_scored_parameters_get_gradients(model: ToyLM, graph: ToyGraph) -> None:
    asked = []

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        asked.extend(name for name, p in model.named_parameters() if p.requires_grad)
        return model(**batch).square().mean()

    scores = estimate(model, graph, Taylor(), IDS, loss_fn=loss, kinds=["mlp"])
    assert asked == [f"layers.{i}.{n}.weight" for i in range(2) for n in ("gate", "up", "down")]
    assert scores.keys() == {"layers.0.mlp:units", "layers.1.mlp:units"}


def test_another_instance_of_the_model(model: ToyLM) -> None:
    graph = toy_graph(ToyLM().to("meta"))
    torch.testing.assert_close(
        dict(estimate(model, graph, Taylor(), IDS)),
        dict(estimate(model, toy_graph(model), Taylor(), IDS)),
    )


def test_half_precision_is_scored_in_float32(model: ToyLM, graph: ToyGraph) -> None:
    full = estimate(model, graph, Taylor(), IDS)
    half = estimate(model.bfloat16(), graph, Taylor(), IDS)
    for name, scores in half.items():
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, full[name], rtol=0.1, atol=1e-3)
    magnitude = estimate(model, graph, Magnitude(1))["layers.0.mlp:units"]
    weights = [m.weight.float().abs() for m in (model.layers[0].gate, model.layers[0].up)]
    weights.append(model.layers[0].down.weight.float().abs().T)
    torch.testing.assert_close(magnitude, sum(w.sum(1) for w in weights))


def test_works_inside_no_grad_and_inference_mode(model: ToyLM, graph: ToyGraph) -> None:
    expected = estimate(model, graph, Taylor(), IDS)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(dict(estimate(model, graph, Taylor(), IDS)), dict(expected))


def test_a_parameter_the_loss_does_not_reach_scores_zero(model: ToyLM, graph: ToyGraph) -> None:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return model.layers[0](model.embed(batch["input_ids"])).square().mean()

    scores = estimate(model, graph, Taylor(), IDS, loss_fn=loss)
    assert scores["layers.1.mlp:units"].abs().max() == 0
    assert scores["layers.0.mlp:units"].min() > 0


def test_buffers_are_not_scored(model: ToyLM, graph: ToyGraph) -> None:
    before = estimate(model, graph, Magnitude())["channel"]
    model.scale.fill_(100.0)
    assert torch.equal(estimate(model, graph, Magnitude())["channel"], before)


def test_progress(
    model: ToyLM,
    graph: ToyGraph,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = []

    def track(items: Sequence[Any], description: str, show: bool) -> Sequence[Any]:
        shown.append((description, len(items), show))
        return items

    estimate(model, graph, Taylor(), IDS, progress=True)
    assert capsys.readouterr().out == ""
    for module in ("collect", "gradients"):
        monkeypatch.setattr(import_module(f"fxprune.importance.{module}"), "track", track)
    estimate(model, graph, Taylor(), IDS, batch_size=1, progress=True)
    estimate(model, graph, Magnitude(), kinds=["mlp"])
    assert shown == [("Calibrating", 4, True), ("Scoring weights", 6, False)]


# Bad input


def test_taylor_needs_data(model: ToyLM, graph: ToyGraph) -> None:
    with pytest.raises(CriterionError, match=r"Taylor\(.*order=1, .*\) needs calibration data"):
        estimate(model, graph, Taylor())


def test_an_instance_is_needed(model: ToyLM, graph: ToyGraph) -> None:
    with pytest.raises(CriterionError, match=r"give an instance, such as Taylor\(\)"):
        estimate(model, graph, Taylor, IDS)  # type: ignore[arg-type]


def test_weights_that_are_not_there(graph: ToyGraph) -> None:
    for criterion, data in ((Magnitude(), None), (Taylor(), IDS)):
        with pytest.raises(CriterionError, match=r"is on meta: scores need the weights"):
            estimate(ToyLM().to("meta"), graph, criterion, data)


def test_another_model(graph: ToyGraph) -> None:
    with pytest.raises(CriterionError, match=r"has no parameter 'layers\.1"):
        estimate(ToyLM(layers=1), graph, Magnitude())
    with pytest.raises(CriterionError, match=r"'layers\.0\.gate\.weight' has shape \(12, 8\)"):
        estimate(ToyLM(units=12), graph, Magnitude(), kinds=["mlp"])


def test_integer_weights(model: ToyLM, graph: ToyGraph) -> None:
    weight = model.layers[0].up.weight
    model.layers[0].up.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(CriterionError, match=r"'layers\.0\.up\.weight' is torch\.int8"):
        estimate(model, graph, Magnitude())


def test_weights_that_are_not_finite(model: ToyLM, graph: ToyGraph) -> None:
    with torch.no_grad():
        model.layers[1].up.weight[2, 2] = torch.inf
    with pytest.raises(CriterionError, match=r"'layers\.1\.mlp:units' .* 'layers\.1\.up\.weight'"):
        estimate(model, graph, Magnitude(), kinds=["mlp"])


def test_a_loss_that_is_not_finite(model: ToyLM, graph: ToyGraph) -> None:
    before = state(model)
    with torch.no_grad():
        model.embed.weight[:] = torch.nan
    with pytest.raises(CalibrationError, match=r"the loss is nan.* 'embed\.weight' has values"):
        estimate(model, graph, Taylor(), IDS)
    assert state(model) == before


def test_a_loss_that_depends_on_nothing(model: ToyLM, graph: ToyGraph) -> None:
    with pytest.raises(CalibrationError, match="depends on none of the scored parameters"):
        estimate(model, graph, Taylor(), IDS, loss_fn=lambda model, batch: torch.tensor(1.0))


def test_scores_of_the_wrong_shape(model: ToyLM, graph: ToyGraph) -> None:
    class Odd(Criterion):
        def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
            return torch.zeros(group.size + 1)

    with pytest.raises(CriterionError, match="bad or non-finite scores for group"):
        estimate(model, graph, Odd())


def test_groups_of_buffers_alone_score_zero(model: ToyLM, graph: ToyGraph) -> None:
    (channel,) = (group for group in graph.groups if group.name == "channel")
    sites = tuple(site for site in channel.sites if not site.parameter)
    lone = Group("scale", "other", 8, sites, channel.dim, False, None, None)
    alone = ToyGraph(graph.traced, graph.layouts, (lone,))
    assert estimate(model, alone, Magnitude())["scale"].tolist() == [0] * 8


def test_element_criteria_are_open_to_others(model: ToyLM, graph: ToyGraph) -> None:
    class Count(ElementCriterion):
        def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
            return torch.ones_like(weight, dtype=torch.float32)

    assert estimate(model, graph, Count())["layers.0.mlp:units"].tolist() == [24.0] * 10
