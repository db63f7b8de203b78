"""Graphs edited on purpose, as if they had been captured or rewritten wrongly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

import fxprune

Edit = Callable[[fx.Graph], None]


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy with the same names and the same calling convention."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    made.set_codegen(copy.copy(graph._codegen))
    return made


def edited(traced: fxprune.Traced, edit: Edit) -> fxprune.Traced:
    """A trace with another graph."""
    graph = copied(traced.graph_module.graph)
    edit(graph)
    module = fx.GraphModule(traced.graph_module, graph)
    module.graph.set_codegen(copy.copy(traced.graph_module.graph._codegen))
    module.recompile()
    return replace(traced, graph_module=module, cache={})


def changed_output(place: int, change: Callable[..., Any]) -> Edit:
    """One output, by its position among all of them, becomes something else."""

    def edit(graph: fx.Graph) -> None:
        end = graph.output_node()
        given: Any = end.args[0]
        outputs = list(given) if isinstance(given, list | tuple) else [given]
        with graph.inserting_before(end):
            outputs[place] = graph.call_function(change, (outputs[place],))
        end.args = (tuple(outputs) if isinstance(given, list | tuple) else outputs[0],)

    return edit
