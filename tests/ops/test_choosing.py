"""Experts: what a router cannot choose any more, held against a router that never chooses it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations import moe  # noqa: F401  (it registers the op)

import fxprune
from fxprune.errors import PlanError
from fxprune.plan import Plan

EXPERTS, HIDDEN, INNER, CHOSEN, GROUPS = 8, 12, 20, 2, 4


def softmax_first(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, chosen = logits.softmax(-1).topk(CHOSEN, -1)
    return weights / weights.sum(-1, keepdim=True), chosen


def softmax_last(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    values, chosen = logits.topk(CHOSEN, -1)
    return values.softmax(-1), chosen


def sigmoid(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    chosen = (scores + bias).topk(CHOSEN, -1).indices
    return scores.gather(-1, chosen).type_as(scores), chosen


def one_after_the_other(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The best, and the best of the others; far worse ones take no part in the weights."""

    def weights(scores: Tensor, chosen: Tensor) -> Tensor:
        best = scores.amax(-1, keepdim=True)
        far = (best - scores) / logits.abs().clamp(min=best) > 0.5
        return scores.masked_fill(far, -torch.inf).softmax(-1).gather(-1, chosen)

    first = logits.max(-1, keepdim=True).indices
    others = logits.scatter(-1, first, -torch.inf)
    second = others.argmax(-1, keepdim=True)
    both = weights(logits, first), weights(others, second)
    return torch.cat(both, -1), torch.cat((first, second), -1)


