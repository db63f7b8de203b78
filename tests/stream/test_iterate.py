"""Pruning in steps: what stays removed, what each step asks for, and on what it is scored."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CalibrationError, GroupError, SelectionError
from fxprune.groups.group import Group
from fxprune.importance import Scores
from fxprune.plan import Plan
from fxprune.select.budget import Budget
from fxprune.select.schedule import goals
from fxprune.stream import iterate as iterating
from fxprune.stream.iterate import iterate
from tests.llama import tiny_llama

IDS = torch.arange(160).view(8, 20) % 90
KINDS = ("mlp", "attention", "channel")


@dataclass
class Seen:
    """Scores and plans of the steps, and the weights that each step was scored with."""

    scores: list[Scores] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    estimate, select = iterating.estimate, iterating.select

    def estimating(model: nn.Module, *args: Any, **options: Any) -> Any:
        found.weights.append(weights(model))
        found.scores.append(estimate(model, *args, **options))
        return found.scores[-1]

    def selecting(graph: Any, scores: Any, **options: Any) -> Plan:
        plan = select(graph, scores, **options)
        if "start" in options:  # not the one that only looks whether the goal can be met
            found.plans.append(plan)
        return plan

    monkeypatch.setattr(iterating, "estimate", estimating)
    monkeypatch.setattr(iterating, "select", selecting)
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def discovered(model: nn.Module) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model))


@torch.no_grad()
def zeroed_by_hand(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the tiny Llama in which neurons, heads and channels of a plan are zero."""
    copied = copy.deepcopy(model)
    parameters = dict(copied.named_parameters())
    for name, kept in plan.kept.items():
        gone = sorted(set(range(plan.sizes[name])) - set(kept))
        place = name.partition(":")[0]
        if name.endswith("mlp:units"):
            parameters[f"{place}.gate_proj.weight"][gone] = 0
            parameters[f"{place}.up_proj.weight"][gone] = 0
            parameters[f"{place}.down_proj.weight"][:, gone] = 0
        elif name.endswith("self_attn:heads"):
            for head in gone:  # of size 6, with two query heads
                parameters[f"{place}.q_proj.weight"][12 * head : 12 * head + 12] = 0
                parameters[f"{place}.k_proj.weight"][6 * head : 6 * head + 6] = 0
                parameters[f"{place}.v_proj.weight"][6 * head : 6 * head + 6] = 0
                parameters[f"{place}.o_proj.weight"][:, 12 * head : 12 * head + 12] = 0
        else:
            assert name.endswith(":channels")
            for parameter in parameters.values():
                for axis, size in enumerate(parameter.shape):
                    # 36 is also the query's width; o_proj reads it and q_proj writes it.
                    if size == 36 and not is_heads(parameters, parameter, axis):
                        parameter.index_fill_(axis, torch.tensor(gone), 0)
    return copied


def is_heads(parameters: dict[str, nn.Parameter], parameter: nn.Parameter, axis: int) -> bool:
    name = next(n for n, p in parameters.items() if p is parameter)
    return (axis == 0 and "q_proj" in name) or (axis == 1 and "o_proj" in name)


@pytest.mark.parametrize("tied", [False, True])
def test_three_steps(seen: Seen, tied: bool) -> None:
    """Channels too: every matrix is then cut on both axes, by two groups."""
    model = tiny_llama(tie_word_embeddings=tied)
    graph, before = discovered(model), weights(model)
    first, plan = iterate(
        model,
        graph,
        fxprune.Taylor(),
        IDS,
        asked=goals(3, 0.45),
        kinds=KINDS,
        selection={"ranking": "global"},
    )
    assert equal(weights(model), before)
    assert plan is seen.plans[-1]
    assert first is seen.scores[0]
    assert equal(first, fxprune.estimate(model, graph, fxprune.Taylor(), IDS, kinds=KINDS))
    assert plan.pruning_ratio == 0.45
    total = sum(p.numel() for p in model.parameters())
    dearest = 3 * 36 * 40 + 50 * 36  # more than any one unit holds
    for number, each in enumerate(seen.plans, start=1):
        most = (1 - 0.15 * number) * total
        assert most - dearest < each.parameters_after <= most
    for earlier, later in zip(seen.plans, seen.plans[1:], strict=False):
        assert earlier.kept
        for name, kept in earlier.kept.items():
            assert set(later.kept[name]) <= set(kept)
    assert any(name.endswith(":channels") for name in seen.plans[0].kept)
    # What the later steps were scored on, and with what result.
    assert equal(seen.weights[0], before)
    for number in (1, 2):
        hand = zeroed_by_hand(model, seen.plans[number - 1])
        assert equal(seen.weights[number], weights(hand))
        expected = fxprune.estimate(hand, graph, fxprune.Taylor(), IDS, kinds=KINDS)
        assert equal(seen.scores[number], expected)
        assert not equal(seen.scores[number], first)


