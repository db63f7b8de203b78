"""The local search: whole plans against a module that is cut by hand, and better plans found."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import fxprune
from fxprune.errors import CalibrationError, CheckpointError
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.stream import local
from fxprune.stream.divergence import EVERY
from fxprune.stream.fewer import DAMPING
from fxprune.stream.local import local_search
from fxprune.stream.options import products_of
from tests.stream.test_ladder import disturbed, drawn, graph_of

DATA = torch.randint(3, 101, (32, 13), generator=torch.Generator().manual_seed(5))


def chosen(graph: fxprune.DependencyGraph) -> Any:
    return functools.partial(fxprune.select, graph, pruning_ratio=0.1, kinds=("mlp",))


def cost(graph: fxprune.DependencyGraph, plan: Plan) -> float:
    """What the search itself measures, on all that it holds back."""
    scores = drawn(graph, "mlp")
    module = graph.traced.module
    fit, held = local.held_out(local.batches(module, DATA, 8), local.HELD)
    stops, _ = products_of(graph, scores)
    whole = local._Whole(graph, stops, fit, held, 8)
    with torch.no_grad():
        return sum(whole.costs(plan, whole.share(1.0)).values())


def test_a_whole_plan_costs_what_a_module_cut_by_hand_does() -> None:
    graph, model = graph_of("llama"), disturbed("llama")
    plan = chosen(graph)(drawn(graph, "mlp"))
    fit, held = local.held_out(local.batches(model, DATA, 8), local.HELD)
    small = copy.deepcopy(model)
    with torch.no_grad():
        for name, kept in plan.kept.items():
            path = name.removesuffix(":units") + ".down_proj"
            seen: list[torch.Tensor] = []
            layer = model.get_submodule(path)
            handle = layer.register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2))
            )
            for batch in fit:
                model(**batch)
            handle.remove()
            x = torch.cat(seen).double()
            gone = [u for u in range(x.shape[1]) if u not in kept]
            weight, there = layer.weight.double(), x[:, list(kept)]
            normal = there.T @ there
            normal += DAMPING * torch.diag(normal.diagonal())
            change = torch.linalg.solve(normal, there.T @ (x[:, gone] @ weight[:, gone].T)).T
            mine = small.get_submodule(path).weight
            mine[:, list(kept)] += change.float()
            mine[:, gone] = 0
        expected = 0.0
        for batch in held:
            before, after = (m(**batch).logits.log_softmax(-1) for m in (model, small))
            lost = functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
            expected += float(lost[:, EVERY - 1 :: EVERY].sum())
    assert len(plan.kept) > 1
    assert cost(graph, plan) == pytest.approx(expected, rel=1e-3)


def test_it_finds_better_plans_and_the_same_ones_again(tmp_path: Path) -> None:
    graph = graph_of("llama")
    choose = chosen(graph)
    given = drawn(graph, "mlp")
    first = next(iter(given))
    # All is taken from the layer whose units look cheapest.
    skewed = Scores({n: v * (0.5 if n == first else 1.0) for n, v in given.items()}, "skewed")
    found = local_search(graph, skewed, DATA, choose, rounds=6)
    assert cost(graph, choose(found)) < cost(graph, choose(skewed))
    assert found.criterion == "local(skewed)"
    # Killed after two rounds, the same call goes on.
    state = tmp_path / "search.json"
    local_search(graph, skewed, DATA, choose, rounds=2, state=state)
    again = local_search(graph, skewed, DATA, choose, rounds=6, state=state)
    assert all(torch.equal(again[name], found[name]) for name in found)
    with pytest.raises(CheckpointError, match="by other scores or with another seed"):
        local_search(graph, given, DATA, choose, state=state)
    state.write_text("no")
    with pytest.raises(CheckpointError, match="cannot be read as the state of a search"):
        local_search(graph, given, DATA, choose, state=state)


def test_nothing_is_moved_where_no_plan_is_better() -> None:
    graph = graph_of("llama")
    given = drawn(graph, "mlp")
    plan = chosen(graph)(given)
    same = local_search(graph, given, DATA, lambda _: plan, rounds=1)
    assert all(torch.equal(same[name], given[name]) for name in given)
    assert same.criterion == given.criterion


def test_too_little_to_search() -> None:
    graph = graph_of("llama")
    given = drawn(graph, "mlp")
    with pytest.raises(CalibrationError, match="too little calibration data"):
        local_search(graph, given, DATA[:2], chosen(graph))
    one = Scores({name: given[name] for name in list(given)[:1]})
    with pytest.raises(CalibrationError, match="fewer than two"):
        local_search(graph, one, DATA, chosen(graph))


def test_pruning_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.stream.local.ROUNDS", 2)
    model = disturbed("llama")
    done = fxprune.prune(
        model, calibration=DATA, search="local", pruning_ratio=0.1, compensation=None
    )
    assert done.report is not None
    assert str(done.scores.criterion).startswith(("local(OBS", "OBS"))
    plain = fxprune.prune(model, calibration=DATA, pruning_ratio=0.1, compensation=None)
    assert abs(done.plan.parameters_after - plain.plan.parameters_after) < 200
