"""LoRA by PEFT, on transformers models and on graphs alike."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxprune.errors import RecoveryError
from fxprune.recover.methods import LoRA
from fxprune.trace.modes import seeded

if TYPE_CHECKING:
    from peft import PeftModel


def attach(module: nn.Module, method: LoRA, seed: int = 0) -> PeftModel:
    """Put adapters into a module; all else is frozen.

    The starting values depend on the seed and the order of names alone, so that the graph and the
    shrunk model of one plan begin alike.

    Args:
        module: a transformers model, a GraphModule or any other module. May be on ``meta``.
        method: rank and targets.
        seed: of the starting values.

    Returns:
        PEFT's model around the module, which now has the adapters in it.

    Raises:
        RecoveryError: PEFT is not installed, or no layer is meant.
    """
    check_installed()
    from peft import LoraConfig, get_peft_model

    names = targets(module, method)
    # PEFT takes a name for the end of names too.
    others = [n for n, _ in module.named_modules() if n not in names and _fits_any(n, names)]
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]
        lora_dropout=method.dropout,
        target_modules=names,
        exclude_modules=others or None,
        bias="none",
        fan_in_fan_out=_is_conv1d(module.get_submodule(names[0])),
    )
    with warnings.catch_warnings():
        # A model that has no config, as a graph, has no name of a base model either.
        warnings.simplefilter("ignore")
        adapted = get_peft_model(module, config)
    with seeded(seed):
        for name in sorted(names, key=_natural):
            layer: Any = module.get_submodule(name)
            if not layer.lora_A["default"].weight.is_meta:
                layer.reset_lora_parameters("default", True)
    return adapted


def check_installed() -> None:
    """See that PEFT is there.

    Raises:
        RecoveryError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise RecoveryError(
            "LoRA needs PEFT: pip install 'fxprune[recover]', or take full training"
        )


def merge(adapted: PeftModel) -> nn.Module:
    """Add the adapters to the weights: the module that :func:`attach` took, without adapters."""
    merged: nn.Module = adapted.merge_and_unload()
    return merged


def targets(module: nn.Module, method: LoRA) -> list[str]:
    """Names of the layers that get an adapter.

    Raises:
        RecoveryError: none does, one of the names fits none, or a weight is another layer's too.
    """
    linear = [name for name, each in module.named_modules() if _is_linear(each)]
    held = Counter(id(p) for each in module.modules() for p in each._parameters.values())
    tied = {name for name in linear if held[id(module.get_submodule(name).weight)] > 1}
    if isinstance(method.targets, str):
        out = _output_layer(module)
        found = [n for n in linear if n not in tied and module.get_submodule(n) is not out]
        if not found:
            raise RecoveryError(f"{type(module).__name__} has no linear layers to adapt")
        return found
    wanted = list(method.targets)
    for target in wanted:
        if not any(_fits(name, target) for name in linear):
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise RecoveryError(
                f"no linear layer is called {target!r}; there are {', '.join(ends[:12])}"
            )
    meant = [name for name in linear if _fits_any(name, wanted)]
    if shared := [name for name in meant if name in tied]:
        raise RecoveryError(
            f"{shared[0]} shares its weight with another layer: leave it out of targets"
        )
    return meant


def _fits_any(name: str, wanted: list[str]) -> bool:
    return any(_fits(name, target) for target in wanted)


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer with a transposed weight."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _output_layer(module: nn.Module) -> nn.Module | None:
    """The layer that gives the logits."""
    if not isinstance(module, fx.GraphModule):
        output = getattr(module, "get_output_embeddings", lambda: None)()
        return output if isinstance(output, nn.Module) else None
    # Back from what the graph returns first, through what only reshapes or casts.
    results = module.graph.output_node().all_input_nodes
    node = results[0] if results else None
    while node is not None and node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    if node is None or node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def _natural(name: str) -> list[Any]:
    """Sorts layers.10 behind layers.9, so that renumbered layers keep their order."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", name)]
