"""The reference: the original module without what a smaller one has lost, found by value."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tests.fuzz.alive import Alive, plainly
from tests.fuzz.rules import RULES

Kept = dict[str, tuple[Tensor | None, ...]]
"""For each tensor and axis the positions that stayed, ascending; None where all did."""


class NotASliceError(Exception):
    """A tensor of the smaller model is not made of entries of the original's."""


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter values unlike one another, so that what stayed can be told by value.

    Matrices keep activations near 1; vectors and running statistics are moved away from 0 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.dim() > 1 and parameter.shape[0] > 1:
            inputs = parameter.shape[-1] if parameter.dim() == 3 else parameter[0].numel()
            parameter.copy_(noise * inputs**-0.5)
        else:
            parameter.add_(0.3 * noise)
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * noise)
        elif name.endswith("running_var"):
            buffer.copy_(torch.exp(0.3 * noise))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def kept_positions(small: nn.Module, original: nn.Module) -> Kept:
    """What stayed of each tensor, by value.

    Raises:
        NotASliceError: a tensor is not a slice of the original's.
    """
    old = named_tensors(original)
    found: Kept = {}
    for name, tensor in named_tensors(small).items():
        if name in old and tensor.shape != old[name].shape:
            found[name] = _positions(name, tensor.detach(), old[name].detach())
        elif name in old and not torch.equal(tensor, old[name]):
            raise NotASliceError(f"{name}: other values than the original's")
    return found


def _positions(name: str, small: Tensor, big: Tensor) -> tuple[Tensor | None, ...]:
    if small.dim() != big.dim() or 0 in small.shape:
        raise NotASliceError(f"{name}: {tuple(small.shape)} of {tuple(big.shape)}")
    if sum(a != b for a, b in zip(small.shape, big.shape, strict=True)) == 1:
        return _rows(name, small, big)
    values, order = np.unique(big.flatten().numpy(), return_index=True)
    here = np.searchsorted(values, small.flatten().numpy()).clip(max=len(values) - 1)
    places = np.unravel_index(order[here], big.shape)
    result: list[Tensor | None] = []
    for axis, where in enumerate(places):
        if small.shape[axis] == big.shape[axis]:
            result.append(None)
            continue
        # Every entry of a row says which row of the original it is of; a few may be mistaken.
        rows = np.moveaxis(where.reshape(small.shape), axis, 0).reshape(small.shape[axis], -1)
        result.append(torch.tensor([int(np.bincount(row).argmax()) for row in rows]))
    taken = take(big, tuple(result))
    ascending = all(r is None or bool((r.diff() > 0).all()) for r in result)
    if not ascending or not torch.equal(taken, small):
        raise NotASliceError(f"{name}: {tuple(small.shape)} is not a slice of {tuple(big.shape)}")
    return tuple(result)


def _rows(name: str, small: Tensor, big: Tensor) -> tuple[Tensor | None, ...]:
    """Positions along the one axis that is shorter; whole rows are equal where values repeat."""
    axis = next(a for a, size in enumerate(small.shape) if size != big.shape[a])
    found, rest = [], iter(enumerate(big.unbind(axis)))
    for row in small.unbind(axis):
        place = next((place for place, each in rest if torch.equal(each, row)), None)
        if place is None:
            raise NotASliceError(
                f"{name}: {tuple(small.shape)} is not a slice of {tuple(big.shape)}"
            )
        found.append(place)
    return tuple(torch.tensor(found) if a == axis else None for a in range(small.dim()))


