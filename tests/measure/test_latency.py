"""Budgets of latency: tables that are measured once, and plans that keep to them.

A clock that counts parameters stands in for the machine: then what a table should say is known.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import Budget, measure_latency, select
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.measure import latency as measure
from fxprune.measure import latency_report as outcome
from fxprune.measure import latency_tables as store
from fxprune.measure import report
from fxprune.plan import Plan
from fxprune.select.latency import LatencyTable
from tests.command_line import run_command
from tests.hf import tiny
from tests.llama import tiny_llama
from tests.models import ResidualConvNet
from tests.select.checks import random_scores

PACE = 1e-6  # seconds for each parameter
SHAPE = (2, 9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Counts measurements; each takes as long as the modules have parameters."""
    made: list[int] = []

    def timed(traced: Any, modules: Sequence[nn.Module], *_: Any) -> list[float]:
        made.append(len(modules))
        return [PACE * report.parameters(module) for module in modules]

    monkeypatch.setattr(measure, "timed", timed)
    monkeypatch.setattr(outcome, "timed", timed)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    return made


def graph_of(model: nn.Module | None = None) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama() if model is None else model))


def some_plan(graph: DependencyGraph) -> Plan:
    """Every MLP and every attention loses another number of units."""
    kept = {}
    for number, group in enumerate(graph.groups):
        if group.kind in ("mlp", "attention"):
            kept[group.name] = tuple(range(max(1, group.size - 1 - number)))
    return Plan.of(graph, kept)


def test_a_prediction_adds_up_what_groups_save(clock: list[int]) -> None:
    graph = graph_of()
    table = measure_latency(graph, SHAPE)
    plan = some_plan(graph)
    assert len(plan.kept) == 2 * len({group.layer for group in graph.groups if group.layer})
    assert table.whole == table.base == pytest.approx(PACE * plan.parameters_before)
    assert table.predict(plan) == pytest.approx(PACE * plan.parameters_after)
    # Layers are alike: one curve for the MLPs, one for attention.
    assert [len(curve.groups) for curve in table.curves] == [2, 2]
    sizes = {graph[curve.groups[0]].size: curve.kept for curve in table.curves}
    for size, kept in sizes.items():
        assert kept[0] == 1
        assert kept[-1] == size
        assert len(kept) <= 9
        assert sorted(set(kept)) == list(kept)


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_budget_is_met_to_within_a_unit(clock: list[int], ranking: Any) -> None:
    graph = graph_of()
    table, scores = measure_latency(graph, SHAPE), random_scores(graph)
    budget = Budget(latency=0.9, shape=SHAPE)
    plan = select(graph, scores, budget=budget, ranking=ranking, latency=table)
    # The same as a budget of parameters, for on this clock that is what it is.
    same = select(graph, scores, budget=Budget(params=0.9), ranking=ranking)
    assert plan.kept == same.kept
    assert plan.bound == "latency"
    milliseconds = 0.9 * table.whole * 1e3
    assert milliseconds > 1
    absolute = Budget(latency=milliseconds, shape=SHAPE)
    again = select(graph, scores, budget=absolute, ranking=ranking, latency=table)
    assert again.kept == plan.kept
    both = Budget(latency=0.9, kv_cache=0.5, shape=SHAPE)
    assert select(graph, scores, budget=both, latency=table).bound is not None


def test_a_fraction_is_of_the_whole_model(clock: list[int]) -> None:
    traced = fxprune.trace(tiny_llama())
    shorter = fxprune.bypass(traced, [fxprune.find_branches(traced).of("block")[-1].name])
    graph = fxprune.discover(shorter)
    table = measure_latency(graph, SHAPE)
    plan = Plan.of(graph, {})
    assert table.whole == pytest.approx(PACE * plan.parameters_before)
    assert table.base == pytest.approx(PACE * plan.parameters_after)
    with pytest.raises(SelectionError, match="of another model"):
        table.predict(Plan.of(fxprune.discover(traced), {}))
    stays = 0.95 * table.base / table.whole
    scores = random_scores(graph)
    found = select(
        graph, scores, budget=Budget(latency=stays, shape=SHAPE), latency=table, ranking="local"
    )
    assert 0 < stays * table.whole - table.predict(found) < 0.01 * table.whole


