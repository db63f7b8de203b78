"""Which axes of the example inputs are captured as symbols: all that can be, found by trying."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import Dim

Axes = frozenset[tuple[int, int]]
"""Axes of tensors, each as (``id`` of the tensor, axis)."""


def every_axis(values: Iterable[Any], *, ones: bool = True) -> Axes:
    """Every axis of every tensor among the leaves of example inputs, those of size 1 if asked."""
    found = (value for value in values if isinstance(value, torch.Tensor))
    return frozenset(
        (id(tensor), axis)
        for tensor in found
        for axis in range(tensor.dim())
        if ones or tensor.shape[axis] != 1
    )


@contextlib.contextmanager
def unmarked(values: Iterable[Any]) -> Iterator[None]:
    """Take back what ``torch.export`` notes on tensors, and leaves there where it fails.

    The next try would read it, and capture axes as symbols that it was not told of.
    """
    before = [(t, dict(vars(t))) for t in values if isinstance(t, torch.Tensor)]
    try:
        yield
    finally:
        for tensor, noted in before:
            vars(tensor).clear()
            vars(tensor).update(noted)


def name_inputs(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Give a forward that takes ``**kwargs`` the names that are used, until it is put back.

    ``torch.export`` has no dynamic shapes for inputs of any name.
    """
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return
    new = [name for name in kwargs if name not in signature.parameters]
    if not new:
        return
    forward = model.forward

    def named(*args: Any, **given: Any) -> Any:
        return forward(*args, **given)

    keyword = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in new]
    named.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters[:-1], *keyword]
    )
    model.forward = named


def dynamic_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], symbolic: Axes
) -> dict[str, Any]:
    """What ``torch.export`` takes as ``dynamic_shapes``: ``Dim.AUTO`` for the axes named."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments

    def shapes(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {a: Dim.AUTO for a in range(value.dim()) if (id(value), a) in symbolic}
        if isinstance(value, Mapping):
            return {key: shapes(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = map(shapes, value)
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return None

    return {name: shapes(value) for name, value in bound.items()}


def role(tensor: torch.Tensor, axis: int) -> str:
    """What an axis of an input most likely is, for messages and for the order of trying.

    Tokens are (batch, sequence), vectors (batch, sequence, features) or (batch, channels, length),
    pictures (batch, channels, height, width).
    """
    if axis == 0:
        return "batch"
    if tensor.dim() == 2 and not tensor.is_floating_point():
        return "sequence"
    if tensor.dim() == 3:
        return "sequence"
    if tensor.dim() in (4, 5) and axis >= 2:
        return ("depth", "height", "width")[axis - tensor.dim()]
    return "size"


def fewer(values: Iterable[Any]) -> Iterator[Axes]:
    """Smaller sets of axes to try where all of them fail, the largest first.

    Axes of one role stand or fall together.
    """
    roles: dict[str, set[tuple[int, int]]] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            for axis in range(value.dim()):
                word = role(value, axis)
                pictured = "picture" if word in ("depth", "height", "width") else word
                roles.setdefault(pictured, set()).add((id(value), axis))
    for size in range(len(roles) - 1, 0, -1):
        for chosen in itertools.combinations(roles.values(), size):
            yield frozenset(itertools.chain.from_iterable(chosen))
