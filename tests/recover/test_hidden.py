"""Hidden states matched by the plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import RecoveryError
from fxprune.recover.hidden import HiddenStates
from fxprune.recover.methods import Distillation, FullTraining
from tests.hf import tiny
from tests.recover.cases import IDS, case, curve, plan, pruned, run

EVERY = torch.ones_like(IDS, dtype=torch.bool)


def distillation(what: str) -> Distillation:
    return Distillation(case()[0], hidden=0.5, plan=plan(what))


def loss_of(student: Any, what: str, counts: Tensor = EVERY) -> Tensor:
    hidden = HiddenStates.of(distillation(what), student)
    with hidden.watch():
        student(input_ids=IDS)
        case()[0](input_ids=IDS)
    return hidden.loss(counts)


def entering(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What enters these modules."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].detach()})
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    return found


def by_hand(student: nn.Module, names: dict[str, str], kept: Tensor) -> float:
    """The mean over normalisations, under the student's names and the teacher's."""
    mine = entering(student, list(names))
    theirs = entering(case()[0], list(names.values()))
    ratios = [
        (mine[own] - theirs[other][..., kept]).square().sum()
        / theirs[other][..., kept].square().sum()
        for own, other in names.items()
    ]
    return float(sum(ratios)) / len(ratios)


def norms(layers: list[int]) -> list[str]:
    each = ("input_layernorm", "post_attention_layernorm")
    return [f"model.layers.{n}.{name}" for n in layers for name in each] + ["model.norm"]


@pytest.mark.parametrize("kind", ["graph", "shrunk"])
def test_width(kind: str) -> None:
    student = pruned(kind)
    names = {name: name for name in norms([0, 1, 2])}
    expected = by_hand(student, names, torch.arange(24))
    assert expected > 0
    assert float(loss_of(student, "width").detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["graph", "shrunk"])
def test_a_removed_block_renumbers_those_behind_it(kind: str) -> None:
    student = pruned(kind, "depth")
    mine = norms([0, 2]) if kind == "graph" else norms([0, 1])
    names = dict(zip(mine, norms([0, 2]), strict=True))
    expected = by_hand(student, names, torch.arange(24))
    assert float(loss_of(student, "depth").detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["graph", "shrunk"])
def test_pruned_channels_are_matched_by_the_units_that_stay(kind: str) -> None:
    student = pruned(kind, "channel")
    kept = torch.tensor([unit for unit in range(24) if unit % 4 != 1])
    expected = by_hand(student, {name: name for name in norms([0, 1, 2])}, kept)
    assert float(loss_of(student, "channel").detach()) == pytest.approx(expected, rel=1e-5)


def test_nothing_for_a_student_that_is_the_teachers_equal() -> None:
    traced = case()[1]
    whole = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    assert float(loss_of(whole, "width").detach()) == pytest.approx(0, abs=1e-9)


def test_only_tokens_that_count() -> None:
    student = pruned("shrunk")
    counts = torch.zeros_like(EVERY)
    counts[2, 3:] = True
    mine, theirs = (entering(m, norms([1])) for m in (student, case()[0]))
    ratios = [
        (mine[name][2, 3:] - theirs[name][2, 3:]).square().sum()
        / theirs[name][2, 3:].square().sum()
        for name in norms([1])
    ]
    hidden = HiddenStates.of(distillation("width"), student)
    hidden.pairs = [p for p in hidden.pairs if p.student in map(student.get_submodule, norms([1]))]
    with hidden.watch():
        student(input_ids=IDS)
        case()[0](input_ids=IDS)
    found = float(hidden.loss(counts).detach())
    assert found == pytest.approx(float(sum(ratios)) / 3, rel=1e-5)


@pytest.mark.parametrize("what", ["width", "both"])
def test_graph_and_shrunk_model_take_the_same_course(what: str) -> None:
    method = FullTraining(teacher=distillation(what))
    graph, shrunk = (run(pruned(kind, what), method, IDS) for kind in ("graph", "shrunk"))
    torch.testing.assert_close(curve(graph), curve(shrunk), rtol=1e-4, atol=0)
    without = run(pruned("graph", what), FullTraining(teacher=case()[0]), IDS)
    assert graph.history.steps[0].loss > without.history.steps[0].loss + 1e-3
    checkpointed = run(pruned("graph", what), method, IDS, gradient_checkpointing=True)
    torch.testing.assert_close(curve(graph), curve(checkpointed), rtol=1e-4, atol=0)


def test_no_normalisation_in_common_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(257, 4), nn.Linear(4, 257)

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.table(input_ids))
            return logits

    with pytest.raises(RecoveryError, match="no normalisation under a name of the teacher's"):
        HiddenStates.of(distillation("width"), Bare())


def test_a_plan_for_another_teacher_is_refused() -> None:
    other = tiny.llama()
    with pytest.raises(Exception, match="plan"):
        run(
            pruned("shrunk", "channel"),
            FullTraining(teacher=Distillation(other, hidden=1, plan=plan("channel"))),
            IDS,
        )
