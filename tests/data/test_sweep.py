"""Sweeps over the pieces of a model: what they compute, and how much of it is there at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.branches import pieces_of
from fxprune.data.graph_inputs import graph_inputs
from fxprune.data.held import holding
from fxprune.data.loader import Loader
from fxprune.data.loss import GraphLoss
from fxprune.data.sweep import Read, Sweep
from fxprune.errors import CalibrationError, CheckpointError
from fxprune.trace.traced import Traced
from tests import zoo
from tests.llama import tiny_llama
from tests.models import ResidualConvNet
from tests.pieces import Counted

LAYERS = 4
BATCHES = [{"input_ids": torch.randint(90, (2, 9 + i))} for i in range(3)]


class Watch:
    """Sees nothing."""

    def see(self, batch: int, node: fx.Node, value: Any, read: Read) -> Any:
        return value


@pytest.fixture(scope="module")
def traced() -> Traced:
    return fxprune.trace(tiny_llama(num_hidden_layers=LAYERS), kwargs=BATCHES[0])


def sweep(traced: Traced, source: Any, held: Any, batches: Any = BATCHES) -> Sweep:
    inputs = [graph_inputs(traced, batch) for batch in batches]
    return Sweep(Loader(pieces_of(traced), source), inputs, held)


@pytest.mark.parametrize("limit", [None, 0])
def test_forward(traced: Traced, limit: int | None) -> None:
    outputs: dict[int, Any] = {}
    with holding(limit) as held:
        whole = sweep(traced, Counted(), held)
        whole.forward(LAYERS + 2, output=outputs.__setitem__)
        assert (held.used, held.filed) == (0, 0)
        assert held.peak < 3 * sum(2 * (9 + i) * 36 * 4 for i in range(3))
    for number, batch in enumerate(BATCHES):
        with torch.no_grad():
            assert torch.equal(outputs[number].logits, traced.graph_module(**batch).logits)


def test_one_piece_and_the_next_are_there(traced: Traced) -> None:
    source = Counted()
    with holding() as held:
        whole = sweep(traced, source, held)
        pieces = whole.weights.pieces
        seen = []

        def done(number: int) -> None:
            following = pieces[number + 1].tensors if number + 1 < len(pieces) else ()
            assert source.names() <= {*pieces[number].tensors, *following}
            assert {*pieces[number].tensors} <= source.names()
            seen.append(number)

        whole.forward(len(pieces), done=done)
    assert seen == list(range(len(pieces)))
    assert source.names() == set()
    assert threading.get_ident() not in source.threads
    assert whole.weights.bytes == sum(
        traced.tensors[name].nbytes for piece in pieces for name in piece.tensors
    )


def test_the_next_piece_is_read_while_one_runs(traced: Traced) -> None:
    source = Counted()
    loader = Loader(pieces_of(traced), source)
    order = loader.each([1, 2, 3])
    assert next(order) == 1
    read = threading.Event()
    for _ in range(500):
        if set(loader.pieces[2].tensors) <= {name for name, _ in source.alive}:
            read.set()
            break
        read.wait(0.01)
    assert read.is_set()
    order.close()
    assert source.names() == set()


def gradients(traced: Traced, batch: Any, names: list[str]) -> tuple[Tensor, ...]:
    loss = GraphLoss(traced)(traced.graph_module, batch)
    return torch.autograd.grad(loss, [traced.tensors[name] for name in names])


@pytest.mark.parametrize("limit", [None, 0])
def test_backward(traced: Traced, limit: int | None) -> None:
    names = [name for name, t in traced.tensors.items() if isinstance(t, nn.Parameter)]
    found: dict[str, Tensor] = {}
    source = Counted()
    with holding(limit) as held:
        whole = sweep(traced, source, held)
        pieces = whole.weights.pieces
        whole.forward(len(pieces) - 1, keep=True)

        def done(number: int) -> None:
            for name, tensor in whole.weights.here.items():
                assert (tensor.grad is not None) == (name in names), name
                if tensor.grad is not None:
                    found[name] = tensor.grad
            before = pieces[number - 1].tensors if number else ()
            assert source.names() <= {*pieces[number].tensors, *before}

        whole.backward(
            0,
            names,
            lambda number, model: GraphLoss(traced)(model, BATCHES[number]),
            Watch(),
            after=lambda number, batch: None,
            done=done,
        )
        assert (held.used, held.filed) == (0, 0)
    assert source.names() == set()
    expected = [gradients(traced, batch, names) for batch in BATCHES]
    for name, *parts in zip(names, *expected, strict=True):
        torch.testing.assert_close(found[name], sum(parts))


def back(whole: Sweep, loss: Any) -> None:
    whole.forward(len(whole.weights.pieces) - 1, keep=True)
    after: Any = lambda *numbers: None  # noqa: E731
    whole.backward(0, (), loss, Watch(), after=after, done=after)


def test_a_loss_runs_the_model_on_its_batch(traced: Traced) -> None:
    other = {"input_ids": BATCHES[0]["input_ids"] + 1}
    wrong = {
        "with the inputs of the batch": lambda number, model: model(**other).logits.sum(),
        "does not run the model": lambda number, model: torch.ones(1),
    }
    for said, loss in wrong.items():
        with holding() as held, pytest.raises(CalibrationError, match=said):
            back(sweep(traced, Counted(), held), loss)


def test_a_stream_that_is_written_into() -> None:
    """In place ops (ReLU after each sum) do not reach what is held, which runs again."""
    model = ResidualConvNet().eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    found = fxprune.trace(model, *zoo.BY_NAME["resnet"].example())
    images = [{"image": torch.randn(2, 3, 16, 16)} for _ in range(2)]
    names = ["stem.0.weight", "grouped.branch.0.0.weight"]
    totals = {name: torch.zeros(()) for name in names}
    with holding() as held:
        whole = sweep(found, Counted(), held, images)
        whole.forward(len(whole.weights.pieces) - 1, keep=True)

        def done(number: int) -> None:
            here = whole.weights.here
            totals.update({n: t.grad for n, t in here.items() if t.grad is not None})

        whole.backward(
            0,
            names,
            lambda number, run: run(**images[number]).square().sum(),
            Watch(),
            after=lambda number, batch: None,
            done=done,
        )
    loss = sum(found.graph_module(image["image"]).square().sum() for image in images)
    expected = torch.autograd.grad(loss, [found.tensors[name] for name in names])
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(totals[name], gradient)


def test_an_error_while_reading_ahead_is_raised(traced: Traced) -> None:
    class Broken(Counted):
        def read(self, traced: Traced, name: str) -> Tensor:
            if "layers.1" in name:
                raise CheckpointError("damaged")
            return super().read(traced, name)

    source = Broken()
    with holding() as held, pytest.raises(CheckpointError, match="damaged"):
        sweep(traced, source, held).forward(LAYERS + 2)
    assert source.names() == set()
