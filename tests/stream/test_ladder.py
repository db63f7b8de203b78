"""Measured costs against a module that is changed by hand, and what becomes of scores."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch.nn import functional

import fxprune
from fxprune.importance.scores import Scores
from fxprune.stream.divergence import EVERY
from fxprune.stream.fewer import DAMPING
from fxprune.stream.ladder import Ladder, Rung
from fxprune.stream.options import measure_ladder
from tests.zoo import BY_NAME, disturb

FIT = torch.randint(3, 101, (16, 13), generator=torch.Generator().manual_seed(1))
HELD = torch.randint(3, 101, (6, 13), generator=torch.Generator().manual_seed(2))


def disturbed(name: str) -> Any:
    model = BY_NAME[name].build()
    disturb(model)
    return model


@functools.cache
def graph_of(name: str) -> fxprune.DependencyGraph:
    args, kwargs = BY_NAME[name].example()
    return fxprune.discover(fxprune.trace(disturbed(name), args, kwargs))


def drawn(graph: fxprune.DependencyGraph, *kinds: str) -> Scores:
    generator = torch.Generator().manual_seed(3)
    groups = [group for group in graph.groups if group.kind in kinds]
    return Scores({g.name: torch.rand(g.size, generator=generator) for g in groups}, "drawn")


def by_hand(model: Any, path: str, gone: list[int], ids: torch.Tensor, mask: Any = None) -> float:
    """The divergence with columns of one matrix gone and the others refitted."""
    seen: list[torch.Tensor] = []
    small = copy.deepcopy(model)
    layer = small.get_submodule(path)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        small(input_ids=FIT)
        handle.remove()
        x = seen[0].flatten(0, -2).double()
        weight = layer.weight.double()
        kept = [column for column in range(weight.shape[1]) if column not in gone]
        there = x[:, kept]
        normal = there.T @ there
        normal += DAMPING * torch.diag(normal.diagonal())
        lacking = x[:, gone] @ weight[:, gone].T
        layer.weight[:, kept] += torch.linalg.solve(normal, there.T @ lacking).T.float()
        layer.weight[:, gone] = 0
        inputs = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
        before, after = (m(**inputs).logits.log_softmax(-1) for m in (model, small))
    each = functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    each = each.flatten() if mask is None else each[mask.bool()]
    return float(each[EVERY - 1 :: EVERY].mean())


@pytest.mark.parametrize("name", ["llama", "falcon_grouped"])
def test_it_is_what_the_module_gives(name: str) -> None:
    graph = graph_of(name)
    model = graph.traced.module
    scores = drawn(graph, "mlp", "attention")
    found = measure_ladder(graph, scores, FIT, HELD, batch_size=4)
    assert set(found.rungs) == set(scores)
    assert not found.skipped
    for group in (graph[each] for each in scores):
        order = scores[group.name].argsort().tolist()
        (site,) = {s for s in group.sites if s.tensor.endswith(("down_proj.weight", "o_proj.weight",
                   "dense.weight", "dense_4h_to_h.weight")) and s.axis == 1}  # fmt: skip
        width = graph.traced.tensors[site.tensor].shape[1] // group.size
        counts = [rung.removed for rung in found.rungs[group.name]]
        assert counts == sorted(set(counts))
        assert 0 < counts[0] <= counts[-1] < group.size
        for rung in found.rungs[group.name][:: max(1, len(counts) - 1)]:
            gone = [
                unit * width + place for unit in order[: rung.removed] for place in range(width)
            ]
            path = site.tensor.removesuffix(".weight")
            assert rung.measured == pytest.approx(by_hand(model, path, gone, HELD), rel=2e-3)
            least = scores[group.name].sort()[0][: rung.removed].sum()
            assert rung.predicted == pytest.approx(float(least))


def test_padding_does_not_count() -> None:
    args, kwargs = BY_NAME["llama"].example()
    model = disturbed("llama")
    masked = {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}
    graph = fxprune.discover(fxprune.trace(model, args, masked))
    scores = drawn(graph, "mlp")
    mask = torch.ones_like(HELD)
    mask[:, 8:] = 0
    fit = {"input_ids": FIT, "attention_mask": torch.ones_like(FIT)}
    held = {"input_ids": HELD, "attention_mask": mask}
    found = measure_ladder(graph, scores, fit, held)
    name = "model.layers.1.mlp:units"
    rung = found.rungs[name][1]
    gone = scores[name].argsort()[: rung.removed].tolist()
    path = "model.layers.1.mlp.down_proj"
    assert rung.measured == pytest.approx(by_hand(model, path, gone, HELD, mask), rel=2e-3)


def test_scores_add_up_to_what_was_measured() -> None:
    graph = graph_of("llama")
    scores = drawn(graph, "mlp", "attention")
    first, second = [name for name in scores if graph[name].kind == "mlp"]
    (heads, *_) = (name for name in scores if graph[name].kind == "attention")
    size = graph[first].size
    parts = (size // 4, size // 2)
    predicted = [float(scores[first].sort()[0][:count].sum()) for count in parts]
    rungs = tuple(Rung(n, p, m) for n, p, m in zip(parts, predicted, (0.5, 3.0), strict=True))
    found = Ladder({first: rungs, heads: (Rung(1, 0.1, 0.7),)}).scores(graph, scores)
    values = found[first][scores[first].argsort()]
    assert torch.equal(values, values.sort()[0])
    assert float(values[: parts[0]].sum()) == pytest.approx(0.5, rel=1e-4)
    assert float(values[: parts[1]].sum()) == pytest.approx(3.0, rel=1e-4)
    # What was not measured goes by the middle ratio of its kind.
    torch.testing.assert_close(found[second], scores[second] * 3.0 / predicted[1])
    assert found.criterion == "measured(drawn)"
    assert found.ranking == scores.ranking


def test_a_rung_that_costs_nothing_keeps_the_order() -> None:
    graph = graph_of("llama")
    scores = drawn(graph, "mlp")
    (name, *_) = scores
    half = graph[name].size // 2
    total = float(scores[name].sort()[0][:half].sum())
    ladder = Ladder({name: (Rung(half, total, 2.0), Rung(half + 5, total + 1, 1.0))})
    values = ladder.scores(graph, scores)[name][scores[name].argsort()]
    assert (values[1:] >= values[:-1]).all()
    assert values[-1] > 0


def test_what_cannot_be_measured_says_why() -> None:
    graph = graph_of("mixtral")
    scores = drawn(graph, "mlp", "expert", "attention")
    found = measure_ladder(graph, scores, FIT, HELD)
    assert set(found.rungs) | set(found.skipped) == set(scores)
    kinds = {graph[name].kind: reason for name, reason in found.skipped.items()}
    assert "mlp" in kinds
    assert all(graph[name].kind == "attention" for name in found.rungs)


def test_pruning_chooses_by_it() -> None:
    """Scores are brought to measured costs, from which another ratio is planned at once."""
    torch.manual_seed(0)
    data = torch.randint(3, 101, (32, 13))
    model = disturbed("llama")
    done = fxprune.prune(model, calibration=data, search="measured", compensation=None)
    assert str(done.scores.criterion).startswith("measured(OBS(")
    predicted = fxprune.prune(model, calibration=data, compensation=None)
    assert any(not torch.equal(done.scores[n], predicted.scores[n]) for n in done.scores)
    for name, values in done.scores.items():
        ordered = values[predicted.scores[name].argsort()]
        assert (ordered[1:] >= ordered[:-1]).all()
    again = fxprune.prune(model, calibration=data, scores=done.scores, compensation=None)
    assert again.plan.kept == done.plan.kept


def test_without_a_branch_or_block_it_is_the_bypassed_model() -> None:
    graph = graph_of("llama")
    names = list(fxprune.find_branches(graph.traced).units)
    found = measure_ladder(graph, drawn(graph, "mlp"), FIT, HELD, units=names)
    assert list(found.units) == sorted(names, key=list(found.units).index)
    assert set(found.units) == set(names)
    with torch.no_grad():
        before = graph.traced.module(input_ids=HELD).logits.log_softmax(-1)
        for name in names:
            shorter = fxprune.bypass(graph.traced, [name]).graph_module
            after = shorter(input_ids=HELD).logits.log_softmax(-1)
            each = functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
            expected = float(each.flatten()[EVERY - 1 :: EVERY].mean())
            assert found.units[name] == pytest.approx(expected, rel=1e-4), name


def test_width_and_depth_in_one_plan() -> None:
    """What goes as a whole is decided by measured costs; the rest of the budget is width."""
    torch.manual_seed(0)
    data = torch.randint(3, 101, (32, 13))
    model = disturbed("llama")
    with torch.no_grad():  # a branch that does next to nothing costs nothing
        model.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    options: Any = {"calibration": data, "search": "measured", "branches": ("attention", "mlp")}
    done = fxprune.prune(model, pruning_ratio=0.3, **options)
    assert done.plan.removed == ("model.layers.1:mlp",)
    assert done.plan.parameters_after <= 0.7 * model.num_parameters()
    assert done.report is not None
    assert done.report.relative_error <= done.report.tolerance
    assert "model.layers.1.mlp:units" not in [group.name for group in done.graph.groups]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ("mlp",), "search": "predicted"}, "give search='measured' too"),
        ({"branches": ("mlps",)}, "no unit 'mlps'"),
        ({"branches": ("other",)}, "has no other that can be removed"),
        ({"branches": ("mlp",), "budget": fxprune.Budget(units=0.1)}, "compete for parameters"),
        ({"steps": 2}, "measures once"),
        ({"scores": Scores({})}, "taken as they are"),
        ({"search": "guessed"}, "choose from predicted, measured, local"),
        ({"calibration": torch.ones(3, 8).long()}, "at least four sequences"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"search": "measured", "calibration": torch.randint(3, 101, (32, 13)), **options}
    with pytest.raises(fxprune.FxpruneError, match=message):
        fxprune.prune(disturbed("llama"), **given)
