"""What is chosen equals brute force over models with deleted layers."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import fxprune
from fxprune import PPL, AngularDistance, BlockInfluence, Depth, Magnitude, Taylor, bypass
from fxprune.depth import Removal, choose_depth
from fxprune.errors import DepthError
from fxprune.select.blocks import parameters
from tests import zoo
from tests.branches.small import WIDTH, Block
from tests.depth import by_hand
from tests.depth.by_hand import tokens
from tests.zoo import disturb

LAYERS = 5
FREE: dict[str, Any] = {"keep_first": 0, "keep_last": 0}
DATA = [{"input_ids": tokens(4, 12)}, {"input_ids": tokens(2, 9, seed=1)}]


@functools.cache
def llama() -> nn.Module:
    return by_hand.disturbed_llama(LAYERS)


@functools.cache
def traced() -> fxprune.Traced:
    return fxprune.trace(llama())


@functools.cache
def t5() -> fxprune.Traced:
    """Four layers in the encoder and three larger ones in the decoder."""
    config = T5Config(
        d_model=12, d_kv=4, d_ff=10, num_layers=4, num_decoder_layers=3, num_heads=3, vocab_size=101
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    disturb(model)
    return fxprune.trace(model)


T5_DATA = {
    "input_ids": tokens(4, 12),
    "decoder_input_ids": tokens(4, 7, seed=1),
    "labels": tokens(4, 7, seed=2),
}


def block(number: int, path: str = "model.layers") -> str:
    return f"{path}.{number}:block"


def without(*numbers: int) -> float:
    """Perplexity without some layers."""
    return by_hand.perplexity(by_hand.without(llama(), "model.layers", *numbers), DATA)


def choose(
    criterion: Any = None, data: Any = DATA, model: fxprune.Traced | None = None, **options: Any
) -> Removal:
    return choose_depth(model or traced(), Depth(**{**FREE, **options}), criterion, data)


# One-shot


@pytest.mark.parametrize(
    "criterion", [PPL(), BlockInfluence(), Magnitude(p=1), Taylor(), fxprune.Random(2)]
)
def test_one_shot_takes_the_lowest_scores_of_the_whole_model(criterion: Any) -> None:
    scores = {n: float(s) for n, s in fxprune.score_units(traced(), criterion, DATA).items()}
    found = choose(criterion, remove=3)
    lowest = sorted(scores, key=lambda name: scores[name])[:3]
    assert found.removed == tuple(lowest)
    assert {name: float(score) for name, score in found.scores.items()} == scores
    assert found.at_removal == tuple(scores[name] for name in lowest)
    assert found.criterion == f"{criterion!r}, one-shot"


def test_perplexity_is_what_is_looked_at_by_itself() -> None:
    assert choose(remove=2) == choose(PPL(), remove=2)
    assert choose(remove=2).criterion == "PPL(), one-shot"


def test_only_what_may_go_is_scored() -> None:
    found = choose(remove=1, keep_first=1, keep_last=2)
    assert list(found.scores) == [block(1), block(2)]
    assert found.removed == choose(remove=1, keep_first=1, keep_last=2, schedule="greedy").removed


# Greedy


def test_greedy_is_a_loop_over_models_without_the_layer() -> None:
    gone: list[int] = []
    at_removal = []
    for _ in range(3):
        tried = {i: without(*gone, i) for i in range(LAYERS) if i not in gone}
        lowest = min(tried, key=lambda i: tried[i])
        gone.append(lowest)
        at_removal.append(tried[lowest])
    found = choose(schedule="greedy", remove=3)
    assert found.removed == tuple(block(i) for i in gone)
    assert found.at_removal == pytest.approx(at_removal, rel=2e-5)
    assert found.criterion == "PPL(), greedy"
    whole = {block(i): without(i) for i in range(LAYERS)}
    assert {n: float(s) for n, s in found.scores.items()} == pytest.approx(whole, rel=2e-5)
    # Or the loop would not show.
    assert found.removed != choose(remove=3).removed


def test_greedy_over_branches() -> None:
    projections = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    model, gone = llama(), []
    left = [(i, kind) for i in range(LAYERS) for kind in projections]
    for _ in range(3):
        tried = {
            (i, kind): by_hand.zeroed(model, f"model.layers.{i}.{projections[kind]}")
            for i, kind in left
        }
        costs = {unit: by_hand.perplexity(each, DATA) for unit, each in tried.items()}
        lowest = min(costs, key=lambda unit: costs[unit])
        model = tried[lowest]
        left.remove(lowest)
        gone.append(f"model.layers.{lowest[0]}:{lowest[1]}")
    found = choose(schedule="greedy", remove=3, unit="branch")
    assert list(found.removed) == gone
    assert found.at_removal[-1] == pytest.approx(by_hand.perplexity(model, DATA), rel=2e-5)


def test_greedy_is_no_worse_than_one_shot_while_they_start_alike() -> None:
    greedy, one_shot = (choose(schedule=s, remove=2) for s in ("greedy", "one-shot"))
    assert greedy.removed[0] == one_shot.removed[0]
    assert greedy.at_removal[0] == one_shot.at_removal[0] == min(map(float, greedy.scores.values()))
    numbers = [int(name.split(".")[2].split(":")[0]) for name in one_shot.removed]
    assert greedy.at_removal[1] <= without(*numbers) * (1 + 1e-5)


def test_greedy_by_other_criteria() -> None:
    for criterion in (BlockInfluence(), Taylor()):
        found = choose(criterion, schedule="greedy", remove=2)
        short = by_hand.without(llama(), "model.layers", int(found.removed[0].split(".")[2][0]))
        scores = list(fxprune.score_units(fxprune.trace(short), criterion, DATA).values())
        assert found.at_removal[1] == pytest.approx(float(min(scores)), rel=1e-4)


@pytest.mark.parametrize("schedule", ["one-shot", "greedy", "run"])
def test_a_ratio_is_met_and_no_more_goes_than_needed(schedule: Any) -> None:
    found = choose(schedule=schedule, ratio=0.3)
    before = parameters(traced())
    assert parameters(bypass(traced(), found.removed)) <= 0.7 * before
    assert parameters(bypass(traced(), found.removed[:-1])) > 0.7 * before
    assert choose(schedule=schedule, ratio=0.0).removed == ()


def test_greedy_keeps_protecting_layers_of_the_whole_model() -> None:
    found = choose(model=t5(), data=T5_DATA, schedule="greedy", remove=3, keep_first=1, keep_last=1)
    assert sorted(found.removed) == [
        block(1, "decoder.block"),
        block(1, "encoder.block"),
        block(2, "encoder.block"),
    ]


def test_greedy_down_to_nothing() -> None:
    assert sorted(choose(schedule="greedy", remove=LAYERS).removed) == [
        block(i) for i in range(LAYERS)
    ]


def test_data_that_can_be_read_once_is_kept() -> None:
    once = choose(data=iter(DATA), schedule="greedy", remove=2)
    assert once.removed == choose(schedule="greedy", remove=2).removed


# Runs of neighbours


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_is_the_best_of_all_runs(count: int) -> None:
    tried = {
        tuple(range(start, start + count)): without(*range(start, start + count))
        for start in range(LAYERS - count + 1)
    }
    lowest = min(tried, key=lambda run: tried[run])
    found = choose(schedule="run", remove=count)
    assert found.removed == tuple(block(i) for i in lowest)
    assert found.at_removal == pytest.approx((tried[lowest],) * count, rel=2e-5)
    assert list(map(float, found.scores.values())) == pytest.approx(list(tried.values()), rel=2e-5)
    first, last = block(0), block(count - 1)
    assert next(iter(found.scores)) == (first if count == 1 else f"{first} to {last}")


def test_a_run_by_the_angle_from_its_start_to_its_end() -> None:
    tried = {}
    for start in range(LAYERS - 1):
        pairs = []
        for batch in DATA:
            before, _ = by_hand.stream(llama(), batch, f"model.layers.{start}")
            _, behind = by_hand.stream(llama(), batch, f"model.layers.{start + 1}")
            pairs.append((before, behind))
        tried[start] = by_hand.angle(pairs, [None, None])
    found = choose(AngularDistance(), schedule="run", remove=2)
    assert list(map(float, found.scores.values())) == pytest.approx(list(tried.values()), rel=2e-5)
    best = min(tried, key=lambda start: tried[start])
    assert found.removed == (block(best), block(best + 1))


def test_a_run_by_its_weights() -> None:
    each = fxprune.score_units(traced(), Magnitude(p=1))
    found = choose(Magnitude(p=1), None, schedule="run", remove=2)
    sums = [float(a + b) for a, b in itertools.pairwise(each.values())]
    assert list(map(float, found.scores.values())) == pytest.approx(sums)


def test_a_run_lies_outside_the_protected_layers() -> None:
    found = choose(schedule="run", remove=2, keep_first=1, keep_last=1)
    assert list(found.scores) == [f"{block(1)} to {block(2)}", f"{block(2)} to {block(3)}"]


def test_a_run_lies_in_one_stack() -> None:
    found = choose(model=t5(), data=T5_DATA, schedule="run", remove=3)
    starts = [name.partition(":")[0] for name in found.scores]
    assert starts == ["encoder.block.0", "encoder.block.1", "decoder.block.0"]
    with pytest.raises(
        DepthError, match="no run of neighbouring blocks that may go makes 5 blocks"
    ):
        choose(model=t5(), data=T5_DATA, schedule="run", remove=5)


def test_a_ratio_takes_the_shortest_run_from_each_block() -> None:
    """Decoder blocks are larger: one is enough where it takes two of the encoder."""
    sizes = {n: len_of(n) for n in ("encoder.block.2:block", "decoder.block.1:block")}
    assert 1.3 * sizes["encoder.block.2:block"] < sizes["decoder.block.1:block"]
    ratio = 0.99 * sizes["decoder.block.1:block"] / parameters(t5())
    found = choose(model=t5(), data=T5_DATA, schedule="run", ratio=ratio)
    runs = [name.split(" to ") for name in found.scores]
    assert [len(run) for run in runs] == [2, 2, 2, 1, 1, 1]
    assert parameters(bypass(t5(), found.removed)) <= (1 - ratio) * parameters(t5())
    with pytest.raises(DepthError, match=r"neighbouring blocks that may go makes ratio=0\.6"):
        choose(model=t5(), data=T5_DATA, schedule="run", ratio=0.6)


def len_of(name: str) -> int:
    found = fxprune.find_branches(t5())[name]
    return sum(t5().tensors[each].numel() for each in found.parameters)


class Apart(nn.Module):
    """Four blocks, with another matrix between the second and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.first, self.between = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for number, layer in enumerate(self.layers):
            x = layer(self.between(x) if number == 2 else x)
        return x


