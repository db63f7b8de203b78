"""Published sizes of LLaMA models, to the integer, from the config alone.

LLM-Pruner (arXiv 2305.11627, table 3): LLaMA-7B, block-wise and channel-wise; the numbers behind
Llama-3-8B and TinyLlama are printed in its repository. Wanda-sp and FLAP: arXiv 2312.11983. Where
only rounded numbers were published, the integers are those that round to them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import fxprune
from benches.allocator import memory_estimate
from benches.published import published_macs
from fxprune.costs import macs
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.measure import report
from fxprune.plan import Plan
from fxprune.select.budget import Budget
from fxprune.select.select import select
from tests.costs.published import CONFIGS, graph_of

pytestmark = pytest.mark.slow  # large models take long to trace


@dataclass(frozen=True)
class Row:
    """One published model.

    Attributes:
        params: parameters.
        macs: of 64 tokens, in the paper's convention.
        memory: bytes in fp16 with rotary tables for 2048 positions.
        options: of :func:`fxprune.select.select`; none for the whole model.
    """

    params: int
    macs: int
    memory: int
    options: dict[str, Any] = field(default_factory=dict)


def blocks(units: float, first: int, last: int) -> dict[str, Any]:
    return {"budget": Budget(units=units), "keep_first": first, "keep_last": last}


def channels(units: float) -> dict[str, Any]:
    return {"budget": Budget(units=units), "kinds": ("channel",)}


def wanda(units: float) -> dict[str, Any]:
    """``int(units * n)`` of every group go."""
    return {"budget": Budget(units=units, rounding="down")}


ROWS: dict[str, Row] = {
    "llama7b.dense": Row(6_738_415_616, 424_021_065_728, 13_510_402_048),
    "llama7b.block20": Row(5_422_977_024, 339_602_644_992, 10_879_524_864, blocks(0.25, 4, 2)),
    "llama7b.block50": Row(3_350_188_032, 206_585_210_112, 6_851_387_392, blocks(0.6, 3, 1)),
    "llama7b.block50.text": Row(3_592_204_288, 222_116_342_656, 7_327_031_296, blocks(0.6, 4, 2)),
    "llama7b.channel20": Row(5_389_416_396, 339_361_064_448, 10_867_038_720, channels(0.2)),
    "llama7b.channel50": Row(3_369_207_808, 212_577_550_336, 6_874_746_880, channels(0.5)),
    "llama3_8b.dense": Row(8_030_261_248, 533_012_676_608, 16_094_093_312),
    "llama3_8b.block25": Row(6_612_586_496, 431_580_774_400, 13_258_743_808, blocks(0.25, 4, 2)),
    "tinyllama.dense": Row(1_100_048_384, 76_940_902_400, 2_213_739_520),
    "tinyllama.block25": Row(945_907_712, 65_369_456_640, 1_905_458_176, blocks(0.25, 4, 4)),
    "llama7b.wanda_sp20": Row(5_470_294_016, 342_648_371_200, 10_974_158_848, wanda(0.2)),
    "llama7b.wanda_sp30": Row(4_836_036_608, 301_949_440_000, 9_839_861_760, wanda(0.3)),
    "llama7b.wanda_sp50": Row(3_500_412_928, 216_221_876_224, 7_135_059_968, wanda(0.5)),
}


def scores(graph: DependencyGraph) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {group.name: generator.random(group.size) for group in graph.groups}


@functools.cache
def plan_of(row: str) -> Plan:
    graph = graph_of(row.partition(".")[0])
    options = ROWS[row].options
    return select(graph, scores(graph), **options) if options else Plan.of(graph, {})


@pytest.mark.parametrize("name", ROWS)
def test_published_sizes(name: str) -> None:
    row, plan, graph = ROWS[name], plan_of(name), graph_of(name.partition(".")[0])
    counts = plan.kept_counts(graph)
    assert plan.parameters_after == count_parameters(graph, counts) == row.params
    assert published_macs(graph, counts) == row.macs
    assert memory_estimate(graph, counts) == row.memory


MATMUL = {
    "llama7b.dense": 423_926_693_888,
    "llama7b.block20": None,
    "llama7b.channel20": None,
    "tinyllama.block25": None,
}


@pytest.mark.parametrize("name", MATMUL)
def test_rewritten_models_have_them(name: str) -> None:
    graph, plan = graph_of(name.partition(".")[0]), plan_of(name)
    small = fxprune.rewrite(graph.traced, plan)
    assert report.parameters(small) == ROWS[name].params
    counted = macs(graph, plan.kept_counts(graph))
    assert counted == (MATMUL[name] or counted)
    ids = torch.zeros(1, 64, dtype=torch.long, device="meta")
    assert report.macs(small, (), {"input_ids": ids}) == counted


@pytest.mark.parametrize("target", [5_443_214_541, 4_795_614_003, 3_500_412_928])
def test_flap_targets(target: int) -> None:
    """One ranking of heads and neurons, met to within half a head (from below, so at most)."""
    graph = graph_of("llama7b")
    plan = select(graph, scores(graph), budget=Budget(params=target), ranking="global")
    head = 4 * 128 * 4096
    assert target - head / 2 <= plan.parameters_after <= target
    assert len(plan.kept) == 64


@pytest.mark.parametrize("name", ["llama7b", "llama3_8b", "tinyllama"])
def test_groups_of_a_real_size(name: str) -> None:
    graph, config = graph_of(name), CONFIGS[name]
    kinds = [group.kind for group in graph.groups]
    assert kinds.count("mlp") == kinds.count("attention") == config["num_hidden_layers"]
    assert kinds.count("channel") == 1
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    assert {g.size for g in graph.groups if g.kind == "attention"} == {heads}
