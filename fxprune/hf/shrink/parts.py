"""Parts of a config: which of nested configs speaks of a module, and of which list of layers.

A part is named by the entries that lead to it from the config of the whole model: ``()`` for that
itself, ``("text_config",)`` for the language model of many that see or hear.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fxprune.errors import ModelError
from fxprune.hf.shrink.stacks import at, layer_lists

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Part = tuple[str, ...]


def parts(config: PreTrainedConfig) -> dict[Part, PreTrainedConfig]:
    """The config and all that are nested in it, outermost first."""
    found: dict[Part, PreTrainedConfig] = {(): config}
    for name in config.sub_configs:
        inner: Any = getattr(config, name, None)
        if hasattr(inner, "sub_configs"):
            found |= {(name, *rest): each for rest, each in parts(inner).items()}
    return found


def inside(config: PreTrainedConfig, part: Part) -> PreTrainedConfig:
    """The config of a part."""
    for name in part:
        config = getattr(config, name)
    return config


def language(config: PreTrainedConfig) -> Part:
    """The part that describes the language model; the whole config where none does."""
    text = config.get_text_config()
    return next((part for part, each in parts(config).items() if each is text), ())


def part_of(model: nn.Module, path: str) -> Part:
    """The part of a model's config that speaks of the module at a path.

    It is the config that the module holds, or the innermost one around it that holds any. What the
    model as a whole says is left to the language model.
    """
    config: Any = model.config
    known = parts(config)
    names = path.split(".") if path else []
    for end in range(len(names), 0, -1):
        module = at(model, ".".join(names[:end]))
        held = vars(module).get("config") if module is not None else None
        if held is None or not hasattr(held, "sub_configs"):
            continue
        # A model may have copied it, and one with layers of their own sizes has.
        for same in (_is, _equal, _alike):
            found = [part for part, each in known.items() if same(each, held)]
            if len(found) == 1:
                return found[0] or language(config)
    return language(config)


def unheld(model: nn.Module, part: Part) -> tuple[Part, ...]:
    """The parts nested in one that no module holds: they speak of its own modules."""
    config: Any = model.config
    nested = [each for each in parts(config) if each and each[:-1] == part]
    if not nested:
        return ()
    holders = [path for path, module in model.named_modules() if path and "config" in vars(module)]
    held = {part_of(model, path) for path in holders}
    return tuple(each for each in nested if each not in held)


def others(model: nn.Module) -> list[str]:
    """The outermost modules with a nested config that is not the language model's."""
    spoken, found = language(model.config), list[str]()  # type: ignore[arg-type]
    for path, module in model.named_modules():
        inside_one = any(path.startswith(f"{other}.") for other in found)
        if path and not inside_one and "config" in vars(module):
            part = part_of(model, path)
            if part and part != spoken[: len(part)] and part[: len(spoken)] != spoken:
                found.append(path)
    return found


def uneven(config: PreTrainedConfig) -> list[Part]:
    """The parts that have entries for single layers."""
    return [part for part, each in parts(config).items() if each.is_heterogeneous]


def even(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy without the entries for single layers."""
    made = copy.deepcopy(config)
    for each in parts(made).values():
        each.per_layer_config = None
        vars(each).pop("allow_global_per_layer_attribute_access", None)
    return made


def overrides(config: PreTrainedConfig) -> dict[int, dict[str, Any]]:
    """The entries for single layers of one part, by their numbers."""
    if not config.is_heterogeneous:
        return {}
    held: Mapping[int, dict[str, Any]] = config._heterogeneity_spec.per_layer_overrides
    return {int(number): dict(entries) for number, entries in held.items()}


def stacks_apart(model: nn.Module, config: PreTrainedConfig | None = None) -> dict[str, list[str]]:
    """The lists of layers that have entries for single layers, each with its part.

    Args:
        model: the model, or one that was built without these entries.
        config: with the entries; the model's own by default.

    Raises:
        ModelError: it cannot be told which list such entries speak of.
    """
    config = config or model.config  # type: ignore[assignment]
    assert config is not None
    found = {}
    for part in uneven(config):
        count = inside(config, part).num_hidden_layers
        lists = [path for path in lists_of(model, part) if len(_list(model, path)) == count]
        if len(lists) != 1:
            raise ModelError(
                f"{type(model).__name__} has {len(lists)} lists of {count} layers that "
                f"{'.'.join((*part, 'per_layer_config'))} may speak of"
            )
        found[lists[0]] = list(part)
    return found


def lists_of(model: nn.Module, part: Part) -> list[str]:
    """The lists of layers that a part of the config speaks of: each layer is made of a config."""
    return [
        path
        for path, layers in layer_lists(model)
        if all(_takes_config(type(layer)) for layer in layers)
        and part_of(model, path) == part
        and any(parameter.ndim > 1 for parameter in layers.parameters())  # rotary tables have none
    ]


def _list(model: nn.Module, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _takes_config(cls: type) -> bool:
    return list(inspect.signature(cls).parameters)[:1] == ["config"]


def _is(one: Any, other: Any) -> bool:
    return one is other


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and even(one).to_dict() == even(other).to_dict()


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other)
