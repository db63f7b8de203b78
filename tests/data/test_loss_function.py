"""Losses of the user's, and batches of inputs and labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.data.calibrate import Positional, batches
from fxprune.data.loss_function import check_loss, compares
from fxprune.errors import CalibrationError, RecoveryError
from tests.hf import tiny

X, Y = torch.randn(16, 6), torch.randint(0, 4, (16,))
LOADER = DataLoader(TensorDataset(X, Y), batch_size=8)
MODEL = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
GRAPH = fxprune.discover(fxprune.trace(MODEL, X))


def scores(calibration: Any, loss_fn: Any = None, **options: Any) -> Tensor:
    criterion = options.pop("criterion", fxprune.Taylor())
    found = fxprune.estimate(MODEL, GRAPH, criterion, calibration, loss_fn=loss_fn, **options)
    (only,) = found.values()
    return only


def by_hand() -> Tensor:
    """Taylor scores of the mean cross entropy over all rows, per hidden unit."""
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    model.load_state_dict(MODEL.state_dict())
    functional.cross_entropy(model(X), Y).backward()
    both: Any = model
    elements = {n: (p * p.grad).abs() for n, p in both.named_parameters()}
    inputs, outputs = elements["0.weight"].sum(1) + elements["0.bias"], elements["2.weight"].sum(0)
    return inputs + outputs


def called(model: nn.Module, batch: Any) -> Tensor:
    """A batch comes as it was given."""
    x, y = (batch["input"], batch["labels"]) if isinstance(batch, dict) else batch
    return functional.cross_entropy(model(x), y)


class Own(nn.Module):
    def forward(self, logits: Tensor, answer: Tensor) -> Tensor:
        return functional.cross_entropy(logits, answer)


@pytest.mark.parametrize(
    "loss_fn",
    [
        None,
        nn.CrossEntropyLoss(),
        functional.cross_entropy,
        Own(),
        lambda output, y: functional.cross_entropy(output, y),
        lambda model, batch: called(model, batch),
    ],
)
@pytest.mark.parametrize(
    "calibration", [LOADER, (X, Y), [X, Y], [(X, Y)], [{"input": X, "labels": Y}]]
)
def test_pairs_and_losses(loss_fn: Any, calibration: Any) -> None:
    torch.testing.assert_close(scores(calibration, loss_fn), by_hand(), rtol=1e-4, atol=1e-6)


def test_in_micro_batches_and_by_sample() -> None:
    loss = nn.CrossEntropyLoss()
    torch.testing.assert_close(scores((X, Y), loss, batch_size=3), by_hand(), rtol=1e-4, atol=1e-6)
    second = fxprune.Taylor(order=2)
    torch.testing.assert_close(
        scores(LOADER, loss, criterion=second),
        scores([{"input": X, "labels": Y}], criterion=second),
    )


def test_regression() -> None:
    target = torch.randn(16, 4)
    found = scores([(X, target)], nn.MSELoss())
    expected = scores([{"input": X}], lambda m, b: functional.mse_loss(m(**b), target))
    torch.testing.assert_close(found, expected)


def test_criteria_without_gradients_need_no_labels() -> None:
    criterion = fxprune.WandaSP()
    expected = scores([X[:8], X[8:]], criterion=criterion)
    for loss in (None, nn.CrossEntropyLoss()):
        assert torch.equal(scores(LOADER, loss, criterion=criterion), expected)


def test_the_whole_way() -> None:
    result = fxprune.prune(
        MODEL, X, pruning_ratio=0.2, calibration=LOADER, loss_fn=nn.CrossEntropyLoss(),
        compensation="least-squares", steps=2,
    )  # fmt: skip
    assert result.compensation is not None


def test_language_models_take_pairs() -> None:
    ids = torch.arange(3, 17).view(2, 7)
    (batch,) = batches(tiny.llama(), [(ids, ids)])
    assert isinstance(batch, Positional)
    assert list(batch) == ["input_ids", "labels"]
    assert all(a is b for a, b in zip(batch.as_given(), (ids, ids), strict=True))


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return (left + right) * scale


def test_which_values_are_inputs() -> None:
    (inputs,) = batches(Two(), [(X, X)])
    assert list(inputs) == ["left", "right"]
    (labelled,) = batches(Two(), [(X, X, Y)])
    assert list(labelled) == ["left", "right", "labels"]
    with pytest.raises(CalibrationError, match="a batch of 5 values, and Two takes 3 inputs"):
        batches(Two(), [(X, X, X, X, Y)])
    # Crops of several lengths are batches of their own.
    crops = (torch.zeros(2, 5).long(), torch.zeros(2, 9).long())
    assert len(batches(tiny.llama(), crops)) == 2


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss, r"CrossEntropyLoss is a class: give CrossEntropyLoss\(\)"),
        ("ce", r"loss_fn='ce' cannot be called: it is called with \(model, batch\), or a loss of"),
        (lambda model: 0, r"does not take two arguments .*\(prediction, target\)"),
        (nn.CTCLoss(), "does not take two arguments"),
        (nn.BCELoss(), r"BCELoss cannot compare the prediction \(8, 4\) with the labels \(8,\)"),
        (nn.CrossEntropyLoss(reduction="none"), r"must be a scalar tensor, not \(8,\)"),
    ],
)
def test_losses_that_do_not_fit(loss_fn: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        scores(LOADER, loss_fn)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_to_compare_with() -> None:
    with pytest.raises(CalibrationError, match=r"CrossEntropyLoss compares .* batches have none"):
        scores([X], nn.CrossEntropyLoss())
    with pytest.raises(CalibrationError, match=r"there is a label 7, and .* of 4 classes"):
        scores([(X, Y + 4)])
    with pytest.raises(CalibrationError, match=r"cannot compare .*Target"):
        scores([(X, Y + 4)], nn.CrossEntropyLoss())


def test_refused_before_anything_is_traced() -> None:
    with pytest.raises(CalibrationError, match="is a class"):
        fxprune.prune(None, pruning_ratio=0.1, loss_fn=nn.MSELoss)  # type: ignore[arg-type]


def test_recovery_calls_the_model() -> None:
    with pytest.raises(RecoveryError, match=r"loss_fn is called with \(model, batch\)"):
        fxprune.recover(MODEL, [X], loss_fn=nn.CrossEntropyLoss(), collate_fn=lambda rows: rows)


def test_which_losses_compare() -> None:
    def either(model: Any, y: Any) -> None: ...

    assert not compares(either)
    assert not compares(lambda m, b: 0)
    assert compares(lambda p, target: 0)
    assert not compares(max)
    check_loss(max)
    check_loss(None)
