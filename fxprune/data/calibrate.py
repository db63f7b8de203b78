"""Calibration data: from what the user has to a list of micro-batches on the model's device."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CalibrationError
from fxprune.trace.digests import digest

Batch = dict[str, Any]
Calibration = (
    Tensor
    | Mapping[str, Any]
    | Iterable[Tensor | Mapping[str, Any] | tuple[Tensor, ...] | list[Tensor]]
)


class Positional(Batch):
    """A batch that was given as a tuple or list: inputs by name, in order, the labels last."""

    def as_given(self) -> tuple[Any, ...]:
        """The tuple."""
        return tuple(self.values())


def batches(
    model: nn.Module,
    calibration: Calibration,
    batch_size: int | None = None,
    device: torch.device | None = None,
) -> list[Batch]:
    """The calibration data as micro-batches, on the model's device.

    Args:
        model: the model that will read them.
        calibration: token ids of shape (N, L), or one batch as a mapping of keyword inputs, or an
            iterable of either, or of tuples or lists ``(inputs, labels)`` as a ``DataLoader`` gives
            them: one more than the model needs, or two, and the last is the labels. Each item is
            one batch. Inputs may be nested in dicts, lists and the like.
        batch_size: split every batch into micro-batches of at most this many sequences, which
            bounds the memory of activations; None leaves the batches as they are.
        device: where they go instead.

    Raises:
        CalibrationError: if there is no data, sequences are too short to predict anything, or the
            data is none of the above.
    """
    if batch_size is not None and batch_size < 1:
        raise CalibrationError(f"batch_size={batch_size}: it must be at least 1")
    if isinstance(calibration, Tensor | Mapping) or _is_pair(calibration):
        calibration = [calibration]  # type: ignore[list-item]
    if not isinstance(calibration, Iterable):
        raise CalibrationError(_expected(calibration))
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    result = []
    for item in calibration:
        batch = _batch(model, item)
        for micro in _split(batch, batch_size):
            result.append(type(micro)((n, _moved(each, device)) for n, each in micro.items()))
    if not result:
        raise CalibrationError("the calibration data is empty")
    return result


def rows(batch: Batch) -> int:
    """Number of examples in a batch: the size of the first axis of its first tensor."""
    sizes = (t.shape[0] for t in tensors([batch.get("input_ids"), *batch.values()]) if t.ndim)
    return next(sizes, 1)


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, which may be nested in dicts, lists and the like."""
    leaves = pytree.tree_leaves(list(values))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def told_apart(data: Any) -> str:
    """A digest of calibration data: batches of tensors, or one."""
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            for key, each in value.items():
                collect(f"{name}.{key}", each)
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                collect(f"{name}.{place}", each)

    collect("", data)
    return digest(found.items())


def arguments(model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The named inputs of ``model.forward``, and whether it takes any others (``**kwargs``)."""
    parameters = inspect.signature(model.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind not in variadic)
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _batch(model: nn.Module, item: Any) -> Batch:
    if isinstance(item, Tensor):
        names, others = arguments(model)
        item = {"input_ids" if others else _first(names): item}
    if isinstance(item, tuple | list):
        item = _positional(model, item)
    if not isinstance(item, Mapping):
        raise CalibrationError(_expected(item))
    batch = item if isinstance(item, Positional) else dict(item)
    ids = batch.get("input_ids")
    if not tensors(batch.values()) or rows(batch) == 0:
        raise CalibrationError("the calibration data is empty")
    if isinstance(ids, Tensor):
        _check_tokens(ids)
    return batch


def _is_pair(given: object) -> bool:
    """Whether tensors are one batch, inputs and labels, and not several batches of one kind."""
    if not isinstance(given, tuple | list) or not all(isinstance(x, Tensor) for x in given):
        return False
    return len({(item.ndim, item.is_floating_point()) for item in given}) > 1


def _positional(model: nn.Module, item: Sequence[Any]) -> Positional:
    """Inputs by name, and what follows them as the labels.

    Raises:
        CalibrationError: there are more values than that, or none.
    """
    names, _ = arguments(model)
    parameters = inspect.signature(model.forward).parameters
    needed = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    count = len(item)
    if count > len(names) + 1 or count == 0:
        raise CalibrationError(
            f"a batch of {count} values, and {type(model).__name__} takes {len(names)} inputs "
            f"({', '.join(names)}) beside the labels: give batches as mappings of keyword inputs"
        )
    first = _first(names)
    ordered = (first, *(name for name in names if name != first and name != "labels"))
    labelled = count > len(needed) if needed else count > 1
    inputs = ordered[: count - labelled]
    return Positional(zip((*inputs, *(["labels"] if labelled else [])), item, strict=True))


def _first(names: Sequence[str]) -> str:
    """The input that a single tensor is. A plain module may call it anything: `x`, `input`."""
    return "input_ids" if "input_ids" in names or not names else names[0]


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


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some examples of a batch."""
    count = rows(batch)

    # What has another first axis (position_ids of shape (1, L)) belongs to every part.
    def cut(value: Tensor) -> Tensor:
        return value[start:stop] if value.ndim and value.shape[0] == count else value

    return type(batch)((n, pytree.tree_map_only(Tensor, cut, v)) for n, v in batch.items())


def held_out(data: Sequence[Batch], every: int) -> tuple[list[Batch], list[Batch]]:
    """The data in two parts: what is left, and the last ``1 / every`` of the examples of a shape.

    That is at least one of four examples or more, and none of fewer.
    """
    alike: dict[tuple[int, ...], list[Batch]] = {}
    for batch in data:
        first = tensors(batch.values())[0]
        alike.setdefault(tuple(first.shape[1:]), []).append(batch)
    left, held = list[Batch](), list[Batch]()
    for each in alike.values():
        count = sum(map(rows, each))
        stay = count - max(1, count // every) if count >= 4 else count
        for batch in each:
            size = rows(batch)
            cut = min(max(stay, 0), size)
            left += [batch if cut == size else part(batch, 0, cut)] if cut else []
            held += [batch if not cut else part(batch, cut, size)] if cut < size else []
            stay -= size
    return left, held


def _split(batch: Batch, size: int | None) -> Iterator[Batch]:
    count = rows(batch)
    if size is None or size >= count:
        yield batch
        return
    for start in range(0, count, size):
        yield part(batch, start, start + size)


def _moved(value: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def _expected(found: object) -> str:
    return (
        f"calibration data cannot be {type(found).__name__}: give token ids (N, L), a mapping of "
        "keyword inputs, or an iterable of those or of (inputs, labels)"
    )
