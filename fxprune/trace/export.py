"""Capture by ``torch.export`` with symbolic batch and sequence."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneWarning, TraceError
from fxprune.trace import inputs
from fxprune.trace.attributes import set_attribute
from fxprune.trace.clean import clean
from fxprune.trace.meta import Tensors, as_on_cpu
from fxprune.trace.modes import evaluation
from fxprune.trace.sizes import Sizes, is_symbolic
from fxprune.trace.traced import Traced

_AXES = {0: "batch", 1: "sequence"}


def trace(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> Traced:
    """Capture a model as a clean FX graph, in evaluation mode, without changing the model.

    ``torch.export`` runs with ``strict=False``; batch and sequence stay symbolic where the model
    allows it. Works on ``meta`` models: no weights are needed.

    Args:
        model: any module, a transformers model, or a ``torch.fx.GraphModule``.
        args: example positional inputs.
        kwargs: example keyword inputs. For a transformers model both may be left out: inputs are
            then made from its config.

    Returns:
        The traced model. It shares its tensors with ``model``.

    Raises:
        TraceError: the inputs do not fit the model, or the model cannot be exported; the message
            names the line.

    Warns:
        FxpruneWarning: a batch or sequence size could not be kept symbolic.
    """
    given = dict(kwargs or {})
    if not args and not given:
        if isinstance(model, fx.GraphModule):
            args, given = inputs.from_placeholders(model)
        else:
            given = dict(inputs.from_config(model))
    sizes = Sizes()
    with captured(model, args, given) as (program, lost, originals):
        graph_module, tensors, aliases = clean(_unlifted(model, program), model)
    for name, tensor in tensors.items():
        if id(tensor) in originals:
            tensors[name] = originals[id(tensor)]
            set_attribute(graph_module, name, tensors[name])
    if lost:
        warnings.warn(f"{type(model).__name__}: {lost}", FxpruneWarning, stacklevel=2)
    return Traced(graph_module, model, args, given, tensors, aliases, sizes)


@contextlib.contextmanager
def captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[ExportedProgram, str, Tensors]]:
    """A model as ``torch.export`` gives it, in evaluation mode until the block ends.

    Args:
        model: any module.
        args: example positional inputs.
        kwargs: example keyword inputs.

    Yields:
        The program, with batch and sequence symbolic where possible; what was lost of that, in
        words; and of a model on ``meta`` the original tensors by the ``id`` of their stand-ins.

    Raises:
        TraceError: the inputs do not fit the model, or it cannot be exported.
    """
    inputs.check(model, args, kwargs)
    # A symbolic size must be at least 2 in the example; rows are repeated where it is 1.
    wide = _widen(args), _widen(kwargs)
    with _quiet_evaluation(model), as_on_cpu(model, wide) as (examples, originals):
        program, lost = _export(model, *examples)
        yield program, lost or _static_axes(program, *examples), originals


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, str]:
    """The exported program, and what was lost if symbolic sizes had to be given up."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    shapes = {name: _dynamic_shapes(value) for name, value in bound.items()}
    try:
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        return program, ""
    except Exception as symbolic:
        try:
            with _transformers_patches(model):
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise TraceError(_explain(model, error)) from error
        return program, (
            "it can only be captured with static sizes, so the rewritten graph takes inputs of "
            f"the example's shapes only ({_first_line(symbolic)})"
        )


def _unlifted(model: nn.Module, program: ExportedProgram) -> fx.GraphModule:
    """The program as a module that reads its tensors by name."""
    try:
        module = program.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        return module
    except SyntaxError as error:  # torch generates code from module names
        raise TraceError(
            f"{type(model).__name__} has a module name that torch cannot write into code "
            f"(a quote or a backslash): {error.text or error}"
        ) from error


def _dynamic_shapes(value: Any) -> Any:
    """``Dim.AUTO`` for batch (axis 0) and, on tokens and sequences of vectors, length (axis 1)."""
    if isinstance(value, torch.Tensor):
        dims = {}
        if value.dim() >= 2 or (value.dim() == 1 and not value.is_floating_point()):
            dims[0] = Dim.AUTO
        if value.dim() == 3 or (value.dim() == 2 and not value.is_floating_point()):
            dims[1] = Dim.AUTO
        return dims
    if isinstance(value, Mapping):
        return {key: _dynamic_shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_dynamic_shapes(item) for item in value)
    return None


def _widen(value: Any) -> Any:
    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() >= 2 and leaf.shape[0] == 1:
            return torch.cat([leaf, leaf])
        return leaf

    leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
    alone = all(x.dim() >= 2 and x.shape[0] == 1 for x in leaves)
    return pytree.tree_map(widen, value) if alone else value


def _static_axes(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which batch and sequence sizes the model itself fixed, in words ("" for none)."""
    examples = list(inputs.named(args, kwargs))
    user = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    values = [n.meta["val"] for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    fixed = [
        f"axis {axis} ({_AXES[axis]}) of {name} is fixed at {value.shape[axis]}"
        for (name, tensor), value in zip(examples, values, strict=False)
        for axis in _dynamic_shapes(tensor)
        if not is_symbolic(value.shape[axis])
    ]
    if not fixed:
        return ""
    return "; ".join(fixed) + ": the rewritten graph takes only these sizes there"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _explain(model: nn.Module, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/")]
    where = own[-1] if own and own[-1].filename != __file__ else None
    place = f" at {where.filename}:{where.lineno}: `{where.line}`" if where else ""
    return (
        f"{type(model).__name__} cannot be exported{place} "
        f"({type(error).__name__}: {_first_line(error)})"
    )


@contextlib.contextmanager
def _transformers_patches(model: nn.Module) -> Iterator[None]:
    """What transformers itself swaps to make hard models exportable, if it is there."""
    with contextlib.ExitStack() as stack:
        if hasattr(model, "config") and hasattr(model, "main_input_name"):
            with contextlib.suppress(ImportError, AttributeError):
                exporter = importlib.import_module("transformers.exporters.exporter_dynamo")
                stack.enter_context(exporter.apply_patches("dynamo"))
                stack.enter_context(exporter.reset_model_state(model))
        yield


@contextlib.contextmanager
def _quiet_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without key/value caches and without torch's own export warnings."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caches = [(c, c.use_cache) for c in configs.values() if getattr(c, "use_cache", False)]
    try:
        for config, _ in caches:
            config.use_cache = False
        with evaluation(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for config, flag in caches:
            config.use_cache = flag
