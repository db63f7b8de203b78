"""The one verb, end to end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import costs
from fxprune.errors import CalibrationError, CriterionError, SelectionError
from fxprune.importance import Criterion
from tests.llama import tiny_llama

IDS = torch.arange(160).view(8, 20) % 90
OTHERS = torch.randint(90, (8, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A tiny Llama that knows IDS, so that its loss there has something to lose."""
    model = tiny_llama()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.requires_grad_(True)


def loss(model: nn.Module, ids: torch.Tensor = IDS) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_prune() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.2, calibration=IDS)
    total = sum(p.numel() for p in model.parameters())
    assert result.plan.parameters_before == total
    assert result.plan.parameters_after <= 0.8 * total
    assert sum(p.numel() for p in result.graph_module.parameters()) == result.plan.parameters_after
    assert result.report is not None
    assert result.graph_module(input_ids=IDS[:3, :7]).logits.shape == (3, 7, 90)
    again = fxprune.select(result.graph, result.scores, 0.3)
    assert again.parameters_after <= 0.7 * total


def test_the_same_command_gives_the_same_plan() -> None:
    one, two = (
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion=fxprune.Random(3), verify=False)
        for _ in range(2)
    )
    assert one.plan == two.plan
    assert one.report is None


def test_consume_is_verified_against_the_original() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.3, criterion=fxprune.Magnitude(), consume=True)
    assert result.report is not None
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0


def test_any_module_with_its_own_loss() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    x = torch.randn(16, 6)
    result = fxprune.prune(
        model,
        (x,),
        pruning_ratio=0.5,
        calibration={"input": x},
        loss_fn=lambda m, batch: m(batch["input"]).square().mean(),
    )
    assert result.plan.parameters_after <= 0.5 * result.plan.parameters_before


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_the_range_is_refused_at_once(ratio: float) -> None:
    with pytest.raises(SelectionError, match=r"outside \[0, 1\)"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=ratio)


def test_taylor_needs_data() -> None:
    with pytest.raises(CriterionError, match="calibration"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2)


def test_ratio_zero_changes_nothing() -> None:
    result = fxprune.prune(tiny_llama(), pruning_ratio=0, criterion=fxprune.Magnitude())
    assert not result.plan.kept


# Budgets


def test_macs_and_kv_cache() -> None:
    budget = fxprune.Budget(macs=0.7, kv_cache=0.67)
    result = fxprune.prune(tiny_llama(), budget=budget, criterion=fxprune.Magnitude())
    counts = result.plan.kept_counts(result.graph)
    # One of three heads stays in one layer, or two in both: 48 of 72 numbers.
    assert costs.kv_cache(result.graph, counts) == 48
    whole = costs.macs(result.graph)
    assert 0.69 * whole < costs.macs(result.graph, counts) <= 0.7 * whole
    small = fxprune.discover(fxprune.trace(result.graph_module, kwargs={"input_ids": IDS}))
    assert costs.macs(small) == costs.macs(result.graph, counts)


def test_units_are_rounded_as_in_llm_pruner() -> None:
    result = fxprune.prune(
        tiny_llama(), budget=fxprune.Budget(units=0.35), criterion=fxprune.Magnitude()
    )
    sizes = {name.rpartition(":")[2]: len(kept) for name, kept in result.plan.kept.items()}
    # 40 - int(40 * 0.65) = 14 neurons; of 18 channels 7 (of 3 heads, 6 each, 1) go.
    assert sizes == {"units": 26, "heads": 2}


def test_one_goal() -> None:
    for goal in ({}, {"pruning_ratio": 0.2, "budget": fxprune.Budget(macs=0.5)}):
        with pytest.raises(SelectionError, match="either pruning_ratio or budget"):
            fxprune.prune(nn.Linear(2, 2), **goal)


# Rankings


def test_the_ranking_that_belongs_to_a_criterion() -> None:
    model, criterion = tiny_llama(), fxprune.FLAP()
    options: dict[str, Any] = {"criterion": criterion, "calibration": OTHERS, "verify": False}

    def plans(**selection: Any) -> tuple[fxprune.Plan, fxprune.Plan]:
        """Of prune, and of select with the options that FLAP wants."""
        result = fxprune.prune(model, pruning_ratio=0.2, **options, **selection)
        wanted = {"normalise": "none", "cost_aware": False, **selection}
        return result.plan, fxprune.select(result.graph, result.scores, 0.2, **wanted)

    ours, theirs = plans(ranking="global")
    assert ours == theirs
    plain = fxprune.prune(model, pruning_ratio=0.2, **options, ranking="global", normalise="kind")
    assert plain.plan != ours  # what the caller says goes before
    ours, theirs = plans(ranking="global", normalise="kind", cost_aware=True)
    assert ours == theirs
    result = fxprune.prune(model, pruning_ratio=0.2, **options)
    assert result.plan == fxprune.select(result.graph, result.scores, 0.2)


def test_something_else_than_a_criterion() -> None:
    for wrong in ("taylor", fxprune.Taylor, [fxprune.Magnitude()]):
        with pytest.raises(CriterionError, match="not a criterion"):
            fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion=wrong, ranking="global")


