"""The calibration loss of a batch, and how much it weighs in the mean over all batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune.data.calibrate import Batch, Positional, arguments, rows
from fxprune.data.graph_inputs import named_inputs
from fxprune.data.loss_function import LossFunction, compares, first_line, run
from fxprune.data.processes import Processes
from fxprune.errors import CalibrationError
from fxprune.trace.traced import Traced

IGNORED = -100  # the label that torch's and transformers' losses leave out


def batch_loss(model: nn.Module, batch: Batch, loss_fn: LossFunction | None = None) -> Tensor:
    """The mean loss of one batch, a finite scalar that can be differentiated.

    ``loss_fn(model, batch)`` where given, or ``loss_fn(prediction, target)`` of the model's logits
    and the batch's labels, see :func:`compares`. Else the model's own loss, with
    ``batch["labels"]`` or, for a model that generates, the input ids as labels. Else cross entropy
    on its logits; against the next token where labels are a sequence.

    Args:
        model: the model.
        batch: keyword inputs, on the model's device.
        loss_fn: the user's own loss.

    Raises:
        CalibrationError: if the model gives no loss, or one that is not a finite scalar.
    """
    loss = _default_loss(model, batch) if loss_fn is None else _own_loss(model, batch, loss_fn)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise CalibrationError(f"the loss must be a scalar tensor, not {shape}")
    if not loss.isfinite().item():
        bad = (name for name, p in model.named_parameters() if not p.detach().isfinite().all())
        name = next(bad, None)
        cause = "" if name is None else f"; the parameter {name!r} has values that are not finite"
        raise CalibrationError(f"the loss is {loss.item()}: scores need a finite one{cause}")
    return loss.reshape(())


def _given(batch: Batch, loss_fn: Any) -> Any:
    """The batch as the user gave it, to a loss of the user's."""
    plain = isinstance(loss_fn, GraphLoss) or not isinstance(batch, Positional)
    return batch if plain else batch.as_given()  # type: ignore[attr-defined]


def _own_loss(model: nn.Module, batch: Batch, loss_fn: Any) -> Any:
    if not compares(loss_fn):
        return loss_fn(model, _given(batch, loss_fn))
    inputs = dict(batch)
    target = inputs.pop("labels", None)
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    if target is None:
        raise CalibrationError(
            f"{name} compares a prediction with a target, and the batches have none: give batches "
            "(inputs, labels), or mappings with 'labels'"
        )
    _check_inputs(model, inputs)
    prediction = logits_of(model, run(model, inputs))
    try:
        return loss_fn(prediction, target)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"{name} cannot compare the prediction {tuple(prediction.shape)} with the labels "
            f"{tuple(target.shape)} {target.dtype} ({first_line(error)})"
        ) from error