def take(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    """The entries that stayed."""
    for axis, positions in enumerate(kept):
        if positions is not None:
            tensor = tensor.index_select(axis, positions)
    return tensor


@torch.no_grad()
def expected(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    kept: Kept,
    gone: frozenset[str] = frozenset(),
    skipped: tuple[str, ...] = (),
) -> list[Tensor]:
    """Outputs of the original with the lost entries left out of everything.

    Args:
        model: the original.
        args: its inputs.
        kwargs: its inputs by name.
        kept: what stayed of its tensors.
        gone: parameters that are dead as a whole, those of removed branches.
        skipped: blocks that pass on what enters them: paths of modules, with ``@1`` for the
            second time that a module runs.

    Raises:
        UnknownOpError: it uses dead entries in a way that is not known here.
    """
    alive = Alive(RULES)
    with _memories_apart(model):
        tensors = named_tensors(model)
        for name, positions in kept.items():
            alive.mark(tensors[name], _mask(tensors[name], positions))
        for name in gone:
            alive.mark(tensors[name], torch.zeros(tensors[name].shape, dtype=torch.bool))
        with passed_by(model, skipped), plainly(), eager_cond(), alive:
            output = model(*args, **kwargs)
    may_shrink = isinstance(output, ModelOutput)
    return [_as_given(alive, each, may_shrink) for each in flat(output)]


def _as_given(alive: Alive, output: Tensor, may_shrink: bool) -> Tensor:
    """An output with zeros for what is lost, or without: hidden states may shrink."""
    mask = alive.record(output)
    if mask is None or not may_shrink:
        return alive.zeroed(output)
    for axis in range(output.dim()):
        left = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).any(1)
        output, mask = (x.index_select(axis, left.nonzero().flatten()) for x in (output, mask))
    return output


def _mask(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    mask = torch.ones(tensor.shape, dtype=torch.bool)
    for axis, positions in enumerate(kept):
        if positions is not None:
            row = torch.zeros(tensor.shape[axis], dtype=torch.bool)
            row[positions] = True
            mask &= row.view([-1 if a == axis else 1 for a in range(tensor.dim())])
    return mask


@contextlib.contextmanager
def _memories_apart(model: nn.Module) -> Iterator[None]:
    """Parameters that are views of one memory with memories of their own: each loses its units."""
    seen: set[int] = set()
    views = []
    for parameter in model.parameters():
        if (place := parameter.untyped_storage().data_ptr()) in seen:
            views.append((parameter, parameter.data))
            parameter.data = parameter.data.clone()
        seen.add(place)
    try:
        yield
    finally:
        for parameter, view in views:
            parameter.data = view


def eager_cond() -> contextlib.AbstractContextManager[Any]:
    """``torch.cond`` as a plain branch: it compiles what it calls, past every mode of torch."""

    def cond(pred: Any, yes: Any, no: Any, operands: Any = ()) -> Any:
        return (yes if bool(pred) else no)(*operands)

    return mock.patch.object(torch, "cond", cond)


@contextlib.contextmanager
def passed_by(model: nn.Module, places: tuple[str, ...]) -> Iterator[None]:
    """Blocks that give what they are given, by forward hooks, until the block ends."""
    handles = []
    for place in places:
        path, _, run = place.partition("@")
        module = model.get_submodule(path)
        handles.append(
            module.register_forward_hook(_identity(int(run or 0), "@" in place), with_kwargs=True)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _identity(run: int, one_of_several: bool) -> Callable[..., Any]:
    calls = 0

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if one_of_several and calls - 1 != run:
            return output
        entered = args[0] if args else kwargs["hidden_states"]
        return (entered, *output[1:]) if isinstance(output, tuple) else entered

    return hook


def flat(output: Any) -> list[Tensor]:
    """Every tensor of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if output is None or isinstance(output, int | float | str):
        return []
    items = output.values() if hasattr(output, "values") else output
    return [each for item in items for each in flat(item)]


def difference(want: list[Tensor], got: list[Tensor]) -> float:
    """The largest error of any output, relative to that output's largest entry.

    Infinite if they differ in number, shape, dtype, or in where they are finite.
    """
    if len(want) != len(got):
        return math.inf
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if a.numel() == 0:
            continue
        if not a.is_floating_point() and not a.is_complex():
            worst = max(worst, 0.0 if torch.equal(a, b) else 1.0)
            continue
        x, y = a.double(), b.double()
        finite = x.isfinite()
        if not torch.equal(finite, y.isfinite()):
            return math.inf
        scale = float(x[finite].abs().max()) if bool(finite.any()) else 0.0
        error = float((x - y)[finite].abs().max()) if bool(finite.any()) else 0.0
        worst = max(worst, error / max(scale, 1e-5))
    return worst
