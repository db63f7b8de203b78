"""The loss against a teacher."""

from __future__ import annotations

import pytest
import torch

from fxprune.data.loss import IGNORED
from fxprune.errors import RecoveryError
from fxprune.recover.methods import Distillation, FullTraining, LoRA
from fxprune.recover.teacher import Teacher, make
from tests.hf import tiny
from tests.recover.cases import IDS, case, pruned, run, state_of


def teacher(**options: float) -> Teacher:
    return Teacher(Distillation(case()[0], **options))


@pytest.mark.parametrize(("temperature", "weight"), [(2.0, 0.3), (1.0, 0.5), (0.5, 1.0)])
def test_loss_by_hand(temperature: float, weight: float) -> None:
    student, expected = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    labels = torch.tensor([1, IGNORED, 0, 4, IGNORED, 2])
    total = 0.0
    for place, label in enumerate(labels.tolist()):
        if label == IGNORED:
            continue
        p = (expected[place] / temperature).softmax(-1)
        q = (student[place].detach() / temperature).softmax(-1)
        divergence = sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
        likelihood = float(student[place].detach().softmax(-1)[label].log())
        total += weight * temperature**2 * divergence - (1 - weight) * likelihood
    found = teacher(temperature=temperature, weight=weight).loss(student, expected, labels, 8)
    assert float(found.detach()) == pytest.approx(total / 8, rel=1e-5)
    found.backward()
    assert student.grad is not None
    assert torch.equal(student.grad[labels == IGNORED], torch.zeros(2, 5))


def test_nothing_to_learn_from_ones_equal() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    found = teacher(weight=1.0).loss(logits, logits.detach().clone(), labels, 4)
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(RecoveryError, match="the teacher has a vocabulary of 6"):
        teacher().loss(torch.randn(4, 5), torch.randn(4, 6), torch.zeros(4, dtype=torch.long), 4)


def test_none() -> None:
    model, _ = case()
    assert make(None, model) is None
    assert make(Distillation(model, weight=0), model) is None
    with pytest.raises(RecoveryError, match=r"it must be in \[0, 1\]"):
        Distillation(model, weight=1.5)


@pytest.mark.parametrize("kind", ["graph", "shrunk"])
def test_the_teacher_does_not_change(kind: str) -> None:
    model, _ = case()
    before, modes = state_of(model), [m.training for m in model.modules()]
    model.train()
    try:
        run(pruned(kind), FullTraining(teacher=model), IDS, steps=2)
        assert model.training
    finally:
        model.eval()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_loss_of_a_run_is_that_of_both() -> None:
    """The first step, before any weight changed: by hand from both models' outputs."""
    model, _ = case()
    small = pruned("shrunk")
    ids = IDS[:4]
    with torch.no_grad():
        ours, theirs = small(ids).logits[:, :-1], model(ids).logits[:, :-1]
    log_p, log_q = (theirs / 2).log_softmax(-1), (ours / 2).log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    likelihood = ours.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
    expected = 0.25 * 4 * divergence - 0.75 * likelihood
    how = Distillation(model, temperature=2.0, weight=0.25)
    for micro in (4, 1):
        done = run(pruned("shrunk"), LoRA(teacher=how), ids, steps=1, micro_batch_size=micro)
        assert done.history.steps[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_brings_the_student_nearer_to_itself() -> None:
    """Than the text alone does, measured by the divergence of their predictions."""
    model, _ = case()

    def divergence(student: torch.nn.Module) -> float:
        with torch.no_grad():
            log_p, log_q = (m(IDS).logits.log_softmax(-1) for m in (model, student))
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    options = {"steps": 30, "learning_rate": 1e-2}
    plain = run(pruned("shrunk"), FullTraining(), IDS, **options)
    taught = run(
        pruned("shrunk"), FullTraining(teacher=Distillation(model, weight=1.0)), IDS, **options
    )
    assert divergence(taught.module) < 0.5 * divergence(pruned("shrunk"))
    assert divergence(taught.module) < 0.5 * divergence(plain.module)


def test_a_teacher_that_predicts_no_text_is_refused() -> None:
    with pytest.raises(RecoveryError, match="takes no input_ids"):
        run(tiny.llama(), LoRA(teacher=torch.nn.Linear(2, 2)), IDS)
