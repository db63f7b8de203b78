"""Put tensors into a transformers model that was built without, and prove that they fit."""

from __future__ import annotations

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
            if not isinstance(value, kinds | None) or _same(there, value):
                continue
            if type(value) is int and type(there) is int:
                shapes = _shapes(before, module)
                if (there, value) in shapes or value in _counts(there, changed):
                    continue
            yield Difference(
                f"{original or type(model).__name__}.{name} is {_said(there)}, and "
                f"as {path or 'that'} the config makes it {value!r}",
                counts=(there, value) in names.numbers(path),
            )


def _same(one: Any, other: Any) -> bool:
    """Whether they are equal, numbers but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return not isinstance(one, torch.Tensor) and bool(one == other)


def _said(value: Any) -> str:
    return "a tensor" if isinstance(value, torch.Tensor) else repr(value)


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
def check_buffers(small: PreTrainedModel, tensors: Tensors, names: Names) -> None:
    """What a checkpoint does not hold must be what the class computes when it is loaded.

    Args:
        small: the model without weights; these buffers of it are computed.
        tensors: what is to be put there, by its name in the whole model.
        names: from its names to those.

    Raises:
        ShrinkError: a buffer that is not saved has other values in the pruned model.
    """
    unsaved: dict[str, list[str]] = {}
    for path, module in small.named_modules():
        own = {n: b for n, b in module.named_buffers(recurse=False) if n not in module.state_dict()}
        for name, blank in own.items():
            module._buffers[name] = torch.zeros_like(blank, device="cpu")
        if own:
            unsaved[path] = list(own)
            _owner(small, path)._init_weights(module)
    for path, own_names in unsaved.items():
        for name in own_names:
            full = f"{path}.{name}" if path else name
            tensor, around = tensors.get(names.original(full)), path
            while tensor is not None and not _computed(small.get_buffer(full), tensor):
                if not around:
                    raise ShrinkError(
                        f"{full} is not saved, and {type(small).__name__} would compute other "
                        "values for it than the pruned model has"
                    )
                # Some modules begin with what lies further inside.
                around = around.rpartition(".")[0]
                _owner(small, around)._init_weights(small.get_submodule(around))


def _computed(buffer: torch.Tensor, tensor: torch.Tensor) -> bool:
    return tensor.is_meta or (buffer.shape == tensor.shape and _alike(buffer, tensor))


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