def test_a_table_is_corrected_where_a_plan_lands(clock: list[int]) -> None:
    """Curves that promise twice too much, or too little: ``prune`` measures, and chooses again."""
    graph = graph_of()
    right = measure_latency(graph, SHAPE)
    for factor in (0.5, 2.0):
        curves = [
            replace(curve, saved=tuple(factor * each for each in curve.saved))
            for curve in right.curves
        ]
        wrong = replace(right, curves=tuple(curves))
        plan = some_plan(graph)
        mended = wrong.corrected(plan, right.predict(plan))
        for curve, expected in zip(mended.curves, right.curves, strict=True):
            assert curve.saved == pytest.approx(expected.saved)
        found = fxprune.prune(
            tiny_llama(),
            kwargs={"input_ids": torch.ones(2, 9, dtype=torch.long)},
            budget=Budget(latency=0.9, shape=SHAPE),
            criterion=fxprune.Magnitude(),
            latency=wrong,
        )
        assert found.latency is not None
        assert found.latency.measured is not None
        assert 0.89 < found.latency.measured <= 0.9
    assert right.corrected(plan, right.base) == right  # nothing was saved: nothing to go by


def test_it_is_measured_once(clock: list[int], tmp_path: Path) -> None:
    graph = graph_of()
    table = measure_latency(graph, SHAPE)
    count = len(clock)
    assert count > 9
    assert measure_latency(graph_of(), SHAPE) == table
    assert len(clock) == count
    # Another shape, size, precision and number of threads are other measurements.
    measure_latency(graph, (2, 10))
    measure_latency(graph, SHAPE, sizes=2)
    measure_latency(graph_of(tiny_llama().to(torch.float64)), SHAPE)
    measure_latency(graph, SHAPE, cache=False)
    files = list((tmp_path / "cache").glob("latency-*.json"))
    assert len(files) == 4
    for file in files:
        file.write_text(file.read_text()[:-9])  # damaged: measured anew
    count = len(clock)
    assert measure_latency(graph, SHAPE) == table
    assert len(clock) > count
    assert store.read("of another model") is None


def test_prune(clock: list[int]) -> None:
    model, ids = tiny_llama(), torch.ones(2, 9, dtype=torch.long)
    found = fxprune.prune(
        model,
        kwargs={"input_ids": ids},
        budget=Budget(latency=0.9, shape=SHAPE),
        criterion=fxprune.Magnitude(),
    )
    assert found.latency is not None
    assert found.latency.predicted == pytest.approx(found.latency.measured)
    assert found.latency.measured == pytest.approx(
        found.plan.parameters_after / found.plan.parameters_before
    )
    assert 0.89 < found.latency.measured <= 0.9
    assert str(found.latency) == (
        f"latency of 2 x 9 tokens: 0.900 x the original's asked, {found.latency.predicted:.3f} "
        f"predicted, {found.latency.measured:.3f} measured (+0.0 %)"
    )
    gone = fxprune.prune(
        tiny_llama(),
        kwargs={"input_ids": ids},
        budget=Budget(latency=0.9, shape=SHAPE),
        criterion=fxprune.Magnitude(),
        consume=True,
    )
    assert gone.latency == replace(found.latency, measured=None)
    assert "measured" not in str(gone.latency)
    steps = fxprune.prune(
        model,
        kwargs={"input_ids": ids},
        budget=Budget(latency=0.9, shape=SHAPE),
        criterion=fxprune.Magnitude(),
        steps=2,
    )
    assert steps.latency is not None
    assert 0.89 < steps.latency.predicted <= 0.9


