"""Capture by ``torch.export`` with every size symbolic that can be."""

from __future__ import annotations

import contextlib
import importlib
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch._dynamo.config
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneWarning, TraceError
from fxprune.trace import dropout, dynamic, held, hits, inputs, refusals, symbols, unhit
from fxprune.trace.attributes import set_attribute
from fxprune.trace.clean import clean
from fxprune.trace.dynamic import Axes
from fxprune.trace.given import check_values, examples, mend
from fxprune.trace.guards import Guards, guard
from fxprune.trace.guards import symbols as symbols_of
from fxprune.trace.hints import (
    broadcast_masks,
    grouped_experts,
    plain_attention,
    unchecked_distributions,
)
from fxprune.trace.loss import lost
from fxprune.trace.meta import Tensors, as_on_cpu
from fxprune.trace.modes import as_captured, unprinted
from fxprune.trace.ones import with_ones, without_squeezed
from fxprune.trace.program import opened
from fxprune.trace.sizes import Sizes, settle, stand_ins
from fxprune.trace.state import preserved
from fxprune.trace.symbols import Asked
from fxprune.trace.ties import tie
from fxprune.trace.traced import Traced

_MANY = 150  # modules: a Llama of 12 layers


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as ``torch.export`` gives it.

    Attributes:
        program: the program.
        guards: the inputs for which it is the model.
        asked: the questions about sizes that the guards come from.
        args: the positional inputs it was captured with.
        kwargs: the keyword inputs.
        originals: of a model on ``meta``, the original tensors by the ``id`` of their stand-ins.
        fixed: axes that could have been symbols but for a question, by leaf and axis.
        refused: why not all sizes could be symbols at once, in torch's words ("" if they could).
        lists: of rows in loops over what the data hits, None if there are no such loops.
    """

    program: ExportedProgram
    guards: Guards
    asked: tuple[Asked, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    originals: Tensors = field(default_factory=dict)
    fixed: Mapping[tuple[int, int], Asked] = field(default_factory=dict)
    refused: str = ""
    lists: Mapping[str, int] | None = None


def trace(
    model: nn.Module | ExportedProgram, args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> Traced:
    """Capture a model as a clean FX graph, in evaluation mode, without changing the model.

    ``torch.export`` runs with ``strict=False``. Every size of the inputs stays symbolic where the
    model allows it: batch, sequence, height and width. What the model's Python asked of sizes on
    the way is kept as :attr:`Traced.guards`, and the graph refuses inputs that would have got
    another answer. Where it reads numbers out of inputs of whole numbers, other than the main one,
    these are held at the example's, and the graph refuses others. Works on ``meta`` models: no
    weights are needed.

    Args:
        model: any module, a transformers model, a ``torch.fx.GraphModule``, or an
            ``ExportedProgram``, decomposed or not; its module is the model then.
        args: example positional inputs as a tuple; one tensor, or a mapping of keyword inputs, will
            do.
        kwargs: example keyword inputs. For a transformers model both may be left out: inputs are
            then made from its config. A program brings its own.

    Returns:
        The traced model. It shares its tensors with ``model``.

    Raises:
        TraceError: the model is wrapped, compiled, scripted or quantised; the inputs do not fit
            it, token ids beyond the vocabulary included; or it cannot be exported, and the message
            names the line.

    Warns:
        FxpruneWarning: the graph takes fewer sizes than one would expect, and the message says
            which, and the line of the model that decided it; or there is dropout in training mode
            that the graph has not.
    """
    model, args, kwargs = opened(model, args, kwargs)
    refusals.check(model)
    args, given = examples(model, args, kwargs)
    if not args and not given:
        if isinstance(model, fx.GraphModule):
            args, given = inputs.from_placeholders(model)
        else:
            given = dict(inputs.from_config(model))
    return _traced(model, args, given, widen=True)


def _traced(
    model: nn.Module, args: tuple[Any, ...], given: dict[str, Any], *, widen: bool
) -> Traced:
    with captured(model, args, given, widen=widen) as capture:
        if capture.lists is not None:
            _check_loops(model, capture, ones=widen)
        exported = _unlifted(model, capture.program)
        unmarked = dropout.mark(exported, model, capture.args, capture.kwargs)
        graph_module, tensors, aliases = clean(exported, model)
        refusals.check_ops(model, graph_module.graph)
        check_values(model, graph_module, args, given)
        guards = with_ones(model, graph_module, capture)
        guards = without_squeezed(graph_module.graph, guards)
        said = lost(model, replace(capture, guards=guards))
    if widen and not capture.originals and not guards.take(pytree.tree_leaves((args, given))):
        return _traced(model, args, given, widen=False)  # it hangs on the example's batch of one
    for name, tensor in tensors.items():
        if id(tensor) in capture.originals:
            tensors[name] = capture.originals[id(tensor)]
            set_attribute(graph_module, name, tensors[name])
    guard(graph_module, guards)
    for each in filter(None, (said, unmarked)):
        warnings.warn(f"{type(model).__name__}: {each}", FxpruneWarning, stacklevel=3)
    sizes = Sizes(stand_ins(guards)[0])
    settle(graph_module.graph, sizes)
    return Traced(graph_module, model, args, given, tensors, aliases, sizes, guards)


def _check_loops(model: nn.Module, whole: Captured, *, ones: bool) -> None:
    """Refuse loops over what the data hits that do anything for what it does not."""
    graph = clean(_unlifted(model, whole.program), model)[0].graph
    for half in (0, 1):
        with hits.left_out(half), captured(model, whole.args, whole.kwargs, widen=ones) as part:
            without = clean(_unlifted(model, part.program), model)[0].graph
        unhit.check(model, graph, whole.lists or {}, half, without)


@contextlib.contextmanager
def captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, widen: bool = True
) -> Iterator[Captured]:
    """A model as ``torch.export`` gives it, in evaluation mode until the block ends.

    The model is left exactly as it was found.

    Args:
        model: any module.
        args: example positional inputs.
        kwargs: example keyword inputs.
        widen: repeat the row of a batch of one, for what is captured for one row may hold for that
            alone. Else axes of one stay so.

    Raises:
        TraceError: the inputs do not fit the model, or it cannot be exported.
    """
    inputs.check(model, args, kwargs)
    wide = (_widen(args), _widen(kwargs)) if widen else (args, kwargs)
    with (
        as_captured(model),
        plain_attention(),
        unchecked_distributions(),
        broadcast_masks(),
        grouped_experts(model),
        # Where layers repeat little, to look up what an op gives takes longer than to find out.
        torch._dynamo.config.patch(fake_tensor_cache_enabled=len([*model.modules()]) > _MANY),
        _use_lazy_graph_module(True),  # else code is generated after each of torch's passes
        as_on_cpu(model, wide) as (examples, originals),
    ):
        with unprinted():
            found = _with_numbers(model, *examples, ones=widen)
        yield replace(found, originals=originals)


def _with_numbers(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, ones: bool
) -> Captured:
    """With inputs held at their values, where the model reads numbers out of them.

    So is what it makes of sizes alone, such as a mask of padding to a multiple of 8.
    """
    try:
        return _captured(model, args, kwargs, ones=ones)
    except TraceError as error:
        leaves = pytree.tree_leaves((args, kwargs))
        places = held.candidates(model, kwargs, leaves)
        if not refusals.reads_numbers(error.__cause__):
            raise
        refused, read = error, set[int]()
    try:
        with held.holding(model, leaves, places, read):
            found = _captured(model, args, kwargs, ones=ones, but=places)
    except TraceError:
        raise refused from refused.__cause__
    if read and read < places:
        with contextlib.suppress(TraceError), held.holding(model, leaves, read, set()):
            found, places = _captured(model, args, kwargs, ones=ones, but=read), read
    return replace(found, guards=found.guards.holding({p: leaves[p] for p in places}))


def _captured(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    ones: bool,
    but: Collection[int] = (),
) -> Captured:
    leaves = pytree.tree_leaves((args, kwargs))
    free = [leaf for place, leaf in enumerate(leaves) if place not in but]
    symbolic = dynamic.every_axis(free, ones=ones)
    try:
        found = _exported(model, args, kwargs, symbolic)
    except Exception as error:
        # Without symbols next: if even that fails, no axis is to blame.
        found = _exported_static(model, args, kwargs)
        for symbolic in dynamic.fewer(free):
            with contextlib.suppress(Exception):
                found = _exported(model, args, kwargs, symbolic)
                break
        found = replace(found, refused=_first_line(error))
    while fixed := _unsayable(found, leaves):
        # Batch goes last: it is often free once the sizes that it is multiplied with are fixed.
        fixed = {
            (leaf, axis): question
            for (leaf, axis), question in fixed.items()
            if dynamic.role(leaves[leaf], axis) != "batch"
        } or fixed
        symbolic -= {(id(leaves[leaf]), axis) for leaf, axis in fixed}
        try:
            again = _exported(model, args, kwargs, symbolic)
        except Exception:
            again = _exported_static(model, args, kwargs)
        found = replace(again, refused=found.refused, fixed={**found.fixed, **fixed})
    return found


def _unsayable(found: Captured, leaves: list[Any]) -> dict[tuple[int, int], Asked]:
    """Axes whose symbols allow hardly a size but the example's, and a question that says so."""
    chosen, names = stand_ins(found.guards)
    names |= symbols.unclear(found.guards, found.asked)
    unknown = Asked(None, None, frozenset(names), "", "")
    return {
        (leaf, axis): next((q for q in found.asked if q.names & own and q.fails(chosen)), unknown)
        for leaf, guard_ in enumerate(found.guards.inputs)
        for axis, size in enumerate(guard_.shape)
        if (own := symbols_of(size) & names)
    }


