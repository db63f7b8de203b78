"""Models of transformers whose layers have sizes of their own.

The config says which (``per_layer_config``, transformers' own schema). This file needs nothing of
fxprune: a copy of it lies beside the weights of every checkpoint with such layers.
"""

import copy
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


def build_apart(model: Any, config: Any, path: str) -> None:
    """Give a model layers of their own sizes, without weights.

    Args:
        model: made from the config without ``per_layer_config``.
        config: the config with it.
        path: of the list of layers.
    """
    # Which kernels to use was settled when the model was made.
    settled = {
        k: v for k, v in vars(model.config).items() if k.endswith("_implementation_internal")
    }
    vars(config).update(settled)
    layers = model.get_submodule(path)
    for number, layer in enumerate(layers):
        layers[number] = layer_of(type(layer), config.per_layer_config[number], number)
        layers[number].train(layer.training)
    model.config = config


def apart(cls: Any, path: str) -> Any:
    """A class like ``cls`` that builds each layer as its config says.

    Args:
        cls: class of a model.
        path: of its list of layers.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        alike = copy.deepcopy(config)
        alike.per_layer_config = None
        cls.__init__(self, alike, *args, **kwargs)
        if config.is_heterogeneous:
            build_apart(self, config, path)

    return type(cls.__name__, (cls,), {"__init__": build, "__module__": __name__})