# Steps


def test_steps_read_a_generator_more_than_once() -> None:
    halves = (IDS[:4], IDS[4:])
    found = [
        fxprune.prune(
            tiny_llama(), pruning_ratio=0.3, steps=3, calibration=data, verify=False,
            compensation="least-squares",
        )
        for data in (list(halves), (each for each in halves))
    ]  # fmt: skip
    assert found[0].plan == found[1].plan
    pairs = zip(found[0].graph_module.parameters(), found[1].graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_steps_are_another_plan_than_one() -> None:
    one, three = (
        fxprune.prune(tiny_llama(), pruning_ratio=0.4, steps=n, calibration=IDS) for n in (1, 3)
    )
    assert one.plan.kept != three.plan.kept
    assert three.plan.parameters_after <= 0.6 * three.plan.parameters_before
    assert all(torch.equal(one.scores[name], three.scores[name]) for name in one.scores)
    assert three.report is not None


# Compensation


@pytest.mark.parametrize("method", ["bias", "least-squares"])
def test_compensation_lowers_the_loss(trained: nn.Module, method: Any) -> None:
    before = copy.deepcopy(trained.state_dict())
    options: dict[str, Any] = {"criterion": fxprune.Magnitude(), "calibration": IDS}
    plain = fxprune.prune(trained, pruning_ratio=0.25, **options, gain_bias=method == "bias")
    mended = fxprune.prune(trained, pruning_ratio=0.25, **options, compensation=method)
    assert mended.plan == plain.plan
    assert bool(mended.plan.biases) == (method == "bias")
    assert mended.report is not None
    assert plain.compensation is None
    assert mended.compensation is not None
    assert mended.compensation.method == method
    assert loss(trained) < loss(mended.graph_module) < loss(plain.graph_module)
    assert all(torch.equal(before[n], p) for n, p in trained.state_dict().items())
    parameters = sum(p.numel() for p in mended.graph_module.parameters())
    assert parameters == mended.plan.parameters_after


def test_consume_keeps_what_compensation_needs(trained: nn.Module) -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.25, "criterion": fxprune.Magnitude()}
    options |= {"calibration": IDS, "compensation": "least-squares"}
    kept = fxprune.prune(copy.deepcopy(trained), **options)
    consumed = fxprune.prune(copy.deepcopy(trained), **options, consume=True)
    pairs = zip(kept.graph_module.parameters(), consumed.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_data_of_its_own_for_compensation() -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.25, "verify": False}
    options |= {"compensation": "least-squares"}
    with_both = fxprune.prune(
        tiny_llama(), criterion=fxprune.Magnitude(), calibration=IDS, compensation_data=OTHERS,
        **options,
    )  # fmt: skip
    alone = fxprune.prune(
        tiny_llama(), criterion=fxprune.Magnitude(), compensation_data=OTHERS, **options
    )
    pairs = zip(with_both.graph_module.parameters(), alone.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensation": "best", "calibration": IDS}, "choose from bias, least-squares"),
        ({"compensation": "bias"}, "compensation='bias' needs calibration data"),
    ],
)
def test_compensation_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, criterion=fxprune.Magnitude(), **options)


# Scores of an earlier run


def test_scores_are_planned_from_again(tmp_path: Path) -> None:
    first = fxprune.prune(tiny_llama(), pruning_ratio=0.1, calibration=IDS)
    first.scores.save(tmp_path / "scores.safetensors")
    loaded = fxprune.Scores.load(tmp_path / "scores.safetensors")
    again = fxprune.prune(tiny_llama(), pruning_ratio=0.3, scores=loaded)
    fresh = fxprune.prune(tiny_llama(), pruning_ratio=0.3, calibration=IDS)
    assert again.plan == fresh.plan
    assert again.plan.criterion == repr(fxprune.Taylor())
    assert again.scores is loaded
    assert again.report is not None


def test_scores_bring_their_ranking() -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.2, "ranking": "global", "verify": False}
    first = fxprune.prune(tiny_llama(), criterion=fxprune.FLAP(), calibration=OTHERS, **options)
    assert fxprune.prune(tiny_llama(), scores=first.scores, **options).plan == first.plan
    assert first.scores.ranking == dict(fxprune.FLAP.ranking)
    # Scores that say nothing about it rank as select does.
    plain = fxprune.Scores(first.scores, "Own()")
    expected = fxprune.select(first.graph, plain, 0.2, ranking="global")
    assert fxprune.prune(tiny_llama(), scores=plain, **options).plan == expected != first.plan


def test_scores_stand_alone() -> None:
    scores = fxprune.Scores({})
    criterion: Criterion = fxprune.Magnitude()
    with pytest.raises(CriterionError, match="either a criterion or scores="):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=scores, criterion=criterion)
    with pytest.raises(CriterionError, match=r"takes fxprune.Scores, not dict"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=dict(scores))
    with pytest.raises(SelectionError, match="3 steps need new scores"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=scores, steps=3)
    with pytest.raises(SelectionError, match="no scores for group"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, scores=scores)
