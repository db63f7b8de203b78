"""Gradients of the calibration loss, handed out and freed one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fxprune.data.calibrate import Batch
from fxprune.errors import CalibrationError
from fxprune.importance.criterion import Needs
from fxprune.importance.evidence import Gradients
from fxprune.progress import track
from fxprune.trace.modes import evaluation

Consume = Callable[[str, Gradients], None]
Loss = Callable[[Batch], Tensor]
Total = Callable[[Tensor], Tensor]
Pairs = Sequence[tuple[Batch, float]]


def stream_mean(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pairs: Pairs,
    loss: Loss,
    consume: Consume,
    *,
    total: Total | None = None,
    progress: bool = False,
) -> None:
    """Differentiate the mean loss over the data and give each gradient to ``consume`` once.

    During the backward pass of the last micro-batch a gradient is consumed and freed as soon as it
    is complete, so with one micro-batch the gradients never exist together. Dropout is off.

    Args:
        model: the model; left as it was found.
        parameters: the parameters to differentiate for, by name; they need not require gradients.
        pairs: micro-batches on the model's device, each with its weight in the mean.
        loss: the loss of one batch.
        consume: called with name and gradient (``mean``). A parameter that the loss does not
            depend on has gradient zero.
        total: sums a gradient over processes that each have a part of the data; all gradients
            exist together then.
        progress: show a progress bar.

    Raises:
        CalibrationError: if the loss depends on none of the parameters.
    """
    waiting = dict(parameters)

    def arrive(name: str, parameter: nn.Parameter) -> None:
        waiting.pop(name, None)
        gradient, parameter.grad = parameter.grad, None
        found = torch.zeros_like(parameter) if gradient is None else gradient
        consume(name, Gradients(found if total is None else total(found)))

    with _prepared(model, parameters.values()):
        for i, (batch, weight) in enumerate(track(pairs, "Calibrating", progress)):
            result = loss(batch) * weight
            if i < len(pairs) - 1 or total is not None:  # they are summed in one order
                _backward(result)
                continue
            with _arriving(parameters, arrive):
                _backward(result)
        for name, parameter in tuple(waiting.items()):  # the last backward pass did not reach it
            arrive(name, parameter)


def stream_samples(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pairs: Pairs,
    loss: Loss,
    *,
    each: Consume | None = None,
    whole: Consume | None = None,
    sums: Needs = frozenset(),
    count: int | None = None,
    total: Total | None = None,
    progress: bool = False,
) -> None:
    """Differentiate the loss of every sample by itself.

    Each gradient is consumed and freed as it arrives. Sums over the samples are only kept for
    ``whole``: in float32, one or two numbers per weight.

    Args:
        model: the model; left as it was found.
        parameters: the parameters to differentiate for, by name; they need not require gradients.
        pairs: single samples on the model's device, each with its weight in the mean loss.
        loss: the mean loss of one sample.
        each: called for every sample and parameter with the squared gradient (``squares``); at
            least once per parameter, with zeros if no sample reaches it.
        whole: called once per parameter with the sums over all samples.
        sums: which of ``gradient`` and ``squares`` to keep for ``whole``.
        count: number of samples, if not those of ``pairs``.
        total: sums what is kept for ``whole`` over processes.
        progress: show a progress bar.

    Raises:
        CalibrationError: if the loss depends on none of the parameters.
    """
    samples = Samples(len(pairs) if count is None else count, each, whole, sums, total)

    def arrive(weight: float, name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.float(), None
        samples.add(name, gradient, weight)

    with _prepared(model, parameters.values()):
        for batch, weight in track(pairs, "Calibrating", progress):
            result = loss(batch)
            with _arriving(parameters, partial(arrive, weight)):
                _backward(result)
        samples.finish(parameters)


class Samples:
    """Gradients of single samples, consumed as they come, and their sums.

    Args:
        count: number of samples.
        each: see :func:`stream_samples`.
        whole: likewise.
        sums: likewise.
        total: likewise.
    """

    def __init__(
        self,
        count: int,
        each: Consume | None,
        whole: Consume | None,
        sums: Needs,
        total: Total | None = None,
    ) -> None:
        self.count, self.each, self.whole, self.wanted = count, each, whole, sums
        self.total = total
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.seen: set[str] = set()

    def add(self, name: str, gradient: Tensor, weight: float) -> None:
        """Consume the gradient of a parameter for one sample.

        Args:
            name: of the parameter.
            gradient: in float32; it is overwritten.
            weight: of the sample in the mean loss.
        """
        self.seen.add(name)
        if "gradient" in self.wanted:
            _add(self.means, name, gradient, weight)
        square = gradient.square_()
        if "squares" in self.wanted:
            _add(self.squares, name, square, 1.0)
        if self.each is not None:
            self.each(name, Gradients(squares=square, samples=self.count))

    def finish(self, parameters: Mapping[str, Tensor]) -> None:
        """Hand out the sums of parameters that no more gradients come for."""
        for name, parameter in parameters.items():
            if name in self.seen:
                continue
            zeros = torch.zeros_like(parameter, dtype=torch.float32)
            if self.each is not None:
                self.each(name, Gradients(squares=zeros, samples=self.count))
            self.means[name] = self.squares[name] = zeros
        for name in parameters if self.whole is not None else ():
            assert self.whole is not None
            found = [self.means.pop(name, None), self.squares.pop(name, None)]
            if self.total is not None:
                for place, need in enumerate(("gradient", "squares")):
                    if (part := found[place]) is not None and need in self.wanted:
                        found[place] = self.total(part)
            self.whole(name, Gradients(found[0], found[1], self.count))


def _add(sums: dict[str, Tensor], name: str, term: Tensor, weight: float) -> None:
    if name in sums:
        sums[name].add_(term, alpha=weight)
    else:
        sums[name] = term * weight


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
def _arriving(
    parameters: Mapping[str, nn.Parameter], arrive: Callable[[str, nn.Parameter], None]
) -> Iterator[None]:
    """Call ``arrive`` as soon as the gradient of a parameter is complete."""
    names = {parameter: name for name, parameter in parameters.items()}
    arrived: set[str] = set()

    def hook(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        name = names[parameter]
        if name in arrived or parameter.grad is None:
            raise CalibrationError(
                f"the gradient of {name!r} arrives in parts: switch off re-entrant "
                "gradient checkpointing while scores are estimated"
            )
        arrived.add(name)
        arrive(name, parameter)

    with ExitStack() as stack:
        for parameter in names:
            handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        yield
