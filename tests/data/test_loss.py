"""The calibration loss: the model's own, or cross entropy on its logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune.data.loss import GraphLoss, batch_loss, output_loss, predictions, run_forward
from fxprune.errors import CalibrationError
from tests.toys import ToyLM
from tests.zoo import BY_NAME, built, traced

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


# The loss of an output, and of graphs


def labelled(name: str) -> dict[str, Any]:
    """A batch for a model of the zoo, with labels of which some are ignored."""
    args, kwargs = BY_NAME[name].example()
    batch = dict(kwargs) if kwargs else {"pixel_values" if name == "vit" else "image": args[0]}
    generator = torch.Generator().manual_seed(2)
    if not kwargs:
        return {**batch, "labels": torch.randint(7, (len(args[0]),), generator=generator)}
    like = batch.get("decoder_input_ids", batch["input_ids"])
    labels = torch.randint(101, like.shape, generator=generator)
    labels[0, 2:] = labels[2] = -100
    return {**batch, "labels": labels}


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "vit", "chatglm_block", "resnet"])
@torch.no_grad()
def test_the_loss_of_an_output_is_the_models_own(name: str) -> None:
    model, batch = built(name, "eager"), labelled(name)
    inputs = {n: value for n, value in batch.items() if n != "labels"}
    total, count = output_loss(model, batch, model(**inputs))
    assert [count] == predictions(model, [batch])
    expected = batch_loss(model, batch)
    torch.testing.assert_close(total / count, expected)
    # A graph of the model says nothing about labels, so the model is asked.
    graph = traced(name, "eager").graph_module
    loss = GraphLoss(traced(name, "eager"))
    torch.testing.assert_close(batch_loss(graph, batch, loss), expected, rtol=1e-5, atol=1e-5)
    assert predictions(graph, [batch, batch], loss) == [count, count]


@torch.no_grad()
def test_the_loss_of_an_output_without_labels() -> None:
    model, (_, batch) = built("llama", "eager"), BY_NAME["llama"].example()
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 5:] = 0
    masked = {**batch, "attention_mask": mask}
    for each, expected in ((batch, 5 * 12), (masked, 4 * 12 + 4)):
        total, count = output_loss(model, each, model(**each))
        assert count == expected
        torch.testing.assert_close(total / count, batch_loss(model, each))
    assert output_loss(model, {**batch, "labels": torch.full_like(mask, -100)}, model(**batch)) == (
        0,
        0,
    )


def test_an_output_and_labels_that_do_not_fit() -> None:
    model, (_, batch) = built("bert", "eager"), BY_NAME["bert"].example()
    for output, labels, message in (
        (LOGITS, IDS[:2], r"logits \(3, 4, 11\) and labels \(2, 4\) of BertForMaskedLM"),
        (LOGITS, torch.rand(3, 4), r"logits \(3, 4, 11\) and labels \(3, 4\)"),
        (None, IDS, "BertForMaskedLM gives neither a loss nor logits"),
    ):
        with pytest.raises(CalibrationError, match=message):
            output_loss(model, {"input_ids": IDS, "labels": labels}, output)
    with pytest.raises(CalibrationError, match="BertForMaskedLM needs 'labels'"):
        output_loss(model, batch, LOGITS)


@torch.no_grad()
def test_a_forward_pass_of_a_graph_needs_no_labels() -> None:
    graph, (_, batch) = traced("bert", "eager").graph_module, BY_NAME["bert"].example()
    seen: list[Any] = []
    handle = graph.register_forward_hook(lambda module, args, output: seen.append(output))
    loss = GraphLoss(traced("bert", "eager"))
    run_forward(graph, batch, loss)
    with pytest.raises(CalibrationError, match="lacks the input 'input_ids'"):
        run_forward(graph, {"labels": IDS}, loss)
    handle.remove()
    assert len(seen) == 1


def test_the_loss_of_a_graph_can_be_differentiated() -> None:
    graph, batch = traced("bert", "eager").graph_module, labelled("bert")
    weight = graph.get_parameter("bert.encoder.layer.0.output.dense.weight")
    loss = batch_loss(graph, batch, GraphLoss(traced("bert", "eager")))
    (found,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(batch_loss(built("bert", "eager"), batch), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
