"""Taylor of every order against single calls of autograd, sample by sample, on grouped queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import fxprune
from fxprune.errors import CriterionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance import Gradients, Scores, Taylor, estimate
from tests.importance import hand
from tests.llama import tiny_llama

KINDS = ("mlp", "attention")
IDS = torch.randint(0, 90, (5, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    # Large weights, or the second order is lost beside the first.
    return tiny_llama(initializer_range=0.4)


@pytest.fixture(scope="module")
def graph(model: LlamaForCausalLM) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(model, kwargs={"input_ids": IDS[:2]}))


def element(order: object, w: np.ndarray, g: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Signed: papers.md 1.9."""
    return {1: w * g, 2: w * h * w, "mixed": w * g - 0.5 * w * h * w}[order]  # type: ignore[index]


def slow(
    model: LlamaForCausalLM, order: object, reduce: str, fisher: str, how: str
) -> dict[str, np.ndarray]:
    """Loops over members, units, channels and samples."""
    w, g = hand.weights(model), hand.gradient(model, IDS)
    singles = [hand.gradient(model, row[None]) for row in IDS]
    result = {}
    for name, sites in hand.groups():
        table = []
        for tensor, axis, units in sites:
            h = sum(single[tensor] ** 2 for single in singles)
            if fisher == "mean":
                h = h / len(IDS)
            values = np.moveaxis(element(order, w[tensor], g[tensor], h), axis, 0)
            unit_scores = []
            for unit in units:
                score = 0.0
                for channel in unit:
                    row = values[channel]
                    score += abs(row.sum()) if reduce == "vector" else abs(row).sum()
                unit_scores.append(score)
            table.append(unit_scores)
        stack = np.array(table)
        result[name] = {"sum": stack.sum(0), "max": stack.max(0), "mean": stack.mean(0)}[how]
    return result


def check(scores: Scores, expected: dict[str, np.ndarray], rtol: float = 2e-4) -> None:
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=rtol)


@pytest.mark.parametrize(
    ("order", "reduce", "fisher", "how"),
    [
        (1, "element", "mean", "sum"),
        (1, "vector", "mean", "sum"),
        (1, "vector", "mean", "max"),
        (2, "element", "mean", "sum"),
        (2, "element", "sum", "mean"),
        ("mixed", "element", "mean", "sum"),
        ("mixed", "element", "sum", "sum"),
        ("mixed", "vector", "sum", "sum"),
    ],
)
def test_by_hand(
    model: LlamaForCausalLM, graph: DependencyGraph, order: Any, reduce: Any, fisher: Any, how: Any
) -> None:
    criterion = Taylor(order, reduce, fisher, aggregate=how)
    scores = estimate(model, graph, criterion, IDS, kinds=KINDS)
    check(scores, slow(model, order, reduce, fisher, how))


