"""The calibration loss: the model's own, or cross entropy on its logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune.errors import CalibrationError
from fxprune.importance.loss import batch_loss, predictions, run_forward
from tests.toys import ToyLM

IDS = torch.arange(12).reshape(3, 4) % 11


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Wrapped(nn.Module):
    """A model whose output is shaped as asked."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, input_ids: Tensor) -> Any:
        return self.output


class Own(nn.Module):
    """A model with a loss of its own, like those of transformers."""

    def __init__(self, generates: bool) -> None:
        super().__init__()
        self.generates = generates
        self.seen: dict[str, Any] = {}

    def can_generate(self) -> bool:
        return self.generates

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, use_cache: bool = True
    ) -> SimpleNamespace:
        self.seen = {"labels": labels, "use_cache": use_cache}
        return SimpleNamespace(loss=torch.tensor(2.0), logits=torch.zeros(1))


LOGITS = torch.randn(3, 4, 11)


@pytest.mark.parametrize(
    "output",
    [LOGITS, {"logits": LOGITS}, (LOGITS, None), SimpleNamespace(logits=LOGITS)],
    ids=["tensor", "mapping", "tuple", "attribute"],
)
def test_shifted_cross_entropy_on_logits(output: Any) -> None:
    model = Wrapped(output)
    torch.testing.assert_close(batch_loss(model, {"input_ids": IDS}), next_token(LOGITS, IDS))
    labels = IDS.clone()
    labels[:, 1] = -100
    loss = batch_loss(model, {"input_ids": IDS, "labels": labels})
    torch.testing.assert_close(loss, next_token(LOGITS, labels))


def test_class_labels_are_not_shifted() -> None:
    logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
    loss = batch_loss(Wrapped(logits), {"input_ids": IDS, "labels": labels})
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels))


def test_the_models_own_loss() -> None:
    model = Own(generates=True)
    assert batch_loss(model, {"input_ids": IDS}) == 2
    assert torch.equal(model.seen["labels"], IDS)
    assert model.seen["use_cache"] is False
    labels = IDS + 1
    batch_loss(model, {"input_ids": IDS, "labels": labels})
    assert model.seen["labels"] is labels


def test_a_model_that_does_not_generate_needs_labels() -> None:
    model = Own(generates=False)
    with pytest.raises(CalibrationError, match="Own needs 'labels' in the batches, or a loss_fn"):
        batch_loss(model, {"input_ids": IDS})
    with pytest.raises(CalibrationError, match="Own needs 'labels'"):
        predictions(model, [{"input_ids": IDS}])
    assert batch_loss(model, {"input_ids": IDS, "labels": IDS}) == 2


def test_the_users_loss() -> None:
    batch = {"input_ids": IDS}
    model = Wrapped(None)
    seen = []

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        seen.append((model, batch))
        return torch.tensor([3.0])

    assert batch_loss(model, batch, loss) == 3
    assert seen == [(model, batch)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "Wrapped gives neither a loss nor logits: pass loss_fn"),
        ({"hidden": LOGITS}, "Wrapped gives neither a loss nor logits"),
        (torch.randn(3, 7), r"logits \(3, 7\) and labels \(3, 4\) of Wrapped do not go together"),
        (LOGITS * torch.nan, "the loss is nan"),
    ],
)
def test_no_loss(output: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        batch_loss(Wrapped(output), {"input_ids": IDS})


def test_bad_losses_of_the_user() -> None:
    for value, message in (
        (torch.zeros(3), r"must be a scalar tensor, not \(3,\)"),
        (1.0, "must be a scalar tensor, not float"),
        (torch.tensor(torch.inf), "the loss is inf"),
    ):
        with pytest.raises(CalibrationError, match=message):
            batch_loss(ToyLM(), {"input_ids": IDS}, lambda model, batch, v=value: v)


def test_an_input_the_model_does_not_have() -> None:
    with pytest.raises(CalibrationError, match=r"ToyLM\.forward has no input 'inputs'"):
        batch_loss(ToyLM(), {"input_ids": IDS, "inputs": IDS})


def test_weights_count_labels() -> None:
    labels = IDS.clone()
    labels[0, 2:] = -100
    data = [{"input_ids": IDS[i : i + 1], "labels": labels[i : i + 1]} for i in range(3)]
    assert predictions(ToyLM(), data) == [1, 3, 3]
    assert predictions(ToyLM(), data, batch_loss) == [1, 1, 1]
    classes = [
        {"x": IDS, "labels": torch.tensor([1, 2, 3])},
        {"x": IDS, "labels": torch.tensor([1])},
    ]
    assert predictions(ToyLM(), classes) == [3, 1]


def test_nothing_to_predict() -> None:
    data = [{"input_ids": IDS, "labels": torch.full_like(IDS, -100)}]
    with pytest.raises(CalibrationError, match="every label is ignored"):
        predictions(ToyLM(), data)


# Forward alone


def test_a_forward_pass_needs_no_labels() -> None:
    model = Own(generates=False)
    run_forward(model, {"input_ids": IDS, "labels": IDS})
    assert model.seen == {"labels": None, "use_cache": False}


def test_a_forward_pass_by_the_users_loss() -> None:
    seen: list[Any] = []

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        seen.append(batch)
        return torch.tensor(torch.nan)  # nobody looks at it

    batch = {"input_ids": IDS}
    run_forward(ToyLM(), batch, loss)
    assert seen == [batch]


def test_the_last_logits_alone_where_the_model_can() -> None:
    class Keeps(nn.Module):
        def forward(self, input_ids: Tensor, logits_to_keep: int = 0) -> None:
            seen.append(logits_to_keep)

    seen: list[int] = []
    run_forward(Keeps(), {"input_ids": IDS}, last_logits=True)
    run_forward(Keeps(), {"input_ids": IDS})
    run_forward(ToyLM(), {"input_ids": IDS}, last_logits=True)
    assert seen == [1, 0]


def test_a_decoder_gets_its_inputs_from_labels() -> None:
    model = Own(generates=True)
    model.config = SimpleNamespace(is_encoder_decoder=True)
    run_forward(model, {"input_ids": IDS})
    assert model.seen["labels"] is IDS


def test_a_forward_pass_with_an_unknown_input() -> None:
    with pytest.raises(CalibrationError, match=r"ToyLM\.forward has no input 'pixels'"):
        run_forward(ToyLM(), {"input_ids": IDS, "pixels": IDS})
