"""Put tensors into a transformers model that was built without, and prove that they fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from fxprune.errors import ShrinkError
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.stacks import Names, at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tensors = Mapping[str, torch.Tensor]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, tied ones under all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def misfit(small: nn.Module, tensors: Tensors, names: Names, inside: str = "") -> str:
    """The first of :func:`misfits` in words; "" if there is none."""
    return next(misfits(small, tensors, names, inside), "")


def misfits(small: nn.Module, tensors: Tensors, names: Names, inside: str = "") -> Iterator[str]:
    """The tensors of ``small`` that have another shape than the ones to be put there.

    Args:
        small: the model, without weights.
        tensors: what is to be put there, by its name in the whole model.
        names: from its names to those.
        inside: look only below this path.
    """
    for name, blank in named_tensors(small).items():
        if not name.startswith(inside):
            continue
        original = names.original(name)
        tensor = tensors.get(original)
        if tensor is None or tensor.shape != blank.shape:
            shape = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            if tensor is not None and cut(name, tensor, blank.shape, names) is not None:
                continue
            yield f"{original} {shape}, and as {name} {tuple(blank.shape)} is needed"


def cut(name: str, tensor: torch.Tensor, shape: torch.Size, names: Names) -> torch.Tensor | None:
    """What is left of a tensor that holds a part for each layer, outside of the layers.

    Args:
        name: of the tensor.
        tensor: of the whole model.
        shape: what the smaller model needs.
        names: from its names to those.

    Returns:
        None where it is no such tensor.
    """
    pairs = list(zip(tensor.shape, shape, strict=False))
    axes = [axis for axis, (there, here) in enumerate(pairs) if there != here]
    if len(axes) != 1 or len(pairs) != tensor.dim() or names.inside(name):
        return None
    (axis,) = axes
    for stack in names.stacks:
        if tensor.shape[axis] * len(stack.kept) == shape[axis] * stack.size:
            parts = tensor.chunk(stack.size, axis)
            return torch.cat([parts[layer] for layer in stack.kept], axis)
    return None


def parted(small: nn.Module, tensors: Tensors, names: Names) -> Iterator[str]:
    """The tensors that lose the parts of layers that go: only outputs tell whether it is those."""
    for name, blank in named_tensors(small).items():
        tensor = tensors.get(names.original(name))
        if tensor is not None and tensor.shape != blank.shape:
            yield (
                f"{names.original(name)} has shape {tuple(tensor.shape)}, and as {name} "
                f"{tuple(blank.shape)} is needed"
            )


class Difference(NamedTuple):
    """What a module of the smaller model has unlike the one whose place it takes.

    Attributes:
        text: in words.
        counts: it is the number of the layer, or of all layers: only outputs tell what comes of it.
    """

    text: str
    counts: bool = False


def differences(
    model: nn.Module, small: nn.Module, names: Names, changed: Sequence[Change]
) -> Iterator[Difference]:
    """What is not as it was in modules that stay, save for numbers that count units of the plan.

    It may be a scale, a window, a flag.
    """
    for path, module in small.named_modules():
        original = names.original(path)
        # With fewer layers, what counts or sums them up outside may differ: flags and numbers.
        kinds = float if names.stacks and not names.inside(path) else bool | int | float | str
        before = at(model, original)
        if before is None:
            yield Difference(
                f"{original} does not exist: {type(model).__name__} gives layer {path} something "
                "that the layer in its place did not have"
            )
            continue
        if path and type(module) is not type(before):
            yield Difference(
                f"{original} is a {type(before).__name__}, and as {path} the config makes it a "
                f"{type(module).__name__}"
            )
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("layer_idx", "training"):
                continue
            there = vars(before).get(name)
            if not isinstance(value, kinds | None) or _same(_renumbered(there, changed), value):
                continue
            if value is None and isinstance(there, torch.Tensor):
                yield Difference(
                    f"{f'{original}.{name}' if original else name} is a tensor, and "
                    f"{type(small).__name__} begins with None there: set it to None if a forward "
                    "pass left it, or give traced=, so that the outputs without it are compared",
                    counts=True,
                )
                continue
            counts = (there, value) in names.numbers(path)
            if type(value) is int and type(there) is int:
                mine = [change for change in changed if change.concerns(original)]
                if (there, value) in _shapes(before, module) or value in _counts(there, mine):
                    continue
                # Of units elsewhere, as a config that sizes two things by one entry would have it.
                counts |= value in _counts(there, changed)
            yield Difference(
                f"{original or type(model).__name__}.{name} is {_said(there)}, and "
                f"as {path or 'that'} the config makes it {value!r}",
                counts,
            )


def _renumbered(value: Any, changed: Sequence[Change]) -> Any:
    """The new number of what may be a token, such as one that pads."""
    new = next((c.numbers.of(value) for c in changed if c.numbers is not None), None)
    return value if new is None else new


def _same(one: Any, other: Any) -> bool:
    """Whether they are equal, numbers but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return not isinstance(one, torch.Tensor) and bool(one == other)


