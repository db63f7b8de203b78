"""A shorter model of the same transformers class, for ``generate`` and everything else."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.errors import ShrinkError
from fxprune.hf import architecture
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_BLOCK = re.compile(r"(.+)\.(\d+):block")


def shrink(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The model without the blocks that a plan removes, as the same transformers class.

    Lists of layers are shorter, with their ``layer_idx`` and the per-layer lists of the config
    (``layer_types``) renumbered; ``num_hidden_layers``, or what the class calls it, says so. So
    ``generate``, key/value caches, ``save_pretrained`` and training work as before. (But a T5 whose
    encoder is shorter than its decoder generates with ``use_cache=False`` alone in transformers.)

    The shape of every tensor is proven on ``meta`` before any is used, and so are the attributes by
    which layers differ (a sliding window, say). Tensors are shared with ``model``, not copied.

    Args:
        model: the model, with its weights.
        plan: a plan for it that removes blocks and nothing else.

    Raises:
        ShrinkError: the plan removes what a config cannot say: single branches, units of groups, or
            a block that has something of its own which the model cannot do without; or the model is
            none of transformers.
        PlanError: the plan is for another model.
    """
    _check(model, plan)
    stacks = _stacks(model, plan)
    if not stacks:
        return model
    small = _built(model, stacks)
    names = _Names(stacks)
    _check_layers(model, small, stacks, names)
    _fill(model, small, names)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        small.generation_config = copy.deepcopy(generation)
    small.train(model.training)
    return small


def _check(model: nn.Module, plan: Plan) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ShrinkError(
            f"{type(model).__name__} is no model of transformers, with a config to make a shorter "
            "one from; fxprune.rewrite makes a graph of it"
        )
    plan.check_model(model)


@dataclass(frozen=True)
class _Stack:
    """A list of layers and which of them stay."""

    path: str
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class _Names:
    """Names in the short model to those in the whole one."""

    stacks: Sequence[_Stack]

    def original(self, name: str) -> str:
        """``model.layers.3.weight`` to ``model.layers.4.weight`` where one before it went."""
        for stack in self.stacks:
            rest = name.removeprefix(f"{stack.path}.")
            if rest != name:
                number, dot, tail = rest.partition(".")
                return f"{stack.path}.{stack.kept[int(number)]}{dot}{tail}"
        return name


def _stacks(model: PreTrainedModel, plan: Plan) -> list[_Stack]:
    if plan.kept:
        raise ShrinkError(
            f"the plan removes units of groups too ({next(iter(plan.kept))}): only whole blocks "
            "can go from a transformers model so far; fxprune.rewrite makes a graph of it"
        )
    gone: dict[str, set[int]] = {}
    for name in plan.removed:
        block = _BLOCK.fullmatch(name)
        if block is None:
            raise ShrinkError(
                f"the plan removes {name}: a transformers model has its layers whole; "
                "fxprune.rewrite makes a graph without it"
            )
        gone.setdefault(block[1], set()).add(int(block[2]))
    found = []
    for path, numbers in gone.items():
        layers = _at(model, path)
        if not isinstance(layers, nn.ModuleList) or max(numbers) >= len(layers):
            raise ShrinkError(f"{type(model).__name__} has no list of layers {path!r}")
        kept = tuple(i for i in range(len(layers)) if i not in numbers)
        if not kept:
            raise ShrinkError(f"no layer of {path} would stay")
        found.append(_Stack(path, len(layers), kept))
    return found


