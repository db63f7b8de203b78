"""A pruned graph as a ``.pt2`` archive that runs where neither its class nor fxprune is known."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.errors import CheckpointError, FxpruneWarning, TraceError
from fxprune.files import Patient, check_writable, replacing
from fxprune.hf.folder.tensors import tensors_of
from fxprune.trace import inputs, loss, symbols
from fxprune.trace.export import captured
from fxprune.trace.given import examples


def export(
    graph_module: fx.GraphModule,
    path: str | os.PathLike[str],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a graph as a ``.pt2`` archive, by ``torch.export.save``.

    ``torch.export.load(path).module()`` gives it back, with torch alone. It computes what the graph
    does in evaluation mode, for other batch and sequence sizes too where the graph takes them.
    Outputs of plain tuples, lists and dicts stay as they are. An output of a class, such as those
    of transformers, becomes a dict of its tensors: ``{"logits": ...}``.

    Args:
        graph_module: what :func:`fxprune.rewrite` gave, trained since, perhaps.
        path: the file to write. It appears whole or not at all, and replaces an older one.
        args: example positional inputs as a tuple, or one tensor.
        kwargs: example keyword inputs. If both are left out, zeros of the shapes are used that
            the model was traced with.

    Returns:
        The file.

    Raises:
        TraceError: no inputs are given and none are recorded in the graph, they do not fit, or the
            graph cannot be exported (the message says why).
        CheckpointError: the weights are on ``meta``, or the file cannot be written.

    Warns:
        FxpruneWarning: a batch or sequence size could not be kept symbolic.
    """
    path = Path(path)
    check_writable(path)
    if not isinstance(graph_module, fx.GraphModule):
        raise TraceError(
            f"{type(graph_module).__name__} is not a GraphModule; fxprune.trace makes one of "
            "a model: trace(model).graph_module"
        )
    if blank := [name for name, t in tensors_of(graph_module).items() if t.is_meta]:
        raise CheckpointError(f"{blank[0]!r} is on meta: a graph without weights cannot be saved")
    args, given = examples(graph_module, args, kwargs)
    if not args and not given:
        args, given = inputs.from_placeholders(graph_module)
    with captured(_plain(graph_module), args, given) as capture:
        program = capture.program
        symbols.forget_ones(program)
        lost = loss.lost(graph_module, capture)
        try:
            with replacing(path) as temporary, temporary.open("wb") as stream:
                patient = Patient(stream)
                torch.export.save(program, cast(Any, patient))
                patient.finish()
        except CheckpointError:
            raise
        except Exception as error:  # whatever torch's serializer has no form for
            raise TraceError(f"{path}: torch.export cannot save this graph: {error}") from error
    if lost:
        warnings.warn(f"{path}: {lost}", FxpruneWarning, stacklevel=2)
    return path


def _plain(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The graph over the same tensors, with outputs that no class is needed for."""
    info = getattr(graph_module.graph._codegen, "pytree_info", None)
    if info is None:
        return graph_module
    if other := _class_in(info.in_spec):
        raise TraceError(f"the graph takes a {other}, which would be needed to call the archive")
    if info.out_spec is None or not _class_in(info.out_spec):
        return graph_module
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(graph_module.graph, nodes)
    (leaves,) = graph_module.graph.output_node().args
    assert isinstance(leaves, list | tuple)
    found = {
        name: nodes[leaf]
        for name, leaf in zip(_names(info.out_spec), leaves, strict=True)
        if isinstance(leaf, fx.Node)
    }
    graph.output(tuple(found.values()))
    codegen: Any = copy.copy(graph_module.graph._codegen)
    codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(dict.fromkeys(found, 0)))
    graph.set_codegen(codegen)
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def _class_in(spec: pytree.TreeSpec) -> str:
    """Name of the first class in a structure besides those of plain Python; "" if there is none."""
    if spec.is_leaf():
        return ""
    if spec.type not in (tuple, list, dict):
        return str(getattr(spec.type, "__name__", spec.type))
    return next(filter(None, map(_class_in, spec.children())), "")


def _names(spec: pytree.TreeSpec, before: str = "") -> Iterator[str]:
    """A name for every leaf: keys and positions on the way to it, as ``hidden_states.0``."""
    if spec.is_leaf():
        yield before
        return
    children = spec.children()
    keys: Any = range(len(children))
    if isinstance(spec.type, type) and issubclass(spec.type, Mapping):
        keys = spec.context
    for key, child in zip(keys, children, strict=True):
        yield from _names(child, f"{before}.{key}" if before else str(key))
