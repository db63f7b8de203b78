"""An ``ExportedProgram`` as the module that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from fxprune.errors import TraceError
from fxprune.trace.arguments import argument
from fxprune.trace.attributes import set_attribute
from fxprune.trace.source import location
from fxprune.trace.views import relax

_DIALECTS = ("TRAINING", "ATEN")  # what torch.export gives, and the same decomposed


def opened(
    model: nn.Module | ExportedProgram, args: Any, kwargs: Mapping[str, Any] | None
) -> tuple[nn.Module, Any, Mapping[str, Any] | None]:
    """A program as its module, with the inputs that it was exported with if none are given.

    Args:
        model: a program; any module is given back as it is.
        args: example positional inputs.
        kwargs: example keyword inputs.

    Raises:
        TraceError: the program was lowered to ops that are not torch's own, or has dropout.
    """
    if not isinstance(model, ExportedProgram):
        return model, args, kwargs
    if model.dialect not in _DIALECTS:
        raise TraceError(
            f"the program is in the dialect {model.dialect}, of which fxprune knows no op: prune "
            "what torch.export gives, and lower the result"
        )
    for node in model.graph.nodes:
        if argument(node, "train") is True and "dropout" in str(node.target):
            raise TraceError(
                f"the program drops at random at {location(node) or node.name}, as in training: "
                "export it from model.eval()"
            )
    if args in ((), None) and not kwargs and model.example_inputs is not None:
        args, kwargs = model.example_inputs
    return module_of(model), args, kwargs


def module_of(program: ExportedProgram) -> fx.GraphModule:
    """The module of a program, which runs whatever way the kernels lay out what they give.

    A program that was decomposed views some of it as the ops say that it lies, which is not what
    all kernels do: code that is generated from it is right, and its own module does not run.
    """
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    relax(module.graph)
    module.recompile()
    _tie(module)
    return module


def _tie(module: nn.Module) -> None:
    """Make one parameter of those that are one in memory: loading a program takes them apart."""
    first: dict[Any, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters()):
        if parameter.is_meta or isinstance(parameter, FakeTensor) or not parameter.numel():
            continue
        key = parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype
        known = first.setdefault(key, parameter)
        if known is not parameter:
            set_attribute(module, name, known)
