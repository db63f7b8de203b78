"""For which inputs a graph is the model: what the capture took for granted, checked at every call.

``torch.export`` follows a model's Python for one example. Where that code asks for a size
(``if x.shape[1] > 16``), the answer is written into the graph, and the graph is the model only
for inputs that give the same answer. Those answers are the guards.

Expressions over sizes are nested tuples such as ``("mod", "s1", 4)``, for they stand in the graph
as constants: they survive copying, saving, ``torch.compile`` and ``torch.export``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.errors import InputError

Expression = int | str | tuple[Any, ...]

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda *terms: sum(terms),
    "mul": lambda *factors: math.prod(factors),
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "max": max,
    "min": min,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": lambda *terms: all(terms),
    "or": lambda *terms: any(terms),
    "not": operator.not_,
    "truediv": operator.truediv,
    "float": float,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
}
_SIGNS = {
    "add": " + ", "mul": " * ", "floordiv": " // ", "mod": " % ", "pow": " ** ", "eq": " == ",
    "ne": " != ", "truediv": " / ", "lt": " < ", "le": " <= ", "gt": " > ", "ge": " >= ",
    "and": " and ", "or": " or ",
}  # fmt: skip


@dataclass(frozen=True)
class InputGuard:
    """One leaf of a graph's inputs.

    Attributes:
        name: what a user calls it: ``input_ids``, ``args[0]``.
        dtype: of a tensor, as in ``str(dtype)``; any floating dtype stands for all of them, so
            that a graph that was cast takes inputs of its new dtype. None of what is not a tensor.
        shape: of a tensor, a number or an expression for each axis.
        value: of what is not a tensor, the only value it may have; of a tensor whose numbers the
            model reads, those; else None.
    """

    name: str
    dtype: str | None
    shape: tuple[Expression, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class Guards:
    """The inputs for which a graph is the model that it was captured from.

    Attributes:
        inputs: one for each placeholder of the graph, in order.
        ranges: smallest and largest size of each symbol; None where there is no largest.
        conditions: what must hold between the sizes besides.
        example: the size that each symbol had in the example.
    """

    inputs: tuple[InputGuard, ...] = ()
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    conditions: tuple[Expression, ...] = ()
    example: Mapping[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> tuple[Any, ...]:
        """The guards as nested tuples: the first argument of :func:`check`."""
        inputs = tuple((g.name, g.dtype, g.shape, g.value) for g in self.inputs)
        ranges = tuple((symbol, *bounds) for symbol, bounds in self.ranges.items())
        return inputs, ranges, self.conditions

    def allow(self, sizes: Mapping[str, int]) -> bool:
        """Whether the graph takes inputs of these sizes."""
        return all(
            low <= sizes[symbol] and (high is None or sizes[symbol] <= high)
            for symbol, (low, high) in self.ranges.items()
        ) and all(holds(condition, sizes) for condition in self.conditions)

    def take(self, values: Sequence[Any]) -> bool:
        """Whether the graph takes these values of its placeholders."""
        try:
            check(self.spec, *values)
        except InputError:
            return False
        return True

    def admitting(self, name: str) -> Guards:
        """The guards for which one symbol may be 1 besides."""
        at = {**self.example, name: 1}
        conditions = tuple(
            ("or", ("eq", name, 1), each) if name in symbols(each) and not holds(each, at) else each
            for each in self.conditions
            if each != ("ne", name, 1)
        )
        ranges = {**self.ranges, name: (1, self.ranges[name][1])}
        return replace(self, ranges=ranges, conditions=conditions)

    def holding(self, values: Mapping[int, torch.Tensor]) -> Guards:
        """The guards for the numbers of these inputs alone, by place."""
        inputs = [
            replace(each, value=_tuples(values[i].tolist())) if i in values else each
            for i, each in enumerate(self.inputs)
        ]
        return replace(self, inputs=tuple(inputs))

    @property
    def held(self) -> list[str]:
        """The tensors among the inputs that may have one value alone."""
        return [each.name for each in self.inputs if each.dtype and each.value is not None]

    def shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...] | None]:
        """The shape of every input at these sizes; None for what is not a tensor."""
        return [
            None if guard.dtype is None else tuple(evaluate(axis, sizes) for axis in guard.shape)
            for guard in self.inputs
        ]

    def word(self, symbol: str) -> str:
        """Where a symbol is read: ``input_ids.shape[1]``."""
        return next(
            (
                f"{guard.name}.shape[{axis}]"
                for guard in self.inputs
                for axis, size in enumerate(guard.shape)
                if size == symbol
            ),
            symbol,
        )

    def describe(self, condition: Expression) -> str:
        """A condition in Python's words."""
        return _spelled(condition, {symbol: self.word(symbol) for symbol in self.ranges})

    def to_json(self) -> dict[str, Any]:
        """As lists and dicts."""
        return {
            "inputs": [[g.name, g.dtype, list(g.shape), g.value] for g in self.inputs],
            "ranges": {symbol: list(bounds) for symbol, bounds in self.ranges.items()},
            "conditions": list(self.conditions),
            "example": dict(self.example),
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Guards:
        """What :meth:`to_json` gave."""
        inputs = (
            InputGuard(name, dtype, _tuples(shape), _tuples(value) if dtype else value)
            for name, dtype, shape, value in given["inputs"]
        )
        ranges = {symbol: (low, high) for symbol, (low, high) in given["ranges"].items()}
        return cls(tuple(inputs), ranges, _tuples(given["conditions"]), dict(given["example"]))


def evaluate(expression: Expression, sizes: Mapping[str, Any]) -> Any:
    """The value of an expression for given sizes."""
    if isinstance(expression, str):
        return sizes[expression]
    if not isinstance(expression, tuple):
        return expression
    return OPERATORS[expression[0]](*[evaluate(each, sizes) for each in expression[1:]])


def holds(condition: Expression, sizes: Mapping[str, Any]) -> Any:
    """Whether a condition holds; not where it divides by zero at these sizes."""
    try:
        return evaluate(condition, sizes)
    except ZeroDivisionError:
        return False


def symbols(expression: Expression) -> set[str]:
    """The symbols of an expression."""
    if isinstance(expression, str):
        return {expression}
    if not isinstance(expression, tuple):
        return set()
    return set().union(*map(symbols, expression[1:]))


@fx.has_side_effect
def check(spec: tuple[Any, ...], *values: Any) -> None:
    """Refuse inputs for which the graph is not the model. It stands at the start of every graph.

    Args:
        spec: see :attr:`Guards.spec`.
        values: of the graph's placeholders, in order.

    Raises:
        InputError: a size, rank, dtype or constant is not one that the graph was captured for.
    """
    for value in values:
        if isinstance(value, fx.Proxy):  # a graph is unpickled by tracing its code
            value.tracer.create_proxy("call_function", check, (spec, *values), {})
            return
    inputs, ranges, conditions = spec
    sizes: dict[str, Any] = {}
    for guard, value in zip(inputs, values, strict=True):
        _check_kind(guard, value)
        if guard[1] is not None:
            for expected, actual in zip(guard[2], value.shape, strict=True):
                if isinstance(expected, str) and expected not in sizes:
                    sizes[expected] = actual
    for guard, value in zip(inputs, values, strict=True):
        if guard[1] is not None:
            _check_shape(guard[0], guard[2], value.shape, sizes)
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in values):
        return  # no numbers that could be wrong
    _check_numbers(inputs, values)
    _check_sizes(inputs, ranges, conditions, sizes)