def _exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], symbolic: Axes
) -> Captured:
    leaves = pytree.tree_leaves((args, kwargs))
    with preserved(model), symbols.recording(), dynamic.unmarked(leaves):
        dynamic.name_inputs(model, kwargs)
        shapes = dynamic.dynamic_shapes(model, args, kwargs, symbolic)
        with hits.everywhere() as loops:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        tie(program.graph)
    said = symbols.read(program, args, kwargs)
    return Captured(program, *said, args, kwargs, lists=loops.lists)


def _exported_static(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    try:
        with preserved(model), symbols.recording(), _transformers_patches(model):
            dynamic.name_inputs(model, kwargs)
            with hits.everywhere() as loops:
                program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        hint = mend(model, dict(inputs.named(args, kwargs)), error)
        raise TraceError(_explain(model, error) + hint) from error
    said = symbols.read(program, args, kwargs)
    return Captured(program, *said, args, kwargs, lists=loops.lists)


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


def _widen(value: Any) -> Any:
    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() >= 2 and leaf.shape[0] == 1:
            return torch.cat([leaf, leaf])
        return leaf

    leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
    alone = all(x.dim() >= 2 and x.shape[0] == 1 for x in leaves)
    return pytree.tree_map(widen, value) if alone else value


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def _explain(model: nn.Module, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    passed = ("/torch/", "/fxprune/trace/hits.py")
    own = [f for f in frames if not any(x in f.filename.replace("\\", "/") for x in passed)]
    where = own[-1] if own and own[-1].filename != __file__ else None
    place = f" at {where.filename}:{where.lineno}: `{where.line}`" if where else ""
    said = (
        f"{type(model).__name__} cannot be exported{place} "
        f"({type(error).__name__}: {_first_line(error)})"
    )
    if "data-dependent" in str(error):
        said += (
            ". What runs there depends on values of the data, and a graph does the same for all "
            "data: write that module so that all data goes one way (a product with a mask for a "
            "branch, all experts for a loop over those that are hit), and put it in before tracing"
        )
    return said


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
