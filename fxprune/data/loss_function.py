"""Losses of the user's: of a model and a batch, or of a prediction and a target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import CalibrationError
from fxprune.trace.given import mend

# Of a model and a batch; or of a prediction and a target, as the losses of torch.
LossFunction = Callable[[nn.Module, Any], Tensor] | Callable[[Tensor, Tensor], Tensor]
# How functions call a target that they compare with, and a model that they run.
_TARGETS = ("target", "targets", "label", "labels", "y", "y_true", "truth")
_MODELS = ("model", "module", "net", "network", "m")


def check_loss(loss_fn: object) -> None:
    """Refuse a loss that cannot be called with two arguments.

    Raises:
        CalibrationError: it cannot.
    """
    if loss_fn is None:
        return
    says = "it is called with (model, batch), or a loss of torch with (prediction, target)"
    if isinstance(loss_fn, type):
        raise CalibrationError(f"loss_fn={loss_fn.__name__} is a class: give {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise CalibrationError(f"loss_fn={loss_fn!r} cannot be called: {says}")
    try:
        inspect.signature(_called(loss_fn)).bind(None, None)
    except TypeError as error:
        raise CalibrationError(f"loss_fn does not take two arguments ({error}): {says}") from None
    except ValueError:
        return  # built in, and says nothing of what it takes


def compares(loss_fn: object) -> bool:
    """Whether a loss is one of a prediction and a target, by what it calls its parameters."""
    try:
        names = list(inspect.signature(_called(loss_fn)).parameters)
    except (TypeError, ValueError):
        return False
    if len(names) < 2 or names[0] in _MODELS:
        return False
    return isinstance(loss_fn, nn.Module) or names[1] in _TARGETS


def _called(loss_fn: Any) -> Any:
    return loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn


def run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """What a model gives.

    Raises:
        CalibrationError: it cannot run on these inputs.
    """
    try:
        return model(**inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{type(model).__name__} cannot run on the calibration data "
            f"({type(error).__name__}: {first_line(error)}){mend(model, inputs, error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
