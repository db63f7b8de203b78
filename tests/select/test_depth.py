"""How many blocks go and which: protection, counts, ratios, refusals, published sizes."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import Budget, Depth, bypass, select
from fxprune.depth import choose_depth
from fxprune.errors import CriterionError, DepthError, SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.select.blocks import candidates, choose_units, enough, parameters
from tests import zoo
from tests.costs.published import graph_of
from tests.depth.test_search import t5
from tests.llama import tiny_llama

LAYERS = 8
FREE: dict[str, Any] = {"keep_first": 0, "keep_last": 0}


@functools.cache
def llama() -> fxprune.Traced:
    """Eight layers, without weights."""
    with torch.device("meta"):
        model = tiny_llama(num_hidden_layers=LAYERS)
    return fxprune.trace(model)


def block(number: int, path: str = "model.layers") -> str:
    return f"{path}.{number}:block"


def blocks(*numbers: int, path: str = "model.layers") -> tuple[str, ...]:
    return tuple(block(number, path) for number in numbers)


def names(traced: fxprune.Traced, depth: Depth) -> tuple[str, ...]:
    return tuple(unit.name for unit in candidates(traced, depth))


# Later layers score lower, but for two.
SCORES = {
    block(i): torch.tensor([float(score)]) for i, score in enumerate([7, 6, 1, 4, 5, 3, 2, 0])
}


def one_shot(**options: Any) -> tuple[str, ...]:
    return choose_units(llama(), SCORES, Depth(**{**FREE, **options}))


# What a Depth may say


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either remove=, a number of units, or ratio="),
        ({"remove": 1, "ratio": 0.2}, "either remove=, a number of units, or ratio="),
        ({"schedule": "alternate", "remove": 1}, "alternate takes every other block"),
        ({"schedule": "alternate", "ratio": 0.2}, "alternate takes every other block"),
        ({"remove": 0}, "remove=0: a whole number, at least 1"),
        ({"remove": -2}, "remove=-2: a whole number"),
        ({"remove": 1.5}, "remove=1.5: a whole number"),
        ({"remove": True}, "remove=True: a whole number"),
        ({"remove": 1, "keep_first": -1}, "keep_first and keep_last are at least 0"),
        ({"remove": 1, "keep_last": -1}, "keep_first and keep_last are at least 0"),
        ({"remove": 1, "schedule": "best"}, "no schedule 'best': take one-shot, greedy, run"),
        ({"remove": 1, "unit": "layer"}, "no unit 'layer': take block, attention, mlp, other"),
        ({"remove": 1, "schedule": "run", "unit": "mlp"}, "run takes blocks, not unit='mlp'"),
        ({"remove": 1, "schedule": "first", "unit": "branch"}, "first takes blocks"),
        ({"schedule": "alternate", "unit": "attention"}, "alternate takes blocks"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DepthError, match=message):
        Depth(**options)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_outside_the_range(ratio: float) -> None:
    with pytest.raises(SelectionError, match=r"outside \[0, 1\)"):
        Depth(ratio=ratio)


# Protection


def test_the_first_four_and_last_two_are_protected() -> None:
    assert names(llama(), Depth(remove=1)) == blocks(4, 5)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0, 0, range(8)), (2, 0, range(2, 8)), (0, 3, range(5)), (3, 4, [3]), (1, 1, range(1, 7))],
)
def test_protection_as_asked(first: int, last: int, expected: list[int]) -> None:
    depth = Depth(remove=1, keep_first=first, keep_last=last)
    assert names(llama(), depth) == blocks(*expected)


@pytest.mark.parametrize("unit", ["attention", "mlp", "branch"])
def test_protection_counts_layers_and_not_branches(unit: str) -> None:
    kinds = ("attention", "mlp") if unit == "branch" else (unit,)
    expected = tuple(f"model.layers.{i}:{kind}" for i in (4, 5) for kind in kinds)
    assert names(llama(), Depth(remove=1, unit=unit)) == expected


def test_every_stack_is_protected() -> None:
    depth = Depth(remove=1, keep_first=1, keep_last=1)
    assert names(t5(), depth) == (
        *blocks(1, 2, path="encoder.block"),
        *blocks(1, path="decoder.block"),
    )
    assert names(t5(), Depth(remove=1, keep_first=2, keep_last=1)) == blocks(
        2, path="encoder.block"
    )


def test_layers_of_the_whole_model_count_where_some_are_gone() -> None:
    shorter = bypass(llama(), blocks(1, 4, 7))
    depth = Depth(remove=1, keep_first=2, keep_last=2)
    assert names(shorter, depth) == blocks(2, 3, 5)
    shorter = bypass(t5(), [*blocks(0, 1, path="encoder.block"), "decoder.block.1:mlp"])
    assert names(shorter, Depth(remove=1, keep_first=1, keep_last=1)) == (
        *blocks(2, path="encoder.block"),
        *blocks(1, path="decoder.block"),
    )


# By scores


def test_the_lowest_scores_go_first() -> None:
    assert one_shot(remove=4) == blocks(7, 2, 6, 5)
    assert one_shot(remove=3, keep_first=3, keep_last=1) == blocks(6, 5, 3)
    assert one_shot(remove=8) == blocks(7, 2, 6, 5, 3, 4, 1, 0)


def test_equal_scores_go_by_position() -> None:
    scores = dict.fromkeys(SCORES, torch.tensor([1.0]))
    assert choose_units(llama(), scores, Depth(remove=3, **FREE)) == blocks(0, 1, 2)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.2, 0.5, 0.8])
def test_a_ratio_is_met_and_no_more_units_go_than_needed(ratio: float) -> None:
    before = sum(p.numel() for p in llama().module.parameters())
    order = one_shot(remove=8)
    removed = one_shot(ratio=ratio)
    assert removed == order[: len(removed)]
    each = sum(p.numel() for p in llama().module.model.layers[0].parameters())  # type: ignore[union-attr,index]
    assert len(removed) * each >= ratio * before
    assert not removed or (len(removed) - 1) * each < ratio * before
    assert parameters(bypass(llama(), removed)) == before - len(removed) * each
    assert enough(llama(), removed, Depth(ratio=ratio))
    assert not removed or not enough(llama(), removed[:-1], Depth(ratio=ratio))


def test_a_ratio_of_the_whole_model_where_some_are_gone() -> None:
    """The bypassed model is what a further ratio is of."""
    shorter = bypass(llama(), blocks(0))
    before = parameters(shorter)
    removed = choose_units(shorter, SCORES, Depth(ratio=0.1, **FREE))
    assert parameters(bypass(shorter, removed)) <= 0.9 * before < parameters(bypass(shorter, ()))


def test_units_of_several_stacks_compete() -> None:
    encoder, decoder = "encoder.block", "decoder.block"
    scores = {
        **{block(i, encoder): torch.tensor([i + 0.5]) for i in range(4)},
        **{block(i, decoder): torch.tensor([2.0 - i]) for i in range(3)},
    }
    chosen = choose_units(t5(), scores, Depth(remove=3, **FREE))
    assert chosen == (block(2, decoder), block(0, encoder), block(1, decoder))


# Without scores


def test_every_other_block() -> None:
    assert choose_units(llama(), {}, Depth(schedule="alternate")) == blocks(1, 3, 5, 7)
    assert choose_units(t5(), {}, Depth(schedule="alternate")) == (
        *blocks(1, 3, path="encoder.block"),
        *blocks(1, path="decoder.block"),
    )


def test_the_first_blocks_stay() -> None:
    assert choose_units(llama(), {}, Depth(schedule="first", remove=3)) == blocks(7, 6, 5)
    removed = choose_units(llama(), {}, Depth(schedule="first", ratio=0.3))
    assert removed == blocks(7, 6, 5, 4)[: len(removed)]
    assert enough(llama(), removed, Depth(ratio=0.3))
    assert not enough(llama(), removed[:-1], Depth(ratio=0.3))


# Refusals


@pytest.mark.parametrize("schedule", ["one-shot", "greedy", "run"])
def test_more_than_may_go(schedule: Any) -> None:
    message = (
        "3 of LlamaForCausalLM's 8 removable units (block) cannot go: 2 may, 6 more are protected"
    )
    with pytest.raises(DepthError, match=re.escape(message)):
        choose_depth(llama(), Depth(remove=3, schedule=schedule))
    with pytest.raises(DepthError, match=r"9 of .* \(block\) cannot go: 8 may$"):
        choose_depth(llama(), Depth(remove=9, schedule=schedule, **FREE))


@pytest.mark.parametrize("schedule", ["one-shot", "greedy", "run", "first"])
def test_a_ratio_beyond_what_may_go_says_what_is_possible(schedule: Any) -> None:
    """Before anything is scored: there are no weights here."""
    before = parameters(llama())
    kept = range(LAYERS) if schedule == "first" else range(2, 7)
    least = parameters(bypass(llama(), blocks(*kept)))
    message = (
        f"ratio=0.95 cannot be met by removing units (block): without all that may go {least:,} of "
        f"{before:,} parameters stay, a ratio of {1 - least / before:.4f}"
    )
    with pytest.raises(DepthError, match=re.escape(message)):
        choose_depth(llama(), Depth(ratio=0.95, schedule=schedule, keep_first=2, keep_last=1))
    with pytest.raises(DepthError, match=r"units \(branch\)"):
        choose_depth(llama(), Depth(ratio=0.95, unit="branch"))


def test_a_model_without_residual_branches() -> None:
    traced = zoo.traced("perceptron", "eager")
    for schedule in ("one-shot", "greedy", "run", "first"):
        with pytest.raises(DepthError, match=r"^Perceptron has no block that can be removed$"):
            choose_depth(traced, Depth(remove=1, schedule=schedule, **FREE))  # type: ignore[arg-type]
    with pytest.raises(DepthError, match="Perceptron has no block"):
        choose_depth(traced, Depth(schedule="alternate"))


class Whole(nn.Module):
    """One residual branch, in no module of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(5, 4), nn.Linear(4, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.down(torch.relu(self.up(x)))


def test_no_unit_of_that_kind_says_why() -> None:
    traced = fxprune.trace(Whole(), (torch.randn(3, 5),))
    message = r"Whole has no block that can be removed \(:block: it is the whole model"
    with pytest.raises(DepthError, match=message):
        candidates(traced, Depth(remove=1))
    assert names(traced, Depth(remove=1, unit="mlp", **FREE)) == (":mlp",)
    with pytest.raises(DepthError, match="ResidualConvNet has no attention that can be removed"):
        candidates(zoo.traced("resnet", "eager"), Depth(remove=1, unit="attention"))


def test_scores_that_do_not_fit() -> None:
    with pytest.raises(CriterionError, match=r"no score for 'model.layers.4:block'"):
        choose_units(llama(), {block(5): 1.0}, Depth(remove=1))
    with pytest.raises(CriterionError, match=r"no score for 'model.layers.0:mlp'"):
        choose_units(llama(), SCORES, Depth(remove=1, unit="mlp", **FREE))
    # Those of protected units are not needed.
    assert choose_units(llama(), {block(4): 1.0, block(5): 0.0}, Depth(remove=1)) == blocks(5)


@pytest.mark.parametrize("schedule", ["greedy", "run"])
def test_schedules_that_need_new_scores(schedule: Any) -> None:
    with pytest.raises(DepthError, match=f"{schedule} scores units itself: call fxprune.choose"):
        choose_units(llama(), SCORES, Depth(remove=1, schedule=schedule))


# As a plan


def test_select_makes_a_plan() -> None:
    graph = fxprune.discover(llama())
    scores = fxprune.Scores(SCORES, "PPL()")
    plan = select(graph, scores, depth=Depth(remove=2, **FREE))
    assert plan.removed == blocks(2, 7)  # in graph order
    assert plan.criterion == "PPL()"
    assert not plan.kept
    each = sum(p.numel() for p in llama().module.model.layers[0].parameters())  # type: ignore[union-attr,index]
    assert plan.parameters_before == sum(p.numel() for p in llama().module.parameters())
    assert plan.parameters_after == plan.parameters_before - 2 * each
    plan.check(fxprune.discover(bypass(llama(), plan.removed)))
    assert select(graph, SCORES, depth=Depth(schedule="alternate")).removed == blocks(1, 3, 5, 7)


def test_select_goes_on_with_units_of_groups() -> None:
    graph = fxprune.discover(llama())
    plan = select(graph, SCORES, depth=Depth(remove=2, **FREE))
    shorter = fxprune.discover(bypass(llama(), plan.removed))
    scores = {group.name: torch.arange(group.size).float() for group in shorter.groups}
    both = select(shorter, scores, 0.4)
    assert both.removed == plan.removed
    assert both.parameters_before == plan.parameters_before
    # The ratio is of the whole model.
    assert both.parameters_after <= 0.6 * both.parameters_before < plan.parameters_after
    assert not any(name.startswith(("model.layers.2.", "model.layers.7.")) for name in both.kept)


@pytest.mark.parametrize(
    "other",
    [
        {"pruning_ratio": 0.2},
        {"pruning_ratio": 0.0},
        {"budget": Budget(params=0.5)},
        {"keep_first": 1},
        {"keep_last": 1},
        {"groups": ["model.layers.0.mlp:units"]},
        {"overrides": {"*": 0.1}},
        {"gain_bias": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_select_in_depth_goes_alone(other: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match="depth= has scores and options of its own"):
        select(fxprune.discover(llama()), SCORES, depth=Depth(remove=1), **other)


# Published sizes: Shortened LLaMA (arXiv 2402.02834), and LLM-Pruner's layer-wise half

PUBLISHED = {
    "llama7b": {
        6: 5_524_115_456,
        9: 4_916_965_376,
        11: 4_512_198_656,
        15: 3_702_665_216,
        20: 2_690_748_416,
        26: 1_476_448_256,  # all that "+" allows
    },
    "llama13b": {8: 10_478_228_480, 11: 9_526_615_040, 15: 8_257_797_120},
}


def random_scores(graph: DependencyGraph) -> fxprune.Scores:
    return fxprune.score_units(graph.traced, fxprune.Random())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    graph = graph_of(name)
    for number, expected in PUBLISHED[name].items():
        plan = select(graph, random_scores(graph), depth=Depth(remove=number))
        assert len(plan.removed) == number
        assert plan.parameters_after == expected
        first = choose_units(graph.traced, {}, Depth(remove=number, schedule="first"))
        assert parameters(bypass(graph.traced, first)) == expected
        for more, count in ((1000, number), (-1000, number + 1)):
            ratio = 1 - (expected + more) / plan.parameters_before
            taken = choose_units(graph.traced, {}, Depth(ratio=ratio, schedule="first"))
            assert len(taken) == count


@pytest.mark.slow
def test_published_size_of_every_other_block() -> None:
    graph = graph_of("llama7b")
    plan: Plan = select(graph, {}, depth=Depth(schedule="alternate"))
    assert plan.removed == blocks(*range(1, 32, 2))
    assert plan.parameters_after == 3_500_281_856
    with pytest.raises(DepthError, match=r"27 of .* 32 removable units .* 26 may, 6 more are"):
        select(graph, random_scores(graph), depth=Depth(remove=27))
