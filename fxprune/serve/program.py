"""A rewritten graph as an ``ExportedProgram`` that takes the place of the one it was made from."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError, TraceError
from fxprune.proof.examples import checked
from fxprune.proof.original import placeholders
from fxprune.trace.attributes import container, get_attribute, set_attribute
from fxprune.trace.modes import as_captured
from fxprune.trace.program import module_of
from fxprune.trace.sizes import form
from fxprune.trace.state import preserved
from fxprune.trace.traced import Traced


def like(
    original: ExportedProgram,
    small: fx.GraphModule,
    traced: Traced,
    *,
    share: bool = False,
    verify: bool = True,
) -> ExportedProgram:
    """The program of a smaller graph, with the calling convention of the original program.

    Inputs and outputs, the sizes that it takes, names and order of parameters, buffers and
    constants, tied ones too, what it writes into, and the dialect are those of the original. The
    tensors are those of ``small``.

    Args:
        original: the program that was traced.
        small: what rewriting it gave.
        traced: the whole original.
        share: share tensors that the original holds and never reads with it.
        verify: run both the graph and the program and compare them, at two sizes where sizes are
            free.

    Returns:
        The program, which torch's verifier passed.

    Raises:
        TraceError: the graph cannot be exported with the sizes of the original, or the program does
            not compute what the graph does.
    """
    module = _with_all_tensors(original, small, traced, share)
    flat = placeholders(traced, traced.args, traced.kwargs)
    spec = original.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(flat, spec)
    shapes = pytree.tree_unflatten([*_dynamic(original)], spec)
    named = inspect.signature(module.forward).bind(*shapes[0], **shapes[1]).arguments
    try:
        with as_captured(module), preserved(module):
            program = torch.export.export(
                module, tuple(args), dict(kwargs), dynamic_shapes=dict(named), strict=False
            )
            if original.dialect != program.dialect:
                program = program.run_decompositions({})
    except FxpruneError:
        raise
    except Exception as error:
        raise TraceError(
            f"the smaller graph cannot be exported as the original was: {error}"
        ) from error
    program = _renewed(program, original)
    if verify:
        checked(replace(traced, graph_module=module_of(program), module=small, original=None))
    return program


def _with_all_tensors(
    original: ExportedProgram, small: fx.GraphModule, traced: Traced, share: bool
) -> fx.GraphModule:
    """The graph, beside every tensor of the original in the original's order and kind.

    What the original never read is there too, and so is a tied tensor under each of its names.
    """
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=type(small).__name__)
    held = {**original.constants, **original.state_dict}
    tensors = dict(small.named_parameters()) | dict(small.named_buffers())
    for spec in original.graph_signature.input_specs:
        name = spec.target
        if name is None or spec.kind is InputKind.USER_INPUT:
            continue
        canonical = traced.canonical(name)
        if canonical in tensors:
            value = tensors[canonical]
        elif canonical in traced.tensors:
            continue  # it went with a branch, say
        else:
            value = held[name] if share else copy.deepcopy(held[name])
        _put(module, name, value, spec)
    for node in small.graph.nodes:
        if node.op in ("get_attr", "call_module") and not _has(module, str(node.target)):
            set_attribute(module, str(node.target), get_attribute(small, str(node.target)))
    graph = fx.Graph()
    graph.output(graph.graph_copy(small.graph, {}))
    graph.set_codegen(copy.copy(small.graph._codegen))
    module.graph = graph
    return module


def _put(module: nn.Module, name: str, value: Any, spec: Any) -> None:
    path, _, leaf = name.rpartition(".")
    if spec.kind is InputKind.BUFFER:
        container(module, path).register_buffer(leaf, value, persistent=spec.persistent)
    elif spec.kind is InputKind.PARAMETER:
        container(module, path).register_parameter(leaf, value)
    else:
        setattr(container(module, path), leaf, value)


def _has(module: nn.Module, name: str) -> bool:
    try:
        get_attribute(module, name)
    except AttributeError:
        return False
    return True


def _inputs(program: ExportedProgram) -> list[Any]:
    """What is noted of each leaf of the inputs: a fake tensor, or a plain value."""
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    pairs = zip(nodes, kinds, strict=True)
    return [node.meta.get("val") for node, kind in pairs if kind is InputKind.USER_INPUT]


def _sizes(value: Any) -> dict[int, Any]:
    """The expression of each axis of an input that is symbolic."""
    if not isinstance(value, torch.Tensor):
        return {}
    return {a: size for a, size in enumerate(form(value)) if getattr(size, "free_symbols", ())}


def _dynamic(program: ExportedProgram) -> Iterator[Any]:
    """For each leaf of the inputs, the dims that it was exported with.

    Which of them are equal the graph itself asks for; what is a multiple of something must be said.
    """
    leaves = [_sizes(value) for value in _inputs(program)]
    derived = {e for each in leaves for e in each.values() if not e.is_Symbol}
    roots = set().union(*(each.free_symbols for each in derived)) if derived else set()
    named: dict[Any, Any] = {}
    for symbol in roots:
        bounds = program.range_constraints[symbol]
        limits = {"min": int(bounds.lower)}
        if bounds.upper.is_Integer:
            limits["max"] = int(bounds.upper)
        named[symbol] = Dim(str(symbol), **limits)
    for each in leaves:
        yield {axis: _dim(expression, named) for axis, expression in each.items()} or None


def _dim(expression: Any, named: dict[Any, Any]) -> Any:
    if not expression.free_symbols & named.keys():
        return Dim.AUTO
    (symbol,) = expression.free_symbols
    slope, start = sympy.Poly(expression, symbol).all_coeffs()
    made = named[symbol] if slope == 1 else int(slope) * named[symbol]
    return made + int(start) if start else made


def _renewed(program: ExportedProgram, original: ExportedProgram) -> ExportedProgram:
    """A program with the ranges, example inputs and verifiers of the original."""
    ranges = dict(program.range_constraints)
    for new, old in zip(_inputs(program), _inputs(original), strict=True):
        sizes = _sizes(new)
        for axis, expression in _sizes(old).items():
            bounds = original.range_constraints.get(expression)
            if bounds is not None and axis in sizes:  # else tracing has said that it is fixed
                ranges[sizes[axis]] = bounds
    return ExportedProgram(
        program.graph_module,
        program.graph,
        program.graph_signature,
        program.state_dict,
        ranges,
        program.module_call_graph,
        original.example_inputs,
        program.constants,
        verifiers=original.verifiers,
    )