def in_groups(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid() + bias
    of_group = scores.view(-1, GROUPS, EXPERTS // GROUPS).topk(1, -1)[0].sum(-1)
    best = of_group.topk(2, -1, sorted=False)[1]
    mask = torch.zeros_like(of_group).scatter_(1, best, 1)
    mask = mask.unsqueeze(-1).expand(-1, GROUPS, EXPERTS // GROUPS).reshape(-1, EXPERTS)
    chosen = scores.masked_fill(~mask.bool(), 0.0).topk(CHOSEN, -1, sorted=False)[1]
    return scores.gather(1, chosen), chosen


def gathered(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    rows, ids = x.repeat_interleave(CHOSEN, 0), chosen.reshape(-1)
    h = torch.bmm(self.up[ids], rows.unsqueeze(-1)).squeeze(-1) + self.shift[ids]
    y = torch.bmm(self.down[ids], F.silu(h).unsqueeze(-1)).squeeze(-1)
    return (y * weights.reshape(-1, 1)).view(x.shape[0], CHOSEN, -1).sum(1)


def sorted_rows(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    ids, order = torch.sort(chosen.reshape(-1))
    counts = torch.histc(ids.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
    ends = counts.cumsum(0, dtype=torch.int32)
    grouped = torch.ops.transformers.grouped_mm_fallback
    h = grouped(x[order // CHOSEN], self.up.transpose(-2, -1), ends) + self.shift[ids]
    y = grouped(F.silu(h), self.down.transpose(-2, -1), ends) * weights.reshape(-1)[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0])
    return y[back].view(x.shape[0], CHOSEN, -1).sum(1)


def all_of_them(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    gates = torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen, weights)
    h = torch.einsum("th,eih->tei", x, self.up) + self.shift
    y = torch.einsum("tei,ehi->teh", F.silu(h), self.down)
    return (y * gates.unsqueeze(-1)).sum(1)


def repeated(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """All tokens for every expert, those that it is not chosen for times 0."""
    gates = torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen, weights)
    rows = x.repeat(EXPERTS, 1) * gates.transpose(0, 1).reshape(-1, 1)
    h = torch.bmm(rows.view(EXPERTS, -1, HIDDEN), self.up.mT)
    y = torch.bmm(F.silu(h), self.down.mT).view(-1, HIDDEN)
    return y.view(EXPERTS, -1, HIDDEN).sum(0)


def one_hot(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    gates = (F.one_hot(chosen, EXPERTS) * weights.unsqueeze(-1)).sum(1)
    h = torch.einsum("th,eih->tei", x, self.up) + self.shift
    y = torch.einsum("tei,ehi->teh", F.silu(h), self.down)
    return (y * gates.unsqueeze(-1)).sum(1)


def one_more_class(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    gates = (F.one_hot(chosen, EXPERTS + 1) * weights.unsqueeze(-1)).sum(1)
    h = torch.einsum("th,eih->tei", x, self.up) + self.shift
    y = torch.einsum("tei,ehi->teh", F.silu(h), self.down)
    return (y * gates[:, :EXPERTS].unsqueeze(-1)).sum(1)


class Block(nn.Module):
    def __init__(self, choose: Any, run: Any) -> None:
        super().__init__()
        self.choose, self.run = choose, run
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.bias = nn.Parameter(0.1 * torch.randn(EXPERTS))
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN))
        self.shift = nn.Parameter(torch.randn(EXPERTS, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.run(self, x, *self.choose(self.router(x), self.bias))


class Model(nn.Module):
    def __init__(self, choose: Any, run: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, HIDDEN), nn.Linear(HIDDEN, 5)
        self.blocks = nn.ModuleList(Block(choose, run) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


CHOICES = (softmax_first, softmax_last, sigmoid, in_groups)
RUNS = (gathered, sorted_rows, all_of_them, one_hot)
X = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))


def built(choose: Any, run: Any) -> tuple[Model, fxprune.Traced]:
    torch.manual_seed(0)
    model = Model(choose, run).eval()
    return model, fxprune.trace(model, (X,))


def never_chosen(model: Model, plan: Plan, graph: fxprune.DependencyGraph) -> nn.Module:
    """The model with routers that score the removed experts so low that they are not chosen."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, kept in plan.kept.items():
            group = graph[name]
            block: Any = other.get_submodule(name.partition(":")[0])
            gone = sorted(set(range(group.size)) - set(kept))
            if group.kind == "expert":
                where = torch.zeros(EXPERTS, dtype=torch.bool)
                if group.size == EXPERTS:
                    where[gone] = True
                else:
                    table = where.view(GROUPS, EXPERTS // GROUPS)
                    (table if group.size == GROUPS else table.T)[gone] = True
                block.router.bias[where] = -1e9
                block.bias[where] = -1e9
            elif group.kind == "mlp":
                block.down[..., gone] = 0
    return other


@pytest.mark.parametrize(
    ("choose", "run"),
    [
        pytest.param(
            choose,
            run,
            id=f"{choose.__name__}-{run.__name__}",
            # Each choice and each way to run stands beside two others: the rules know no pairs.
            marks=() if (j - i) % len(RUNS) < 2 else pytest.mark.slow,
        )
        for i, choose in enumerate(CHOICES)
        for j, run in enumerate(RUNS)
    ]
    + [
        pytest.param(choose, run, id=f"{choose.__name__}-{run.__name__}")
        for choose, run in (
            (one_after_the_other, gathered),
            (one_after_the_other, sorted_rows),
            (softmax_first, repeated),
            (softmax_first, one_more_class),
        )
    ],
)
def test_experts_and_their_units_go(choose: Any, run: Any) -> None:
    model, traced = built(choose, run)
    graph = fxprune.discover(traced)
    kinds = {(group.kind, group.size) for group in graph.groups}
    assert ("mlp", INNER) in kinds
    assert ("channel", HIDDEN) in kinds
    experts = [group for group in graph.groups if group.kind == "expert"]
    assert {group.size for group in experts} == ({4, 2} if choose is in_groups else {EXPERTS})
    assert all(group.normalised for group in experts)
    choice = np.random.default_rng(0)
    for _ in range(3):
        kept = {
            group.name: sorted(
                choice.permutation(group.size)[
                    : choice.integers(group.least, group.size + 1)
                ].tolist()
            )
            for group in graph.groups
            if group.kind in ("expert", "mlp")
        }
        plan = Plan.of(graph, kept)
        small = fxprune.rewrite(traced, plan)
        fxprune.verify(traced, small, plan)
        for x in (X, torch.randn(23, 6)):
            torch.testing.assert_close(
                small(x), never_chosen(model, plan, graph)(x), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("choose", [softmax_first, one_after_the_other])
def test_as_many_experts_stay_as_are_chosen(choose: Any) -> None:
    _, traced = built(choose, gathered)
    graph = fxprune.discover(traced)
    (first, *_) = (group for group in graph.groups if group.kind == "expert")
    assert first.least == CHOSEN
    with pytest.raises(PlanError, match="keeps 1 units: 2 are chosen"):
        fxprune.rewrite(traced, Plan.of(graph, {first.name: (3,)}))
    scores = fxprune.estimate(traced.module, graph, fxprune.Magnitude())
    plan = fxprune.select(
        graph, scores, budget=fxprune.Budget(units=0.9), kinds="expert", ranking="local"
    )
    assert {len(units) for units in plan.kept.values()} == {CHOSEN}


def in_parts(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """As many rows for each expert as the data says."""
    order = torch.argsort(chosen.reshape(-1))
    counts = torch.zeros(x.shape[0], EXPERTS).scatter(1, chosen, 1).long().sum(0).tolist()
    parts = x[order // CHOSEN].split(counts)
    h = torch.cat([F.silu(F.linear(p, w)) for p, w in zip(parts, self.up, strict=True)])
    parts = h.split(counts)
    y = torch.cat([F.linear(p, w) for p, w in zip(parts, self.down, strict=True)])
    y = y * weights.reshape(-1)[order, None]
    return torch.zeros(x.shape[0], HIDDEN).index_add(0, order // CHOSEN, y)


def test_sizes_that_the_data_decides_on_are_no_obstacle_to_units() -> None:
    model, traced = built(softmax_first, in_parts)
    graph = fxprune.discover(traced)
    kinds = {group.kind for group in graph.groups}
    assert "mlp" in kinds
    assert "channel" in kinds
    assert "expert" not in kinds
    units = {group.name: range(group.size - 3) for group in graph.groups}
    plan = Plan.of(graph, {name: tuple(kept) for name, kept in units.items()})
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    plan = Plan.of(graph, {n: tuple(k) for n, k in units.items() if graph[n].kind == "mlp"})
    small = fxprune.rewrite(traced, plan)
    x = torch.randn(23, 6)
    torch.testing.assert_close(small(x), never_chosen(model, plan, graph)(x), rtol=1e-4, atol=1e-4)


def reckoned(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Half of the experts share their weights: expert e has those of e // 2."""
    ids = chosen.reshape(-1) // 2
    h = torch.bmm(self.up[ids], x.repeat_interleave(CHOSEN, 0).unsqueeze(-1))
    y = torch.bmm(self.down[ids], F.silu(h)).squeeze(-1)
    return (y * weights.reshape(-1, 1)).view(x.shape[0], CHOSEN, -1).sum(1)


def compared(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    gates = ((chosen.unsqueeze(-1) == torch.arange(EXPERTS)) * weights.unsqueeze(-1)).sum(1)
    h = torch.einsum("th,eih->tei", x, self.up)
    y = torch.einsum("tei,ehi->teh", F.silu(h), self.down)
    return (y * gates.unsqueeze(-1)).sum(1)


@pytest.mark.parametrize("run", [reckoned, compared], ids=lambda each: each.__name__)
def test_positions_that_are_reckoned_with_freeze_the_experts(run: Any) -> None:
    _, traced = built(softmax_first, run)
    graph = fxprune.discover(traced)
    assert not [group for group in graph.groups if group.kind == "expert"]
    frozen = [group for group in graph.frozen if group.name.endswith("router:units")]
    assert frozen
    assert "positions are reckoned with" in str(frozen[0].reason)


def test_a_softmax_that_nothing_is_chosen_from_freezes() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(6, EXPERTS), nn.Linear(EXPERTS, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.gate(x).softmax(-1))

    graph = fxprune.discover(fxprune.trace(Mix(), (X,)))
    (group,) = (each for each in graph.frozen if each.size == EXPERTS)
    assert "softmax over this axis" in str(group.reason)


def test_experts_one_by_one_are_captured_together() -> None:
    """What the data hits is in no graph; the sum is."""
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, vocab_size=40,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM._from_config(config, experts_implementation="eager")
    traced = fxprune.trace(model.eval())
    assert model.config._experts_implementation == "eager"
    kinds = [group.kind for group in fxprune.discover(traced).groups]
    assert kinds.count("expert") == 1
