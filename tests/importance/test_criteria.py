"""Each criterion against its formula, recomputed slowly on a hand-made model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fxprune.errors import CriterionError
from fxprune.importance import Criterion, Magnitude, Random, Taylor, estimate
from tests.toys import ToyGraph, ToyLM, positions, toy_graph

AGGREGATES = ["sum", "mean", "max", "prod", "last"]


def slow_scores(
    graph: ToyGraph, elements: dict[str, torch.Tensor], how: str
) -> dict[str, np.ndarray]:
    """Per group: loops over sites, positions and elements."""
    result = {}
    for group in graph.groups:
        members = []
        for site in group.sites:
            if site.tensor not in elements:
                continue
            rows = elements[site.tensor].movedim(site.axis, 0).double().numpy()
            member = np.zeros(group.size)
            for position, pairs in enumerate(positions(site.layout)):
                for dim, unit in pairs:
                    if dim is group.dim:
                        member[unit] += rows[position].sum()
            members.append(member)
        table = np.stack(members)
        reduce = {"sum": np.sum, "mean": np.mean, "max": np.max, "prod": np.prod}
        result[group.name] = table[-1] if how == "last" else reduce[how](table, axis=0)
    return result


def gradients(model: ToyLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the mean next-token loss, without the library."""
    model.eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits = model(ids)[:, :-1]
    loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    model.train()
    return {n: torch.zeros(1) if g is None else g for n, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("how", AGGREGATES)
@pytest.mark.parametrize("p", [1, 2])
def test_magnitude(p: int, how: str) -> None:
    model = ToyLM()
    graph = toy_graph(model)
    elements = {name: w.detach().abs() ** p for name, w in model.named_parameters()}
    expected = slow_scores(graph, elements, how)
    scores = estimate(model, graph, Magnitude(p, aggregate=how))  # type: ignore[arg-type]
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=1e-5)


@pytest.mark.parametrize("how", ["sum", "mean", "max", "last"])
def test_taylor(how: str) -> None:
    model = ToyLM()
    graph = toy_graph(model)
    ids = torch.randint(0, 11, (3, 7))
    found = gradients(model, ids)
    elements = {name: (w.detach() * found[name]).abs() for name, w in model.named_parameters()}
    expected = slow_scores(graph, elements, how)
    scores = estimate(model, graph, Taylor(aggregate=how), ids)  # type: ignore[arg-type]
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=1e-4, atol=1e-9)


def test_random_is_uniform_and_reproducible() -> None:
    model = ToyLM(units=2000)
    graph = toy_graph(model)
    scores = estimate(model, graph, Random(3))
    name = "layers.0.mlp:units"
    assert 0.45 < scores[name].mean() < 0.55
    assert 0 <= scores[name].min() < 0.01
    assert 0.99 < scores[name].max() < 1
    assert torch.equal(scores[name], estimate(model, graph, Random(3), kinds=["mlp"])[name])
    assert not torch.equal(scores[name], estimate(model, graph, Random(4))[name])
    assert not torch.equal(scores[name], scores["layers.1.mlp:units"])


def test_random_needs_no_weights() -> None:
    model = ToyLM().to("meta")
    assert estimate(model, toy_graph(model), Random(0))["channel"].shape == (8,)


def test_options_are_fields() -> None:
    assert repr(Magnitude(1)) == "Magnitude(aggregate='sum', p=1)"
    assert Taylor() == Taylor(aggregate="sum")
    assert repr(Random(7)) == "Random(seed=7)"
    assert Taylor().needs == {"weights", "gradient"}
    assert Magnitude().needs == {"weights"}
    assert not Random().needs


@pytest.mark.parametrize("p", [0, 3, 1.5])
def test_magnitude_takes_one_or_two(p: float) -> None:
    with pytest.raises(CriterionError, match="p must be 1 or 2"):
        Magnitude(p)  # type: ignore[arg-type]


def test_an_unknown_aggregate() -> None:
    with pytest.raises(CriterionError, match="choose one of sum, mean, max, prod, last"):
        Taylor(aggregate="median")  # type: ignore[arg-type]


def test_a_criterion_must_say_how() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Criterion()  # type: ignore[abstract]