def test_a_run_has_nothing_between_its_blocks() -> None:
    model = fxprune.trace(Apart(), (torch.randn(3, WIDTH),))
    found = choose(Magnitude(p=1), None, model, schedule="run", remove=2)
    assert list(found.scores) == [
        f"{block(0, 'layers')} to {block(1, 'layers')}",
        f"{block(2, 'layers')} to {block(3, 'layers')}",
    ]
    with pytest.raises(DepthError, match="that may go makes 3 blocks"):
        choose(Magnitude(p=1), None, model, schedule="run", remove=3)


def test_neighbours_in_a_model_that_lost_the_block_between_them() -> None:
    shorter = bypass(traced(), [block(2)])
    found = choose(model=shorter, schedule="run", remove=2)
    assert list(found.scores) == [
        f"{block(0)} to {block(1)}",
        f"{block(1)} to {block(3)}",
        f"{block(3)} to {block(4)}",
    ]
    tried = [without(2, *pair) for pair in ((0, 1), (1, 3), (3, 4))]
    assert list(map(float, found.scores.values())) == pytest.approx(tried, rel=2e-5)


# Without scores, and what all have in common


def test_schedules_without_scores() -> None:
    for schedule, options, expected in (
        ("alternate", {}, (1, 3)),
        ("first", {"remove": 2}, (4, 3)),
    ):
        found = choose(None, None, schedule=schedule, **options)
        assert found.removed == tuple(block(i) for i in expected)
        assert (found.scores, found.at_removal, found.criterion) == ({}, (), schedule)