def test_the_options_matter(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    criteria = [Taylor(), Taylor(reduce="vector"), Taylor(2), Taylor("mixed", fisher="sum")]
    found = estimate(model, graph, criteria, IDS, kinds=KINDS)
    values = [scores["model.layers.0.mlp:units"] for scores in found]
    for i, a in enumerate(values):
        assert all((a - b).abs().max() > 0.05 * a.abs().max() for b in values[:i])


def test_order_one_beside_the_others_is_the_same(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    criteria = [Taylor(), Taylor(2), Taylor("mixed"), Taylor(reduce="vector"), Taylor(2)]
    together = estimate(model, graph, criteria, IDS, kinds=KINDS)
    for criterion, scores in zip(criteria, together, strict=True):
        assert scores.criterion == repr(criterion)
        alone = estimate(model, graph, criterion, IDS, kinds=KINDS)
        torch.testing.assert_close(dict(scores), dict(alone))


def test_samples_do_not_depend_on_batches(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    whole = estimate(model, graph, Taylor(2), IDS, kinds=KINDS)
    for size in (1, 2):
        parts = estimate(model, graph, Taylor(2), IDS, kinds=KINDS, batch_size=size)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_sample_without_labels_is_no_sample(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    labels = IDS.clone()
    labels[2] = -100
    data = {"input_ids": IDS, "labels": labels}
    rest = IDS[[0, 1, 3, 4]]
    for criterion in (Taylor(2), Taylor("mixed")):
        found = estimate(model, graph, criterion, data, kinds=KINDS)
        expected = estimate(model, graph, criterion, rest, kinds=KINDS)
        torch.testing.assert_close(dict(found), dict(expected))


def test_samples_weigh_by_their_labels_in_the_gradient_alone(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    labels = IDS.clone()
    labels[0, 3:] = -100
    data = {"input_ids": IDS, "labels": labels}
    mixed = Taylor("mixed", "vector", fisher="sum")
    together = estimate(model, graph, [Taylor(), mixed, Taylor(2)], data, kinds=KINDS)
    torch.testing.assert_close(
        dict(together[0]), dict(estimate(model, graph, Taylor(), data, kinds=KINDS))
    )
    single = hand.gradient(model, IDS[:1, :3])  # what follows no label reads is masked causally
    rows = [hand.gradient(model, row[None]) for row in IDS[1:]]
    tensor = "model.layers.1.mlp.up_proj.weight"
    squares = single[tensor] ** 2 + sum(row[tensor] ** 2 for row in rows)
    (group,) = (g for g in graph.groups if g.name == "model.layers.1.mlp:units")
    lone = single_site(group, tensor)
    found = estimate(model, graph, Taylor(2, fisher="sum"), data, groups=[lone])
    expected = (hand.weights(model)[tensor] ** 2 * squares).sum(1)
    np.testing.assert_allclose(found[lone.name].numpy(), expected, rtol=2e-4)


def single_site(group: Group, tensor: str) -> Group:
    """The dependency ignored: one member of a group as a group of its own."""
    sites = tuple(site for site in group.sites if site.tensor == tensor)
    return Group(tensor, group.kind, group.size, sites, group.dim, False, None, group.layer)


def test_order_two_keeps_no_gradient(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    alive, sums = [], []

    class Watching(Taylor):
        def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
            alive.append(sum(p.grad is not None for p in model.parameters()))
            sums.append(gradients.mean is None and gradients.samples == 5)
            return super().elements(weight, gradients)

    estimate(model, graph, Watching(2), IDS, kinds=KINDS)
    assert max(alive) == 0  # the one being consumed is already off the parameter
    assert len(alive) == 5 * 2 * 7
    assert all(sums)


def test_bfloat16(graph: DependencyGraph) -> None:
    exact = tiny_llama()
    half = tiny_llama().bfloat16()
    for criterion in (Taylor(2), Taylor("mixed")):
        expected = estimate(exact, graph, criterion, IDS, kinds=KINDS)
        found = estimate(half, graph, criterion, IDS, kinds=KINDS)
        for name, scores in found.items():
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores, expected[name], rtol=0.2, atol=1e-6)


# Folding by layout


@pytest.mark.parametrize("member", ["q_proj", "o_proj"])
def test_query_heads_fold_onto_their_own_key_value_head(
    model: LlamaForCausalLM, graph: DependencyGraph, member: str
) -> None:
    """KV head 0 of 3 takes query heads {0, 1} of 6; the published view takes {0, 3}."""
    (group,) = (g for g in graph.groups if g.name == "model.layers.0.self_attn:heads")
    tensor = f"model.layers.0.self_attn.{member}.weight"
    lone = single_site(group, tensor)
    scores = estimate(model, graph, Taylor(), IDS, groups=[lone])[tensor].numpy()
    elements = abs(hand.weights(model)[tensor] * hand.gradient(model, IDS)[tensor])
    vector = elements.sum(1 if member == "q_proj" else 0)
    expected = [sum(vector[c] for c in hand.query_channels(unit)) for unit in range(3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    published = vector.reshape(2, 3, 6).sum((0, 2))  # view(repeat, kv, head_dim)
    np.testing.assert_allclose(published[0], vector[0:6].sum() + vector[18:24].sum(), rtol=1e-12)
    assert (abs(published - scores) > 0.01 * scores).all()


def test_the_members_alone_add_up_to_the_group(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    (group,) = (g for g in graph.groups if g.name == "model.layers.1.self_attn:heads")
    alone = [single_site(group, tensor) for tensor in group.parameters]
    assert len(alone) == 4
    parts = estimate(model, graph, Taylor(2), IDS, groups=alone)
    whole = estimate(model, graph, Taylor(2), IDS, groups=[group])
    torch.testing.assert_close(sum(parts.values()), whole[group.name])


# Bad input


@pytest.mark.parametrize(
    "options",
    [{"order": 3}, {"order": True}, {"order": "2"}, {"reduce": "row"}, {"fisher": "max"}],
)
def test_unknown_options(options: dict[str, Any]) -> None:
    with pytest.raises(CriterionError, match=f"{next(iter(options))}=.* choose one of"):
        Taylor(**options)


def test_vectors_of_second_order_are_refused() -> None:
    with pytest.raises(CriterionError, match="equals reduce='element'"):
        Taylor(2, "vector")


def test_two_groups_of_one_name(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    group = graph.groups[1]
    with pytest.raises(CriterionError, match="two groups are called"):
        estimate(model, graph, Taylor(), IDS, groups=[group, group])
