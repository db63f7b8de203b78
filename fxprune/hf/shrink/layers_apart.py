"""Transformers models whose layers have sizes of their own.

The config says which (``per_layer_config``, transformers' own schema). This file needs nothing of
fxprune: a copy of it lies beside the weights of every checkpoint with such layers.
"""

import copy
import functools
import inspect
from typing import Any


def layer_of(cls: Any, config: Any, number: int) -> Any:
    """One layer.

    Args:
        cls: class of the layer.
        config: of that layer alone.
        number: its place in the list.
    """
    names = list(inspect.signature(cls.__init__).parameters)[1:]
    if "layer_idx" in names:
        return cls(config, layer_idx=number)
    return cls(config, number) if len(names) > 1 else cls(config)


def build_apart(model: Any, config: Any, stacks: dict[str, list[str]]) -> None:
    """Give a model layers of their own sizes, without weights.

    Args:
        model: made from the config without ``per_layer_config``.
        config: the config with it.
        stacks: paths of the lists of layers, each with the entries that lead to the nested config
            that speaks of it; none for the config itself.
    """
    _settle(model.config, config)
    for path, part in stacks.items():
        theirs = _inside(config, part)
        _settle(_inside(model.config, part), theirs)
        layers = model.get_submodule(path)
        for number, layer in enumerate(layers):
            layers[number] = layer_of(type(layer), theirs.per_layer_config[number], number)
            layers[number].train(layer.training)
    model.config = config


def apart(cls: Any, stacks: dict[str, list[str]]) -> Any:
    """A class like ``cls`` that builds each layer as its config says.

    Args:
        cls: class of a model.
        stacks: as of :func:`build_apart`.
    """

    @functools.wraps(cls.__init__)  # vLLM compares arguments with what is said of them
    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        alike = copy.deepcopy(config)
        for part in stacks.values():
            _inside(alike, part).per_layer_config = None
        cls.__init__(self, alike, *args, **kwargs)
        if any(_inside(config, part).is_heterogeneous for part in stacks.values()):
            build_apart(self, config, stacks)

    return type(cls.__name__, (cls,), {"__init__": build, "__module__": __name__})


def _settle(settled: Any, config: Any) -> None:
    """Which kernels to use was settled when the model was made."""
    found = {k: v for k, v in vars(settled).items() if k.endswith("_implementation_internal")}
    vars(config).update(found)


def _inside(config: Any, part: list[str]) -> Any:
    for name in part:
        config = getattr(config, name)
    return config
