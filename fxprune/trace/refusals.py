"""Models that are wrapped, compiled or quantised, told by their types, and the way out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import TraceError
from fxprune.trace.arguments import argument
from fxprune.trace.source import location

# Packages whose modules hold weights as codes.
_QUANTISERS = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes",
    "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum.quanto", "eetq", "aqlm", "vptq",
)  # fmt: skip
# Names of such classes wherever they are defined.
_QUANTISED = ("Linear8bit", "Linear4bit", "QuantLinear", "WQLinear", "Int8Params", "Params4bit")
_CODES = ("qweight", "weight_packed", "_packed_params")

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32)


def check(model: Any) -> None:
    """Refuse what ``torch.export`` would fail on, or worse: capture without its weights' meaning.

    Args:
        model: what was given as one.

    Raises:
        TraceError: it is not a module, or is wrapped for parallel training, compiled, scripted or
            quantised, whole or in part. The message says what to give instead.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(_no_module(model))
    if said := _wrapper(model) or _declared(model):
        raise TraceError(said)
    for name, module in model.named_modules():
        where = f"{type(model).__name__}.{name}" if name else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{where} is scripted or traced by torch.jit: prune the nn.Module that it was made "
                "of, and script the result"
            )
        if _is(module, "torch._dynamo.eval_frame", "OptimizedModule"):
            raise TraceError(
                f"{where} is compiled by torch.compile: give what is inside, {_inside(name)}"
                "._orig_mod, and compile the result"
            )
        if _is(module, "torch.distributed.fsdp", "FullyShardedDataParallel") or _sharded(module):
            raise TraceError(
                f"{where} is sharded by FSDP: prune the whole model in one process (its weights: "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict with "
                "full_state_dict=True), and shard the result"
            )
        if what := _quantised(module):
            raise TraceError(
                f"{where} is quantised ({what}): prune the model in its floating-point dtype and "
                "quantise the result; model.dequantize() gives such a transformers model"
            )


def reads_numbers(error: BaseException | None) -> bool:
    """Whether a capture failed where the model takes numbers out of a tensor."""
    return type(error).__name__ == "GuardOnDataDependentSymNode"


def check_ops(model: nn.Module, graph: fx.Graph) -> None:
    """Refuse a capture that is none, or whose writes no schema tells of.

    Raises:
        TraceError: it holds half of ``torch.vmap`` or another transform of functorch: the functions
            that wrap and unwrap tensors, which mean nothing outside of it. Or a norm updates its
            running statistics in every call, as in training.
    """
    for node in graph.nodes:
        training = argument(node, "training") or argument(node, "use_input_stats")
        if training and isinstance(argument(node, "running_mean"), fx.Node):
            raise TraceError(
                f"{type(model).__name__} updates the running statistics of a norm at "
                f"{location(node) or node.name} in every call, as in training: export a program "
                "from model.eval(), and have a module call its norm with training=False"
            )
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise TraceError(
                f"{type(model).__name__} calls torch.vmap or another function transform at "
                f"{location(node) or node.name}, which torch.export does not capture: write the "
                "axis out (most modules take it as one more batch axis)"
            )


def _no_module(model: object) -> str:
    kind = type(model).__name__
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"{model.__name__} is a class: give a model of it, {model.__name__}(...)"
    if isinstance(model, str):
        return f"{model!r} is a name: load the model first, for example by from_pretrained"
    return f"{kind} is not a torch.nn.Module: give the model itself"


def _wrapper(model: nn.Module) -> str:
    """What a model is wrapped in as a whole, in words ("" if in nothing)."""
    name = type(model).__name__
    for kind in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        if isinstance(model, kind):
            return f"the model is wrapped in {name}: give what is inside, model.module"
    if type(model).__module__.startswith("deepspeed.") and hasattr(model, "module"):
        return f"the model is wrapped in {name} of DeepSpeed: give what is inside, model.module"
    return ""


def _declared(model: nn.Module) -> str:
    """What transformers notes on a quantised model, in words ("" if it is none)."""
    config = getattr(model, "config", None)
    name = type(model).__name__
    if getattr(model, "is_quantized", False) is True:
        return (
            f"{name} is quantised ({getattr(model, 'quantization_method', 'by transformers')}): "
            "prune the model in its floating-point dtype and quantise the result; "
            "model.dequantize() gives such a model"
        )
    if getattr(config, "quantization_config", None) is not None:
        return (
            f"the config of {name} says that it is quantised (quantization_config): prune the "
            "model in its floating-point dtype and quantise the result. If its weights are "
            "floating-point again, del model.config.quantization_config"
        )
    return ""


def _inside(name: str) -> str:
    return f"model.{name}" if name else "model"


def _is(value: object, module: str, name: str) -> bool:
    """Whether it is of a class, which is not imported if nothing else has done so."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _sharded(module: nn.Module) -> bool:
    return any(
        _is(tensor, "torch.distributed.tensor", "DTensor") for tensor in module._parameters.values()
    )


def _quantised(module: nn.Module) -> str:
    """What says that a module's weights are codes, in words ("" if nothing does)."""
    kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
    for kind in kinds:
        if _of_quantiser(kind):
            return f"{kind.__module__}.{kind.__name__}"
    for name, tensor in _tensors(module):
        if name in _CODES:
            return f"{type(module).__name__} with {name}"
        if _of_quantiser(type(tensor)):
            return f"{name} is a {type(tensor).__name__}"
        if tensor.is_quantized:
            return f"{name} is {tensor.dtype}"
        if name == "weight" and tensor.dtype in _INTEGERS:
            return f"{name} is {tensor.dtype}"
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            return f"{name} is {tensor.dtype}"
    return ""


def _of_quantiser(kind: type) -> bool:
    inside = any(kind.__module__ == each or kind.__module__.startswith(f"{each}.")
                 for each in _QUANTISERS)  # fmt: skip
    return inside or kind.__name__.startswith(_QUANTISED)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for slot in (module._parameters, module._buffers):
        for name, tensor in slot.items():
            if tensor is not None:
                yield name, tensor
    packed = vars(module).get("_packed_params")
    if isinstance(packed, torch.ScriptObject):
        yield "_packed_params", torch.empty(0)