def test_command(
    clock: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tiny.folder(tmp_path / "model")
    words = ["prune", tmp_path / "model", "--out", tmp_path / "out", "--latency", 0.9]
    words += ["--criterion", "magnitude", "--compensate", "none", "--no-verify"]
    words += ["--eval-samples", 2, "--eval-length", 16]
    status, _, said = run_command(monkeypatch, capsys, *words, "--shape", "2by9")
    assert status == 2
    assert "--shape 2by9: give BATCHxTOKENS" in said
    assert not clock
    status, shown, _ = run_command(monkeypatch, capsys, *words, "--shape", "2x9")
    assert status == 0
    assert clock
    # The two models are timed afterwards, by the real clock.
    assert re.search(
        r"latency of 2 x 9 tokens: 0.900 x the original's asked, 0.\d+ predicted, [\d.]+ measured",
        shown,
    )
    assert "median forward pass of 2 x 9 tokens" in shown
    assert "bound by: latency" in shown
    again = fxprune.Plan.load(tmp_path / "out" / "plan.json")
    assert 0.89 < again.parameters_after / again.parameters_before <= 0.9


def test_a_real_clock() -> None:
    """A wide MLP on many rows: with half of its units it takes less time."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 64)).eval()
    graph = fxprune.discover(fxprune.trace(net, (torch.randn(4, 64),)))
    table = measure_latency(graph, (256, 1), sizes=2, cache=False)
    (curve,) = table.curves
    assert curve.kept == (1, 2048, 4096)
    assert table.whole > curve.saved[0] > curve.saved[1] > 0
    assert table.shape == (256, 1)


def test_images() -> None:
    """What is not a token keeps its own size; groups can be named."""
    net = ResidualConvNet().eval()
    graph = fxprune.discover(fxprune.trace(net, (torch.randn(2, 3, 16, 16),)))
    name = next(group.name for group in graph.groups if group.kind != "attention")
    table = measure_latency(graph, (3, 1), groups=[name], sizes=1, cache=False)
    assert [curve.groups for curve in table.curves] == [(name,)]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_falling(values: list[float]) -> None:
    found = measure.falling(values)
    assert len(found) == len(values)
    assert min(found) >= 0
    assert all(a >= b for a, b in itertools.pairwise(found))
    ordered = sorted((abs(v) for v in values), reverse=True)
    assert measure.falling(ordered) == pytest.approx(ordered)
    # No multiple of the way to another falling list is nearer.
    for other in (ordered, [np.mean(values).clip(0)] * len(values)):
        way = np.array(other) - found
        assert way @ (np.array(values) - found) <= 1e-9


def table_of(graph: DependencyGraph) -> LatencyTable:
    return measure_latency(graph, SHAPE, kinds=["mlp"], cache=False)


def test_refused(clock: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graph = graph_of()
    scores, budget = random_scores(graph), Budget(latency=0.9, shape=SHAPE)
    table = table_of(graph)
    with pytest.raises(SelectionError, match=r"latency=fxprune.measure_latency\(graph, \(2, 9\)\)"):
        select(graph, scores, budget=budget)
    with pytest.raises(SelectionError, match="self_attn:heads' was not measured"):
        select(graph, scores, budget=budget, latency=table)
    with pytest.raises(SelectionError, match="was not measured: name its kind"):
        table.predict(some_plan(graph))
    with pytest.raises(SelectionError, match=r"is for \(2, 9\), the budget for \(1, 64\)"):
        select(graph, scores, None, "mlp", budget=Budget(latency=0.9), latency=table)
    other = graph_of(tiny_llama(intermediate_size=44))
    with pytest.raises(SelectionError, match="of another model: measure this one"):
        select(other, random_scores(other), None, "mlp", budget=budget, latency=table)
    small = Budget(latency=0.01, shape=SHAPE)
    with pytest.raises(SelectionError, match="nanoseconds of a forward pass stay, a fraction"):
        select(graph, scores, None, "mlp", budget=small, latency=table)
    with pytest.raises(SelectionError, match="sizes=0"):
        measure_latency(graph, sizes=0)
    with pytest.raises(SelectionError, match="at least 1 each"):
        measure_latency(graph, (0, 9))
    with torch.device("meta"):
        blank = graph_of(tiny_llama())
    with pytest.raises(SelectionError, match="with weights, and the model's are on meta"):
        measure_latency(blank)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SelectionError, match="set FXPRUNE_CACHE to another"):
        measure_latency(graph, SHAPE)


class Positions(nn.Module):
    """A language model that knows ten positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6), nn.Embedding(10, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(ids.shape[1]))
        return self.down(self.up(self.words(ids) + places).relu())


def test_inputs_that_do_not_run() -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    graph = fxprune.discover(fxprune.trace(Positions().eval(), (ids,)))
    with pytest.raises(SelectionError, match=r"does not run on inputs of shape \(1, 11\): index"):
        measure_latency(graph, (1, 11), kinds=["mlp"], cache=False)
    assert measure_latency(graph, (1, 10), kinds=["mlp"], sizes=1, cache=False).whole > 0