@pytest.mark.parametrize("schedule", ["one-shot", "greedy", "run"])
def test_the_choice_can_be_bypassed_and_planned(schedule: Any) -> None:
    found = choose(schedule=schedule, remove=2)
    shorter = bypass(traced(), found.removed)
    plan = fxprune.Plan.of(fxprune.discover(shorter), {})
    assert sorted(plan.removed) == sorted(found.removed)
    fxprune.verify(traced(), fxprune.rewrite(traced(), plan), plan)


def test_options_of_the_scores_reach_them() -> None:
    whole = choose_depth(traced(), Depth(remove=1, **FREE), Taylor(), DATA)
    batch = choose_depth(traced(), Depth(remove=1, **FREE), Taylor(), DATA, batch_size=1)
    assert list(map(float, batch.scores.values())) == pytest.approx(
        list(map(float, whole.scores.values())), rel=1e-4
    )
    other = choose_depth(
        traced(), Depth(remove=1, **FREE), Taylor(), DATA,
        loss_fn=lambda model, batch: model(input_ids=batch["input_ids"]).logits.square().mean(),
    )  # fmt: skip
    assert list(map(float, other.scores.values())) != pytest.approx(
        list(map(float, whole.scores.values())), rel=1e-2
    )


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    choose_depth(traced(), Depth(remove=2, schedule="greedy", **FREE), PPL(), DATA, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "scanning 5 units ...",
        "1 removed, scoring what is left ...",
        "scanning 4 units ...",
    ]


def test_images() -> None:
    entry = zoo.BY_NAME["resnet"]
    (image,), _ = entry.example()
    data = {"image": image, "labels": torch.tensor([0, 6, 2, 2, 1])}
    model = zoo.traced("resnet", "eager")
    found = choose(model=model, data=data, schedule="greedy", remove=2)
    assert set(found.removed) < {"plain:block", "depthwise:block", "grouped:block"}
    shorter = bypass(model, found.removed)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(shorter.graph_module(image), data["labels"])
    assert found.at_removal[1] == pytest.approx(float(loss.exp()), rel=1e-5)
