"""Gradients of the calibration loss, handed out and freed one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxprune.errors import CalibrationError
from fxprune.importance.calibrate import Batch
from fxprune.importance.loss import LossFunction, batch_loss, batch_weights
from fxprune.progress import track
from fxprune.trace.modes import evaluation

Consumer = Callable[[str, Tensor, Tensor], None]


def stream_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    data: list[Batch],
    consume: Consumer,
    *,
    loss_fn: LossFunction | None = None,
    progress: bool = False,
) -> None:
    """Differentiate the mean loss over the data and give each gradient to ``consume`` once.

    During the backward pass of the last micro-batch a gradient is consumed and freed as soon as it
    is complete, so with one micro-batch the gradients never exist together. Dropout is off.

    Args:
        model: the model; left as it was found.
        parameters: the parameters to differentiate for, by name; they need not require gradients.
        data: micro-batches on the model's device.
        consume: called with name, parameter and gradient. A parameter that the loss does not
            depend on has gradient zero.
        loss_fn: the loss of one batch; by default the model's own.
        progress: show a progress bar.

    Raises:
        CalibrationError: if the loss is not finite or depends on none of the parameters.
    """
    weights = batch_weights(model, data, loss_fn)
    # Batches that weigh nothing (all labels ignored) have a loss of 0/0: leave them out.
    pairs = [(batch, weight) for batch, weight in zip(data, weights, strict=True) if weight]
    names = {parameter: name for name, parameter in parameters.items()}
    arrived: set[str] = set()
    last = False

    def hook(parameter: Tensor) -> None:
        if not last:
            return
        assert isinstance(parameter, nn.Parameter)
        name, gradient = names[parameter], parameter.grad
        if name in arrived or gradient is None:
            raise CalibrationError(
                f"the gradient of {name!r} arrives in parts: switch off re-entrant "
                "gradient checkpointing while scores are estimated"
            )
        parameter.grad = None
        arrived.add(name)
        consume(name, parameter, gradient)

    with _prepared(model, names), _hooked(names, hook):
        for i, (batch, weight) in enumerate(track(pairs, "Calibrating", progress)):
            last = i == len(pairs) - 1
            _backward(batch_loss(model, batch, loss_fn) * weight)
        for parameter, name in names.items():
            if name not in arrived:  # the last micro-batch did not reach it
                gradient = parameter.grad
                parameter.grad = None
                consume(
                    name, parameter, torch.zeros_like(parameter) if gradient is None else gradient
                )


def _backward(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise CalibrationError("the calibration loss depends on none of the scored parameters")
    loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _prepared(model: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, gradients for the wanted parameters alone; all restored at the end."""
    wanted = set(wanted)
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in states:
            parameter.requires_grad_(parameter in wanted)
            parameter.grad = None
        with evaluation(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad, gradient in states:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _hooked(parameters: Iterable[nn.Parameter], hook: Callable[[Tensor], None]) -> Iterator[None]:
    handles = [
        p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        for p in parameters
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
