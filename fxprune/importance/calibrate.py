"""Calibration data: from what the user has to a list of micro-batches on the model's device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import CalibrationError

Batch = dict[str, Any]
Calibration = Tensor | Mapping[str, Any] | Iterable[Tensor | Mapping[str, Any]]


def batches(
    model: nn.Module, calibration: Calibration, batch_size: int | None = None
) -> list[Batch]:
    """The calibration data as micro-batches, on the model's device.

    Args:
        model: the model that will read them.
        calibration: token ids of shape (N, L), or one batch as a mapping of keyword inputs, or an
            iterable of either. Each item is one batch.
        batch_size: split every batch into micro-batches of at most this many sequences, which
            bounds the memory of activations; None leaves the batches as they are.

    Raises:
        CalibrationError: if there is no data, sequences are too short to predict anything, or the
            data is none of the above.
    """
    if batch_size is not None and batch_size < 1:
        raise CalibrationError(f"batch_size={batch_size}: it must be at least 1")
    if isinstance(calibration, Tensor | Mapping):
        calibration = [calibration]
    if not isinstance(calibration, Iterable):
        raise CalibrationError(_expected(calibration))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    result = []
    for item in calibration:
        batch = _batch(model, item)
        for micro in _split(batch, batch_size):
            result.append({name: _moved(value, device) for name, value in micro.items()})
    if not result:
        raise CalibrationError("the calibration data is empty")
    return result


def rows(batch: Batch) -> int:
    """Number of examples in a batch: the size of the first axis of its first tensor."""
    for name in ("input_ids", *batch):
        value = batch.get(name)
        if isinstance(value, Tensor) and value.ndim:
            return value.shape[0]
    return 1


def arguments(model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The named inputs of ``model.forward``, and whether it takes any others (``**kwargs``)."""
    parameters = inspect.signature(model.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind not in variadic)
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _batch(model: nn.Module, item: Any) -> Batch:
    if isinstance(item, Tensor):
        names, others = arguments(model)
        # A plain module may call its only input anything: `x`, `input`, `pixel_values`.
        item = {"input_ids" if others or "input_ids" in names or not names else names[0]: item}
    if not isinstance(item, Mapping):
        raise CalibrationError(_expected(item))
    batch = dict(item)
    ids = batch.get("input_ids")
    if not any(isinstance(value, Tensor) for value in batch.values()) or rows(batch) == 0:
        raise CalibrationError("the calibration data is empty")
    if isinstance(ids, Tensor):
        _check_tokens(ids)
    return batch


def _check_tokens(ids: Tensor) -> None:
    if ids.is_floating_point():
        raise CalibrationError(f"input_ids must be integers (token ids), not {ids.dtype}")
    if ids.ndim != 2:
        raise CalibrationError(f"input_ids must have the shape (N, L), not {tuple(ids.shape)}")
    if ids.shape[1] < 2:
        raise CalibrationError(
            f"sequences of {ids.shape[1]} tokens are too short: at least 2 are needed, "
            "or there is no next token to predict"
        )


def _split(batch: Batch, size: int | None) -> Iterator[Batch]:
    count = rows(batch)
    if size is None or size >= count:
        yield batch
        return
    for start in range(0, count, size):
        # What has another first axis (position_ids of shape (1, L)) belongs to every part.
        yield {
            name: value[start : start + size]
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == count
            else value
            for name, value in batch.items()
        }


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _expected(found: object) -> str:
    return (
        f"calibration data cannot be {type(found).__name__}: give token ids (N, L), a mapping of "
        "keyword inputs, or an iterable of those"
    )