def _at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _built(model: PreTrainedModel, stacks: Sequence[_Stack]) -> PreTrainedModel:
    """The short model on ``meta``: the config that gives lists of the right lengths is the one."""
    lengths = {p: len(m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    wanted = lengths | {stack.path: len(stack.kept) for stack in stacks}
    tried = []
    for config in _configs(model.config, stacks):
        try:
            small = architecture.build(
                config,
                dtype=model.dtype,
                architecture=type(model).__name__,
                attn_implementation=model.config._attn_implementation,
            )
        except Exception as error:
            tried.append(str(error))
            continue
        made = {p: len(m) for p, m in small.named_modules() if isinstance(m, nn.ModuleList)}
        if all(made.get(stack.path) == len(stack.kept) for stack in stacks) and all(
            length == wanted[path] for path, length in made.items() if path in _outer(wanted)
        ):
            return small
    why = f" ({tried[0]})" if tried else ""
    paths = ", ".join(stack.path for stack in stacks)
    raise ShrinkError(
        f"no entry of {type(model.config).__name__} says how many layers {paths} has{why}"
    )


def _outer(lengths: Mapping[str, int]) -> set[str]:
    """Lists that lie in no other list: those inside the layers have moved."""
    return {
        path
        for path in lengths
        if not any(path.startswith(f"{other}.") for other in lengths if other != path)
    }


def _configs(config: PreTrainedConfig, stacks: Sequence[_Stack]) -> Iterator[PreTrainedConfig]:
    """Configs with fewer layers: every choice of one entry per stack that has its length."""
    text = config.get_text_config()
    values = {name: getattr(text, name) for name in text.to_dict() if hasattr(text, name)}
    numbers = {
        name: value
        for name, value in values.items()
        if type(value) is int and "layer" in name.replace("n_block", "layer")
    }
    choices = [
        sorted(
            (name for name, value in numbers.items() if value == stack.size),
            key=lambda name, path=stack.path: (  # type: ignore[misc]
                ("decoder" in name) != ("decoder" in path),
                name != "num_hidden_layers",
            ),
        )
        for stack in stacks
    ]
    for names in itertools.product(*choices):
        if len(set(names)) < len(names):
            continue
        changed = copy.deepcopy(config)
        target = changed.get_text_config()
        for name, stack in zip(names, stacks, strict=True):
            # Lists first: setting the number may check them.
            for other, value in values.items():
                if isinstance(value, list) and len(value) == stack.size and "layer" in other:
                    target.__dict__[other] = [value[i] for i in stack.kept]
            target.__dict__[text.attribute_map.get(name, name)] = len(stack.kept)
        yield changed


def _check_layers(
    model: nn.Module, small: nn.Module, stacks: Sequence[_Stack], names: _Names
) -> None:
    """Every layer that stays is of the class and make that it was."""
    for path, module in small.named_modules():
        if not any(path.startswith(f"{stack.path}.") for stack in stacks):
            continue
        before = _at(model, names.original(path))
        if before is None:
            raise ShrinkError(
                f"{names.original(path)} does not exist: {type(model).__name__} gives layer "
                f"{path} something that the layer in its place did not have"
            )
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("layer_idx", "training"):
                continue
            there = vars(before).get(name)
            if isinstance(value, bool | int | float | str | None) and there != value:
                raise ShrinkError(
                    f"{names.original(path)}.{name} is {there!r}, and as {path} the config makes "
                    f"it {value!r}"
                )


def _fill(model: nn.Module, small: nn.Module, names: _Names) -> None:
    """The tensors of the whole model in place of those on ``meta``."""
    found: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    wanted = [
        *small.named_parameters(remove_duplicate=False),
        *small.named_buffers(remove_duplicate=False),
    ]
    used = {name: names.original(name) for name, _ in wanted}
    for name, blank in wanted:
        tensor = found.get(used[name])
        if tensor is None or tensor.shape != blank.shape:
            shape = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ShrinkError(f"{used[name]} {shape}, and as {name} {tuple(blank.shape)} is needed")
    lost = _lost(model.state_dict(), set(used.values()), names.stacks)
    if lost:
        raise ShrinkError(f"{lost} has no place in the shorter model, which would lose it")
    for name, _ in wanted:
        path, _, leaf = name.rpartition(".")
        holder: Any = small.get_submodule(path)
        slot = "_parameters" if leaf in holder._parameters else "_buffers"
        getattr(holder, slot)[leaf] = found[used[name]]


def _lost(found: Mapping[str, object], used: set[str], stacks: Sequence[_Stack]) -> str:
    """A tensor outside the removed layers that the short model does not read; "" for none."""
    gone = tuple(
        f"{stack.path}.{number}."
        for stack in stacks
        for number in range(stack.size)
        if number not in stack.kept
    )
    return next((n for n in found if n not in used and not n.startswith(gone)), "")
