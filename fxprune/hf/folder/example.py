"""Example inputs as JSON: names, shapes and dtypes, which is all that tracing reads of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import CheckpointError


def describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Example inputs as JSON values.

    Raises:
        CheckpointError: an input is neither a tensor, a plain value, nor a container of those.
    """
    return {
        "args": [_plain(value, f"args[{i}]") for i, value in enumerate(args)],
        "kwargs": {name: _plain(value, name) for name, value in kwargs.items()},
    }


def make(described: Mapping[str, Any], model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the described shapes, full of zeros, where the model is.

    Raises:
        CheckpointError: the description is damaged.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        args = tuple(_value(item, device) for item in described["args"])
        return args, {name: _value(item, device) for name, item in described["kwargs"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the example inputs in fxprune.json are damaged: {error!r}"
        ) from error


def _plain(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}}
    raise CheckpointError(
        f"example input {name} is a {type(value).__name__}, which cannot be saved: trace the model "
        "with tensors, plain values, lists and dicts"
    )


def _value(item: Mapping[str, Any], device: torch.device) -> Any:
    if "shape" in item:
        return torch.zeros(item["shape"], dtype=getattr(torch, item["dtype"]), device=device)
    if "list" in item:
        return [_value(part, device) for part in item["list"]]
    if "tuple" in item:
        return tuple(_value(part, device) for part in item["tuple"])
    if "dict" in item:
        return {name: _value(part, device) for name, part in item["dict"].items()}
    return item["value"]