def _said(value: Any) -> str:
    return "a tensor" if isinstance(value, torch.Tensor) else repr(value)


def _shapes(before: nn.Module, module: nn.Module) -> set[tuple[int, int]]:
    """Sizes of the axes of the tensors of a module and its children, before and after.

    Those are proven to fit.
    """
    there = dict(before.named_parameters())
    return {
        sizes
        for name, tensor in module.named_parameters()
        if name.count(".") <= 1 and name in there
        for sizes in zip(there[name].shape, tensor.shape, strict=False)
    }


def _counts(value: int, changed: Iterable[Change]) -> set[int]:
    """What a number may become by any of the changes, one after the other."""
    found = {value}
    for change in changed:
        found |= {new for old in found if (new := change.of(old)) is not None}
    return found


@torch.no_grad()
def check_unsaved(small: PreTrainedModel, tensors: Tensors, names: Names) -> None:
    """What a checkpoint does not hold must be what the class computes when it is loaded.

    Args:
        small: the model without weights; these tensors of it are computed.
        tensors: what is to be put there, by its name in the whole model.
        names: from its names to those.

    Raises:
        ShrinkError: a tensor that is not saved has other values in the pruned model.
    """
    for full, value in unsaved(small).items():
        tensor = tensors.get(names.original(full))
        if value is None or tensor is None or tensor.is_meta:
            continue
        if value.shape != tensor.shape or not _alike(value, tensor):
            raise ShrinkError(
                f"{full} is not saved, and {type(small).__name__} would compute other values "
                "for it than the pruned model has"
            )


@torch.no_grad()
def unsaved(model: PreTrainedModel, blank: float = 0.0) -> dict[str, torch.Tensor | None]:
    """What a checkpoint does not hold, as the class computes it when one is loaded.

    Args:
        model: without weights; these tensors of it are computed.
        blank: what the numbers are that the class does not compute.

    Returns:
        By name.
    """
    computed: dict[str, list[str]] = {}
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    for path, module in model.named_modules():
        inside = f"{path}." if path else ""
        own = {n: b for n, b in module.named_buffers(recurse=False) if n not in module.state_dict()}
        fixed = {n: p for n, p in module._parameters.items() if inside + n in ignored and p.is_meta}
        for name, buffer in own.items():
            module._buffers[name] = torch.full_like(buffer, blank, device="cpu")
        for name, parameter in fixed.items():
            empty = torch.full_like(parameter, blank, device="cpu")
            module._parameters[name] = nn.Parameter(empty, False)
        if own or fixed:
            computed[path] = [*own, *fixed]
    # A model may compute what its layers hold: those around a module are asked after it.
    around = {up: None for path in computed for up in _upwards(path)}
    for path in sorted(around, key=len, reverse=True):
        with contextlib.suppress(AttributeError):  # a layer built alone may lack what it gives it
            _owner(model, path)._init_weights(model.get_submodule(path))
    return {
        f"{path}.{name}" if path else name: getattr(model.get_submodule(path), name)
        for path, names in computed.items()
        for name in names
    }


def _upwards(path: str) -> list[str]:
    """A path and those around it, the whole last."""
    parts = path.split(".") if path else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _owner(model: PreTrainedModel, path: str) -> Any:
    """The innermost transformers model around a module: it knows how to begin with it."""
    found, module = model, model
    for name in path.split(".") if path else ():
        module = getattr(module, name)
        found = module if hasattr(module, "_init_weights") else found
    return found


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are the same but for rounding: a GPU does not take powers as a CPU does."""
    one = one.to(other)
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=8 * torch.finfo(one.dtype).eps, atol=0, equal_nan=True)


def fill(small: nn.Module, tensors: Tensors, names: Names) -> None:
    """Put tensors in place of those of ``small``; what is tied stays so."""
    wrapped: dict[int, nn.Parameter] = {}
    for name, blank in named_tensors(small).items():
        whole = tensor = tensors[names.original(name)]
        if tensor.shape != blank.shape:
            left = cut(name, tensor.detach(), blank.shape, names)
            assert left is not None
            tensor = left
        if tensor.is_meta and not blank.is_meta:
            continue  # a buffer that the class has computed
        path, _, leaf = name.rpartition(".")
        holder: Any = small.get_submodule(path)
        if isinstance(blank, nn.Parameter):
            if not isinstance(tensor, nn.Parameter):
                tensor = wrapped.setdefault(id(whole), nn.Parameter(tensor))
            holder._parameters[leaf] = tensor
        else:
            holder._buffers[leaf] = tensor


def lost(found: Collection[str], small: nn.Module, names: Names) -> Iterator[str]:
    """Tensors outside the removed layers that the smaller model does not read."""
    used = {names.original(name) for name in named_tensors(small)}
    gone = tuple(path for stack in names.stacks for path in stack.removed)
    return (name for name in found if name not in used and not name.startswith(gone))
