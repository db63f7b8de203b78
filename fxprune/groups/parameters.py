"""The parameters of a model by name and shape: counted, and what tells two models apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from math import prod

from fxprune.axes.dims import Dim
from fxprune.axes.positions import kept_size
from fxprune.groups.dependency import DependencyGraph

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(graph: DependencyGraph) -> Shapes:
    """Shape of every parameter of the model by canonical name; a tied parameter appears once."""
    aliases = graph.traced.aliases
    # The names of a tied parameter all lead to one entry, whether or not torch lists them all.
    named = graph.traced.module.named_parameters(remove_duplicate=False)
    return dict(sorted((aliases.get(name, name), tuple(p.shape)) for name, p in named))


def remaining_shapes(graph: DependencyGraph) -> Shapes:
    """:func:`parameter_shapes` without the parameters of removed branches and blocks."""
    dropped = graph.traced.dropped
    return {n: shape for n, shape in parameter_shapes(graph).items() if n not in dropped}


def fingerprint(graph: DependencyGraph) -> str:
    """What a plan calls its model: sha256 over the sorted (canonical name, shape) of parameters.

    Sibling fine-tunes of one architecture share it; another size or family does not.
    """
    return digest(parameter_shapes(graph))


def count_parameters(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    biases: Iterable[str] = (),
) -> int:
    """Exact number of parameters of the whole model.

    A tied tensor counts once, buffers do not count, parameters that the graph does not use count
    as they are, and those of removed branches are no more.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        counts: units that stay, by dim; a dim that is absent keeps all.
        biases: names of biases that are added, see :attr:`fxprune.Plan.biases`.
    """
    total = 0
    for name, shape in remaining_shapes(graph).items():
        layouts = graph.layouts.get(name)
        if counts and layouts is not None:
            shape = tuple(kept_size(layout, counts) for layout in layouts)
        total += prod(shape)
    return total + sum(kept_size(graph.layouts[weight_of(b)][0], counts or {}) for b in biases)


def weight_of(bias: str) -> str:
    """The name of the weight beside a bias; "" if the name is not that of a bias."""
    owner, dot, last = bias.rpartition(".")
    return f"{owner}{dot}weight" if last == "bias" else ""


def digest(shapes: Shapes) -> str:
    """sha256 over the sorted (name, shape)."""
    text = json.dumps([[name, *shape] for name, shape in sorted(shapes.items())])
    return hashlib.sha256(text.encode()).hexdigest()