def _check_sizes(inputs: Any, ranges: Any, conditions: Any, sizes: Mapping[str, Any]) -> None:
    for symbol, low, high in ranges:
        if symbol in sizes and (sizes[symbol] < low or (high is not None and sizes[symbol] > high)):
            _refuse_range(inputs, symbol, low, high, sizes[symbol])
    for condition in conditions:
        if not holds(condition, sizes):
            bounds: dict[str, tuple[int, int | None]] = dict.fromkeys(sizes, (0, None))
            guards = Guards(tuple(InputGuard(*each) for each in inputs), bounds)
            _refuse(
                f"the graph was captured for sizes with {guards.describe(condition)}",
                "trace with an example of these sizes",
            )


def guard(module: fx.GraphModule, guards: Guards) -> None:
    """Let a graph check its inputs whenever it is run, by these guards instead of older ones."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node in module.graph.find_nodes(op="call_function", target=check):
        module.graph.erase_node(node)
    if placeholders:
        with module.graph.inserting_after(placeholders[-1]):
            module.graph.call_function(check, (guards.spec, *placeholders))
        module.recompile()


def _check_kind(guard: tuple[Any, ...], given: Any) -> None:
    name, dtype, shape, value = guard
    if dtype is None:
        if isinstance(given, torch.Tensor) or type(given) is not type(value) or given != value:
            said = "a tensor" if isinstance(given, torch.Tensor) else repr(given)
            _refuse(
                f"{name} was {value!r} when the graph was captured and is {said} now",
                "trace with an example that has it so",
            )
        return
    if not isinstance(given, torch.Tensor):
        _refuse(
            f"{name} was a tensor when the graph was captured and is {given!r} now",
            "trace with an example that has it so",
        )
    if str(given.dtype) != dtype and not (given.is_floating_point() and _floating(dtype)):
        _refuse(
            f"{name} has dtype {given.dtype}, and the graph was captured for {dtype}",
            f"cast it, {name}.to({dtype}), or trace with such an example",
        )
    if len(given.shape) != len(shape):
        _refuse(
            f"{name} has {len(given.shape)} axes, and the graph was captured for {len(shape)}",
            "trace with such an example",
        )


def _check_numbers(inputs: Any, values: Sequence[Any]) -> None:
    for (name, dtype, _, expected), given in zip(inputs, values, strict=True):
        if dtype is None or expected is None:
            continue
        same = (given == torch.tensor(expected, dtype=given.dtype, device=given.device)).all()
        wrong = f"{name} has other numbers than when the graph was captured, and the model reads it"
        if torch.compiler.is_compiling() or isinstance(given, FakeTensor):
            torch._assert_async(same, wrong)
        elif not bool(same):
            _refuse(wrong, "trace with an example that has them")


def _floating(dtype: str) -> bool:
    return dtype in ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")


def _check_shape(
    name: str, shape: tuple[Any, ...], actual: Sequence[Any], sizes: Mapping[str, Any]
) -> None:
    for axis, expected in enumerate(shape):
        size = evaluate(expected, sizes)
        if actual[axis] != size:
            _refuse(
                f"axis {axis} of {name} has size {actual[axis]}, and the graph was captured for "
                f"{size}" + ("" if isinstance(expected, int) else " beside the other inputs"),
                "trace with an example of that size",
            )


def _refuse_range(inputs: Any, symbol: str, low: int, high: int | None, actual: Any) -> NoReturn:
    name, axis = next((guard[0], guard[2].index(symbol)) for guard in inputs if symbol in guard[2])
    bounds = f"{low} or more" if high is None else f"{low} to {high}"
    _refuse(
        f"axis {axis} of {name} has size {actual}, and the graph was captured for {bounds}",
        "trace with an example of that size",
    )


def _refuse(what: str, mend: str) -> NoReturn:
    raise InputError(f"{what}: {mend}")


def _spelled(expression: Expression, names: Mapping[str, str], inside: bool = False) -> str:
    if isinstance(expression, str):
        return names.get(expression, expression)
    if not isinstance(expression, tuple):
        return str(expression)
    name, *operands = expression
    parts = [_spelled(each, names, True) for each in operands]
    if name not in _SIGNS:
        return f"{name}({', '.join(parts)})"
    text = _SIGNS[name].join(parts)
    return f"({text})" if inside else text


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
