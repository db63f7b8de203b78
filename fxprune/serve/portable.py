"""A graph as a program that whoever loads it needs no class for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.branches.unit import KINDS
from fxprune.errors import CheckpointError, ServeError, TraceError
from fxprune.hf.folder.tensors import tensors_of
from fxprune.rewrite.history import without_weights
from fxprune.select.target import Target
from fxprune.serve.engine import Engine, Pruned
from fxprune.trace import inputs, loss
from fxprune.trace.export import captured, trace
from fxprune.trace.given import examples
from fxprune.trace.guards import Guards

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


@dataclass(frozen=True)
class Portable:
    """A graph ready to be written.

    Attributes:
        graph_module: the graph, with outputs that no class is needed for.
        program: the same as a program.
        args: the positional inputs it was captured with.
        kwargs: the keyword inputs.
        guards: the inputs that it takes.
        lost: which sizes of the graph it does not take, in words ("" for none).
    """

    graph_module: fx.GraphModule
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    guards: Guards
    lost: str


@contextlib.contextmanager
def portable(
    graph_module: fx.GraphModule,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    flat: bool = False,
    blank: bool = False,
) -> Iterator[Portable]:
    """A graph as a program, in evaluation mode until the block ends.

    Args:
        graph_module: a traced or rewritten graph.
        args: example positional inputs.
        kwargs: example keyword inputs. If both are left out, zeros of the shapes are used that the
            model was traced with.
        flat: give the outputs as a dict of tensors, however the graph gives them.
        blank: take a graph without weights, which is not to be written.

    Raises:
        TraceError: no inputs are given and none are recorded in the graph, they do not fit, or the
            graph cannot be exported (the message says why).
        CheckpointError: the weights are on ``meta``.
    """
    if not isinstance(graph_module, fx.GraphModule):
        raise TraceError(
            f"{type(graph_module).__name__} is not a GraphModule; fxprune.trace makes one of "
            "a model: trace(model).graph_module"
        )
    missing = [name for name, t in tensors_of(graph_module).items() if t.is_meta]
    if missing and not blank:
        raise CheckpointError(f"{missing[0]!r} is on meta: a graph without weights cannot be saved")
    args, given = examples(graph_module, args, kwargs)
    if not args and not given:
        args, given = inputs.from_placeholders(graph_module)
    plain = _plain(graph_module, flat)
    with captured(plain, args, given) as capture:
        lost = loss.lost(graph_module, capture)
        yield Portable(plain, capture.program, args, given, capture.guards, lost)


class File(Engine):
    """An engine that runs a file which a graph is exported to, whatever its sizes.

    Attributes:
        export: writes a graph to a path; its further arguments are the engine's options.
        how: how to run ``path``, in words.
    """

    export: ClassVar[Callable[..., Path]]
    how: ClassVar[str]

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`."""
        traced = graph.traced.original or graph.traced
        key = f"refused by {self.name}"
        if key not in traced.cache:  # trying takes its time
            traced.cache[key] = self._refused(without_weights(traced).graph_module)
        if why := traced.cache[key]:
            raise ServeError(f"{self.name} cannot run this model: {why}")
        return Target(self.name, depth=KINDS, biases=True)

    def _refused(self, graph_module: fx.GraphModule) -> str:
        """Why a graph without weights cannot be said, whatever is removed; "" if it can."""
        try:
            _plain(graph_module, False)
        except TraceError as error:
            return str(error)
        return ""

    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        """See :meth:`Engine.write`.

        Args:
            pruned: the model.
            path: the file.
            options: those of :attr:`export`.
        """
        type(self).export(graph_of(pruned.model), path, **options)
        return self.how.format(path=str(path))


def _plain(graph_module: fx.GraphModule, flat: bool) -> fx.GraphModule:
    """The graph over the same tensors, with outputs that no class is needed for."""
    info = getattr(graph_module.graph._codegen, "pytree_info", None)
    if info is None:
        return graph_module
    if other := _class_in(info.in_spec):
        raise TraceError(f"the graph takes a {other}, which would be needed to call the archive")
    if info.out_spec is None or not (flat or _class_in(info.out_spec)):
        return graph_module
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(graph_module.graph, nodes)
    (leaves,) = graph_module.graph.output_node().args
    assert isinstance(leaves, list | tuple)
    found = {
        name if name[:1].isalpha() else f"output.{name}".rstrip("."): nodes[leaf]
        for name, leaf in zip(_names(info.out_spec), leaves, strict=True)
        if isinstance(leaf, fx.Node)
    }
    graph.output(tuple(found.values()))
    codegen: Any = copy.copy(graph_module.graph._codegen)
    codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(dict.fromkeys(found, 0)))
    graph.set_codegen(codegen)
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def graph_of(model: nn.Module) -> fx.GraphModule:
    """The graph of a model; one that is a graph is given back."""
    return model if isinstance(model, fx.GraphModule) else trace(model).graph_module


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