@dataclass(frozen=True, eq=False)
class GraphLoss:
    """The loss of graphs of one model. Whether labels are of the next token, the model says.

    Attributes:
        traced: the model as a graph; others that take its inputs have the same loss.
    """

    traced: Traced

    def __call__(self, graph: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of one batch, see :func:`output_loss`."""
        total, count = output_loss(self.traced.module, batch, self.run(graph, batch))
        return total / count

    def run(self, graph: nn.Module, batch: Batch) -> Any:
        """What a graph gives for one batch."""
        return run(graph, named_inputs(self.traced, batch))


def output_loss(model: nn.Module, batch: Batch, output: Any) -> tuple[Tensor, int]:
    """The loss of an output that is there already, as of a graph of the model.

    Args:
        model: the model; says whether labels are those of the next token.
        batch: keyword inputs, with ``labels`` unless the model generates from ``input_ids``.
        output: what the model or its graph gave for them.

    Returns:
        The sum of the negative log-likelihoods, a scalar, and the number of labels, which may be 0.

    Raises:
        CalibrationError: there are no logits, no labels, or they do not go together.
    """
    labels = batch.get("labels")
    if labels is None:
        labels = _default_labels(model, batch)
    logits = logits_of(model, output)
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        raise _unfit(model, logits, labels)
    _check_classes(model, logits, labels)
    if labels.ndim > 1 and _shifts(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    flat, labels = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
    total = functional.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="sum")
    return total, int((labels != IGNORED).sum())


def logits_of(
    model: nn.Module, output: Any, advice: str = "neither a loss nor logits: pass loss_fn=..."
) -> Tensor:
    """The logits in what a model gave: its first value, or the one of that name.

    Args:
        model: which gave it.
        output: a tensor, or whatever the logits are wrapped in.
        advice: the end of the message where there are none.

    Raises:
        CalibrationError: there are none.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise CalibrationError(f"{type(model).__name__} gives {advice}")
    return output


def run_forward(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFunction | None = None,
    *,
    last_logits: bool = False,
) -> None:
    """Run the model over one batch for what hooks see; no loss, nor labels, are needed.

    Args:
        model: the model.
        batch: keyword inputs, on the model's device.
        loss_fn: the user's own loss, which then runs the model.
        last_logits: only the logits of the last position, where the model can; saves the work of
            the output layer.

    Raises:
        CalibrationError: if the model has no such input.
    """
    if isinstance(loss_fn, GraphLoss):
        loss_fn.run(model, batch)  # no labels are needed
        return
    if loss_fn is not None and not compares(loss_fn):
        _own_loss(model, batch, loss_fn)
        return
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        _default_loss(model, batch)  # the decoder's inputs come from the labels
        return
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    names = _check_inputs(model, inputs)
    if last_logits and "logits_to_keep" in names:
        inputs.setdefault("logits_to_keep", 1)
    run(model, inputs)


def predictions(
    model: nn.Module,
    data: list[Batch],
    loss_fn: LossFunction | None = None,
    among: Processes | None = None,
) -> list[int]:
    """How much each batch weighs in the mean loss over all of them.

    The number of predicted labels, so that micro-batches give the gradient of the whole batch; the
    number of examples where the loss is the user's own.

    Raises:
        CalibrationError: if nothing is left to predict, in none of the processes ``among`` which
            the data is divided.
    """
    if isinstance(loss_fn, GraphLoss):
        model, loss_fn = loss_fn.traced.module, None
    counts = [rows(b) if loss_fn is not None else _predicted(model, b) for b in data]
    if sum(counts if among is None else map(sum, among.gather(counts))) == 0:
        raise CalibrationError("every label is ignored (-100): nothing to predict")
    return counts


def _default_loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs = dict(batch)
    labels = inputs.pop("labels", None)
    if labels is None:
        labels = _default_labels(model, batch)
    names = _check_inputs(model, inputs)
    _, others = arguments(model)
    own = "labels" in names or (others and _generates(model))
    output = run(model, {**inputs, "labels": labels} if own else inputs)
    loss = getattr(output, "loss", None) if own else None
    if isinstance(loss, Tensor):
        return loss
    return _cross_entropy(model, logits_of(model, output), labels)


def _check_inputs(model: nn.Module, inputs: Batch) -> tuple[str, ...]:
    """The named inputs of the model; switches off its cache in ``inputs``."""
    names, others = arguments(model)
    if not others and (unknown := [name for name in inputs if name not in names]):
        raise CalibrationError(f"{type(model).__name__}.forward has no input {unknown[0]!r}")
    if "use_cache" in names:
        inputs.setdefault("use_cache", False)
    return names


def _default_labels(model: nn.Module, batch: Batch) -> Tensor:
    """The input ids as labels, padding left out."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or not (
        _generates(model) or "labels" not in arguments(model)[0]
    ):
        raise CalibrationError(
            f"{type(model).__name__} needs 'labels' in the batches, or a loss_fn"
        )
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return ids.masked_fill(mask == 0, IGNORED)
    return ids


def _predicted(model: nn.Module, batch: Batch) -> int:
    """Number of labels of a batch that the loss counts."""
    labels = batch.get("labels")
    if labels is None:
        labels = _default_labels(model, batch)
    if labels.is_floating_point():
        return rows(batch)
    if labels.ndim > 1 and _shifts(model):
        labels = labels[:, 1:]
    return int((labels != IGNORED).sum())


def _shifts(model: nn.Module) -> bool:
    """Whether the loss compares position t with label t + 1."""
    return "labels" not in arguments(model)[0] or continues(model)


def continues(model: nn.Module) -> bool:
    """Whether a model generates text that continues its input."""
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return _generates(model) and not encodes


def _generates(model: nn.Module) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return callable(can_generate) and bool(can_generate())


def _cross_entropy(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        raise _unfit(model, logits, labels)
    _check_classes(model, logits, labels)
    if labels.ndim > 1:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # Float32, as the sum over a vocabulary in half precision loses the small terms.
    flat = logits.reshape(-1, logits.shape[-1]).to(torch.float32)
    return functional.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED)


def _check_classes(model: nn.Module, logits: Tensor, labels: Tensor) -> None:
    classes = labels[labels != IGNORED]
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[-1]:
        wrong = int(classes.min()) if int(classes.min()) < 0 else int(classes.max())
        raise CalibrationError(
            f"there is a label {wrong}, and {type(model).__name__} gives logits of "
            f"{logits.shape[-1]} classes"
        )


def _unfit(model: nn.Module, logits: Tensor, labels: Tensor) -> CalibrationError:
    return CalibrationError(
        f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} of "
        f"{type(model).__name__} do not go together: pass loss_fn=..."
    )