@dataclass(frozen=True)
class Turning(fxprune.Criterion):
    """The first units go first in step 1, the last ones first in step 2."""

    calls: list[str] = field(default_factory=list, hash=False)

    def unit_scores(self, group: Group, evidence: Any) -> Tensor:
        again = group.name in self.calls
        self.calls.append(group.name)
        return torch.arange(group.size).float() * (-1 if again else 1)


def test_what_went_stays_away_whatever_its_later_scores() -> None:
    model = tiny_llama()
    asked = goals(2, budget=Budget(units=0.5))
    _, plan = iterate(model, discovered(model), Turning(), asked=asked, kinds=("mlp",))
    assert set(plan.kept.values()) == {tuple(range(10, 30))}


def test_units_in_steps(seen: Seen) -> None:
    model = tiny_llama()
    asked = goals(2, budget=Budget(units=0.5, rounding="down"))
    _, plan = iterate(model, discovered(model), fxprune.Magnitude(), asked=asked, kinds=("mlp",))
    sizes = [{len(kept) for kept in each.kept.values()} for each in seen.plans]
    assert sizes == [{30}, {20}]
    assert len(plan.kept) == 2


def test_costs_in_steps(seen: Seen) -> None:
    model = tiny_llama()
    graph = discovered(model)
    asked = goals(2, budget=Budget(macs=0.6, kv_cache=0.5))
    iterate(model, graph, fxprune.Magnitude(), asked=asked)
    for plan, macs, cache in zip(seen.plans, (0.8, 0.6), (0.75, 0.5), strict=True):
        counts = plan.kept_counts(graph)
        assert fxprune.costs.macs(graph, counts) <= macs * fxprune.costs.macs(graph)
        assert fxprune.costs.kv_cache(graph, counts) <= cache * fxprune.costs.kv_cache(graph)


def test_scores_only_what_is_pruned() -> None:
    model = tiny_llama()
    graph = discovered(model)
    asked = goals(1, 0.1)
    found, _ = iterate(model, graph, fxprune.Magnitude(), asked=asked, selection={"keep_last": 1})
    # Protected layers as well: another plan may protect others.
    assert set(found) == {g.name for g in graph.groups if g.kind in ("mlp", "attention")}
    names = {"groups": ["residual:channels"]}
    found, plan = iterate(model, graph, fxprune.Magnitude(), asked=asked, selection=names)
    assert set(found) == set(plan.kept) == {"residual:channels"}


def test_an_error_in_a_later_step_leaves_the_model_as_it_was() -> None:
    model = tiny_llama()
    before, calls = weights(model), []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(equal(weights(model), before))
        value: Tensor = model(**batch, labels=batch["input_ids"]).loss
        return value if len(calls) == 1 else value * float("nan")

    with pytest.raises(CalibrationError, match="finite"):
        iterate(model, discovered(model), fxprune.Taylor(), IDS, asked=goals(2, 0.2), loss_fn=loss)
    assert calls == [True, False]
    assert equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        ({"ranking": "best"}, SelectionError, "unknown ranking 'best'"),
        ({"overrides": {"*.nowhere": 0.5}}, SelectionError, "matches no group"),
        ({"multiple_of": 0}, SelectionError, "multiple_of=0"),
        ({"groups": ["nowhere"]}, GroupError, "no group 'nowhere'"),
        ({"keep_first": 2}, SelectionError, "is protected"),
        # Two of three heads and 39 of 40 neurons can go; embedding and head stay.
        ({}, SelectionError, r"0\.\d{4}; choose more kinds|at most 0\.\d{4}"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_estimated(
    seen: Seen, selection: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = tiny_llama()
    with pytest.raises(error, match=message):
        iterate(
            model, discovered(model), fxprune.Taylor(), IDS, asked=goals(2, 0.9),
            selection=selection,
        )  # fmt: skip
    assert not seen.scores


def test_the_smallest_possible_is_named_and_can_be_had() -> None:
    model = tiny_llama()
    graph = discovered(model)
    with pytest.raises(SelectionError, match=r"macs=0\.01 cannot be met") as caught:
        iterate(model, graph, fxprune.Magnitude(), asked=goals(1, budget=Budget(macs=0.01)))
    least = float(str(caught.value).rpartition("a fraction of ")[2].partition(";")[0])
    _, plan = iterate(model, graph, fxprune.Magnitude(), asked=goals(1, budget=Budget(macs=least)))
    sizes = {name: len(kept) for name, kept in plan.kept.items()}
    assert set(sizes.values()) == {1}
