"""Put tensors into a transformers model that was built without, and prove that they fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    """The first tensor of ``small`` that has another shape than the one to be put there.

    Args:
        small: the model, without weights.
        tensors: what is to be put there, by its name in the whole model.
        names: from its names to those.
        inside: look only below this path.

    Returns:
        What is wrong; "" if nothing is.
    """
    for name, blank in named_tensors(small).items():
        if not name.startswith(inside):
            continue
        original = names.original(name)
        tensor = tensors.get(original)
        if tensor is None or tensor.shape != blank.shape:
            shape = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            return f"{original} {shape}, and as {name} {tuple(blank.shape)} is needed"
    return ""


def check_attributes(
    model: nn.Module, small: nn.Module, names: Names, changed: Sequence[Change]
) -> list[str]:
    """Every module that stays is what it was, save for numbers that count units of the plan.

    Returns:
        Attributes that hold tensors of no module and that a new model has not, as a forward pass
        may leave them. Whether anything reads them is not said.

    Raises:
        ShrinkError: something else is different: a scale, a window, a flag.
    """
    left = []
    for path, module in small.named_modules():
        original = names.original(path)
        # With fewer layers, what counts or sums them up outside may differ: flags and numbers.
        kinds = float if names.stacks and not names.inside(path) else bool | int | float | str
        before = at(model, original)
        if before is None:
            raise ShrinkError(
                f"{original} does not exist: {type(model).__name__} gives layer {path} something "
                "that the layer in its place did not have"
            )
        if path and type(module) is not type(before):
            raise ShrinkError(
                f"{original} is a {type(before).__name__}, and as {path} the config makes it a "
                f"{type(module).__name__}"
            )
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("layer_idx", "training"):
                continue
            there = vars(before).get(name)
            if value is None and isinstance(there, torch.Tensor):
                left.append(f"{original}.{name}" if original else name)
                continue
            if not isinstance(value, kinds | None) or there == value:
                continue
            if type(value) is int and type(there) is int:
                shapes = _shapes(before, module)
                if (there, value) in shapes or value in _counts(there, changed):
                    continue
            raise ShrinkError(
                f"{original or type(model).__name__}.{name} is {there!r}, and "
                f"as {path or 'that'} the config makes it {value!r}"
            )
    return left


def _shapes(before: nn.Module, module: nn.Module) -> set[tuple[int, int]]:
    """Sizes of the axes of a module's own tensors, before and after; those are proven."""
    found = set()
    for name, tensor in module.named_parameters(recurse=False):
        there = before._parameters.get(name)
        found |= set(zip(there.shape, tensor.shape, strict=False)) if there is not None else set()
    return found


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
    ignored = getattr(small, "_keys_to_ignore_on_save", None) or ()
    for path, module in small.named_modules():
        inside = f"{path}." if path else ""
        own = {n: b for n, b in module.named_buffers(recurse=False) if n not in module.state_dict()}
        fixed = {n: p for n, p in module._parameters.items() if inside + n in ignored and p.is_meta}
        for name, blank in own.items():
            module._buffers[name] = torch.zeros_like(blank, device="cpu")
        for name, blank in fixed.items():
            module._parameters[name] = nn.Parameter(torch.zeros_like(blank, device="cpu"), False)
        if own or fixed:
            _owner(small, path)._init_weights(module)
        for name in (*own, *fixed):
            full = inside + name
            computed, tensor = getattr(module, name), tensors.get(names.original(full))
            if computed is None or tensor is None or tensor.is_meta:
                continue
            if computed.shape != tensor.shape or not _alike(computed, tensor):
                raise ShrinkError(
                    f"{full} is not saved, and {type(small).__name__} would compute other values "
                    "for it than the pruned model has"
                )


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
        tensor = tensors[names.original(name)]
        if tensor.is_meta and not blank.is_meta:
            continue  # a buffer that the class has computed
        path, _, leaf = name.rpartition(".")
        holder: Any = small.get_submodule(path)
        if isinstance(blank, nn.Parameter):
            if not isinstance(tensor, nn.Parameter):
                tensor = wrapped.setdefault(id(tensor), nn.Parameter(tensor))
            holder._parameters[leaf] = tensor
        else:
            holder._buffers[leaf] = tensor


def lost(found: Collection[str], small: nn.Module, names: Names) -> Iterator[str]:
    """Tensors outside the removed layers that the smaller model does not read."""
    used = {names.original(name) for name in named_tensors(small)}
    gone = tuple(path for stack in names.stacks for path in stack.removed)
    return (name for name in found if name not in used and not name.startswith(gone))
