"""Sizes of the values in a graph at an asked batch and length, for any numbers of kept units."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from sympy import Expr, Integer
from torch import fx

from fxprune.axes.dims import Dim, Layout, Product, atoms, resolve
from fxprune.axes.polynomial import Polynomial, constant, of_layout, product
from fxprune.errors import CostError
from fxprune.trace.sizes import is_symbolic
from fxprune.trace.source import location

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_NAMES = ("batch", "length")


class ValueSizes:
    """Sizes of values as polynomials.

    Args:
        graph: the groups of the model.
        dims: the dims that may lose units, unbound. All others keep theirs.
        batch: number of rows.
        length: number of tokens; encoder and decoder take the same.

    Raises:
        CostError: batch or length is not positive, or the model was captured at another one.
    """

    def __init__(
        self, graph: DependencyGraph, dims: Collection[Dim], batch: int, length: int
    ) -> None:
        for name, size in zip(_NAMES, (batch, length), strict=True):
            if size < 1:
                raise CostError(f"{name}={size}: sizes are positive")
        self.graph = graph
        self.dims = dims
        self._symbols = _assigned(graph.traced.graph_module, batch, length)
        self._numbers: dict[Any, int] = {}
        self._axes: dict[fx.Node, tuple[Polynomial, ...]] = {}

    def axes(self, node: fx.Node) -> tuple[Polynomial, ...]:
        """The size of each axis of a value with one tensor."""
        known = self._axes.get(node)
        if known is None:
            layouts, value = self.graph.inferred.axes[node], node.meta["val"]
            assert isinstance(layouts, tuple)
            known = self._axes[node] = tuple(
                self._axis(layout, size, node)
                for layout, size in zip(layouts, value.shape, strict=True)
            )
        return known

    def elements(self, node: fx.Node) -> Polynomial:
        """How many numbers a value holds."""
        return product(self.axes(node))

    def _axis(self, layout: Layout, size: int | torch.SymInt, node: fx.Node) -> Polynomial:
        moving = self.dims and any(atom in self.dims for atom in atoms(layout))
        if not is_symbolic(size):
            return of_layout(layout, self.dims) if moving else constant(int(size))
        whole = self._number(size, node)
        if not moving:
            return constant(whole)
        # Symbolic and prunable at once, such as batch x heads: only the prunable factors change.
        layout = resolve(layout)
        parts = layout.parts if isinstance(layout, Product) else (layout,)
        pruned = Product(tuple(p for p in parts if any(a in self.dims for a in atoms(p))))
        if any(atom.free for atom in atoms(pruned)) or whole % pruned.size:
            raise CostError(f"{_place(node)} mixes a symbolic size with units that can be pruned")
        return constant(whole // pruned.size) * of_layout(pruned, self.dims)

    def _number(self, size: Any, node: fx.Node) -> int:
        expression = size.node.expr
        known = self._numbers.get(expression)
        if known is None:
            number = expression.xreplace(self._symbols)
            if not number.is_number:
                raise CostError(
                    f"the size {expression} of {_place(node)} depends on more than batch and length"
                )
            known = self._numbers[expression] = int(number)
        return known


def has_fixed_sizes(module: fx.GraphModule) -> bool:
    """Whether a batch or a length was lost on tracing."""
    return any(not is_symbolic(size) and size != 1 for _, _, size in _input_axes(module))


def _assigned(module: fx.GraphModule, batch: int, length: int) -> dict[Any, Any]:
    """The value of every symbol of the inputs' sizes."""
    symbols: dict[Any, Any] = {}
    asked = (batch, length)
    # Inputs with more axes go first: the one axis of a vector may be either.
    for node, axis, size in sorted(_input_axes(module), key=lambda x: -x[0].meta["val"].dim()):
        if not is_symbolic(size):
            # An axis of 1 is broadcast; a vector's axis may be the length.
            if size not in (1, asked[axis]) and node.meta["val"].dim() > 1:
                raise CostError(
                    f"the model was captured with a fixed {_NAMES[axis]}: ask for "
                    f"{_NAMES[axis]}={size} or trace it at {asked[axis]}"
                )
            continue
        expression = size.node.expr.xreplace(symbols)
        if not expression.is_number:
            symbols.update(_solved(expression, asked[axis], _NAMES[axis]))
        elif int(expression) != asked[axis] and node.meta["val"].dim() > 1:
            raise CostError(
                f"the model ties {_NAMES[axis]} of {node.target} to another size: it takes "
                f"{int(expression)} there, not {asked[axis]}"
            )
    return symbols


def _solved(expression: Expr, number: int, name: str) -> dict[Any, Any]:
    """The one symbol of a linear expression, such as ``2 * s`` where lengths must be even."""
    if expression.is_Symbol:
        return {expression: Integer(number)}
    (symbol, *others) = sorted(expression.free_symbols, key=str)
    start = expression.xreplace({symbol: Integer(0)})
    step = expression.xreplace({symbol: Integer(1)}) - start
    if others or step == 0 or (number - start) % step or expression != start + step * symbol:
        raise CostError(f"the model takes no {name} of {number}: it must be {expression}")
    return {symbol: Integer((number - start) // step)}


def _input_axes(module: fx.GraphModule) -> Iterator[tuple[fx.Node, int, Any]]:
    """(input, 0 for batch or 1 for length, size), as tracing tells them apart."""
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        floating = value.is_floating_point()
        if value.dim() >= 2 or (value.dim() == 1 and not floating):
            yield node, 0, value.shape[0]
        if value.dim() == 3 or (value.dim() == 2 and not floating):
            yield node, 1, value.shape[1]


def _place(node: fx.Node) -> str:
    return f"{node.target} at {location(node) or node.name}"
