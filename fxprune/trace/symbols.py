"""What ``torch.export`` took for granted about sizes, read off a program as :class:`Guards`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch._guards import SLoc
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental import _config, symbolic_shapes
from torch.utils import _pytree as pytree
from torch.utils._sympy import functions

from fxprune.trace.guards import Expression, Guards, InputGuard, holds, symbols

_NAMES: dict[Any, str] = {
    sympy.Add: "add", sympy.Mul: "mul", sympy.Mod: "mod", functions.Mod: "mod",
    functions.PythonMod: "mod", functions.FloorDiv: "floordiv", functions.CleanDiv: "floordiv",
    functions.PowByNatural: "pow", sympy.Pow: "pow", sympy.Max: "max", functions.Max: "max",
    sympy.Min: "min", functions.Min: "min", sympy.Eq: "eq", sympy.Ne: "ne",
    sympy.StrictLessThan: "lt", sympy.LessThan: "le", sympy.StrictGreaterThan: "gt",
    sympy.GreaterThan: "ge", sympy.And: "and", sympy.Or: "or", sympy.Not: "not",
    functions.IntTrueDiv: "truediv", functions.FloatTrueDiv: "truediv", functions.ToFloat: "float",
    functions.TruncToInt: "trunc", functions.TruncToFloat: "trunc", functions.FloorToInt: "floor",
    functions.CeilToInt: "ceil",
}  # fmt: skip
_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_FAR = 4096


@dataclass(frozen=True)
class Asked:
    """A question about sizes whose answer is written into the graph.

    Attributes:
        condition: what holds where the answer is the same; None if it cannot be expressed.
        names: the symbols in it.
        axis: of the one symbol that it gave a number, the axis of an input; else None.
        place: the line of the model that asked, as ``file.py:line`` ("" if unknown).
        by: the function of torch that asked, for an op of that line; "" if it was the line itself.
    """

    condition: Expression | None
    now: Expression | None
    names: frozenset[str]
    place: str
    by: str
    axis: int | None = None

    def fails(self, sizes: Mapping[str, int]) -> bool:
        """Whether the answer is another one for these sizes; also where that cannot be told."""
        if self.now is None or not self.names <= sizes.keys():
            return True
        return not holds(self.now, sizes)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Let an export note every question about sizes, those about 0 and 1 too.

    By default ``torch.export`` takes symbolic sizes for 2 or more, and what a model asks of 1 is
    answered without a trace. Of each question the line of the model is kept.
    """
    original = getattr(symbolic_shapes.ShapeEnv, "_get_sloc", None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_config.patch(backed_size_oblivious=True))  # type: ignore[attr-defined]
        if original is not None:  # else messages name no line
            symbolic_shapes.ShapeEnv._get_sloc = _located  # type: ignore[method-assign]
            stack.callback(setattr, symbolic_shapes.ShapeEnv, "_get_sloc", original)
        yield


def _located(self: Any, framework_loc: str | None = None) -> SLoc:
    """Where a question was asked, and the line of the model behind it."""
    passed = {__file__, *symbolic_shapes.uninteresting_files()}
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in passed:
        frame = frame.f_back
    if frame is None:
        return SLoc(framework_loc, None)
    code, name = frame.f_code, frame.f_code.co_name
    if name == "__torch_function__":  # an op whose shapes are computed in C++
        name = getattr(frame.f_locals.get("func"), "__name__", name)
    asked = framework_loc or FrameSummary(code.co_filename, frame.f_lineno, name)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _OWN, "<")):
        frame = frame.f_back
    if frame is None:
        return SLoc(asked, None)
    return SLoc(asked, f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno}")


def read(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Guards, tuple[Asked, ...]]:
    """The guards of a program, and every question behind them.

    Args:
        program: as ``torch.export`` gave it, under :func:`recording`.
        args: the positional inputs it was captured with.
        kwargs: the keyword inputs.
    """
    specs = program.graph_signature.input_specs
    user = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    paths = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))[0]
    inputs: list[InputGuard] = []
    example: dict[str, int] = {}
    environment = _environment(program)
    for node, (path, leaf) in zip(nodes, paths, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            inputs.append(InputGuard(_called(path), None, (), leaf))
            continue
        shape = tuple(map(spelled, value.shape))
        inputs.append(InputGuard(_called(path), str(value.dtype), shape))
        for name, size in zip(shape, value.shape, strict=True):
            if isinstance(name, str):
                example[name] = int(size.node.hint)  # type: ignore[attr-defined]
    asked = tuple(_asked(each, environment) for each in getattr(environment, "guards", ()))
    ranges = {str(s): _bounds(r) for s, r in program.range_constraints.items() if str(s) in example}
    ranges = {name: ranges.get(name, (1, None)) for name in example}
    said = dict.fromkeys(each.now for each in asked if each.now is not None)
    conditions = [each for each in said if not _within(each, ranges)]
    for name in example:
        own = [each for each in conditions if symbols(each) == {name}]
        if own and (bounds := _interval(own, name, ranges[name], example[name])):
            ranges[name] = bounds
            conditions = [each for each in conditions if each not in own]
    return Guards(tuple(inputs), ranges, tuple(conditions), example), asked


def _interval(
    conditions: list[Expression], name: str, bounds: tuple[int, int | None], example: int
) -> tuple[int, int] | None:
    """The sizes around the example's that one symbol's conditions allow, if they allow no more."""

    def allowed(size: int) -> bool:
        inside = bounds[0] <= size and (bounds[1] is None or size <= bounds[1])
        return inside and all(holds(each, {name: size}) for each in conditions)

    high = next((n for n in range(example, _FAR) if not allowed(n + 1)), None)
    if high is None:
        return None
    low = next(n for n in range(example, 0, -1) if not allowed(n - 1))
    beyond = (*range(1, low), *range(high + 1, high + 100), *(high * 2**k for k in range(1, 10)))
    return None if any(map(allowed, beyond)) else (low, high)


def unclear(guards: Guards, asked: tuple[Asked, ...]) -> set[str]:
    """Symbols that cannot stay: a question about them, or a size, cannot be asked again."""
    lost = {name for each in asked if each.now is None for name in each.names}
    shapes = [size for guard in guards.inputs for size in guard.shape]
    bare = {size for size in shapes if isinstance(size, str)}
    every = set().union(*map(symbols, (*shapes, *guards.conditions)))
    beside = set().union(*(symbols(c) for c in guards.conditions if symbols(c) - bare))
    return (lost | every - bare | beside) & set(guards.example)


def forget_ones(program: ExportedProgram) -> None:
    """Let a program take sizes of one where only torch's own functions asked about them.

    They ask whether to broadcast, and the ops find that out again whenever they run.
    """
    environment = _environment(program)
    if environment is None or not hasattr(program, "_guards_code"):
        return
    found = [(each, _asked(each, environment)) for each in environment.guards]
    own = {asked.condition for _, asked in found if asked.by in ("", "check", "_check_sizes")}
    idle = set()
    for each, asked in found:
        broadcast = len(asked.names) == 1 and asked.condition == ("ne", *asked.names, 1)
        if broadcast and asked.condition not in own:
            (symbol,) = each.expr.free_symbols
            name = environment.var_to_sources[symbol][0].name
            idle.add(f"{name() if callable(name) else name} != 1")
    program._guards_code = [code for code in program._guards_code if code not in idle]


def _environment(program: ExportedProgram) -> Any:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor):
            environment = getattr(getattr(value, "fake_mode", None), "shape_env", None)
            if environment is not None:
                return environment
    return None


def _called(path: tuple[Any, ...]) -> str:
    """What a user calls a leaf of (args, kwargs)."""
    place, first, *rest = path
    start = f"args[{first.idx}]" if place.idx == 0 else str(first.key)
    return start + pytree.keystr(tuple(rest))


def spelled(size: Any) -> Expression:
    """A size as an expression; one that cannot be said makes its symbols unclear, see there."""
    if isinstance(size, int):
        return size
    found = expression(size.node.expr)
    return ("?", *map(str, size.node.expr.free_symbols)) if found is None else found


def _bounds(bounds: Any) -> tuple[int, int | None]:
    low, high = bounds.lower, bounds.upper
    # Nothing is computed of an input without elements.
    return max(1, int(low)), int(high) if high.is_Integer else None


def _asked(guard: Any, environment: Any) -> Asked:
    frame = guard.sloc.framework_loc
    filename = getattr(frame, "filename", "")
    inside = filename.startswith((_TORCH, _OWN))
    now = guard.expr
    while names := now.free_symbols & environment.replacements.keys():
        now = now.xreplace({name: environment.replacements[name] for name in names})
    here = f"{PurePath(filename).name}:{frame.lineno}" if filename else ""
    return Asked(
        expression(guard.expr),
        expression(now),
        frozenset(map(str, now.free_symbols)),
        (guard.sloc.maybe_user_loc or "") if inside else here,
        getattr(frame, "name", "") if inside else "",
        _axis(guard.expr, environment),
    )


def _axis(condition: Any, environment: Any) -> int | None:
    """The axis of an input whose size a condition says, such as ``s1 == 11``."""
    if condition.func is not sympy.Eq or len(condition.free_symbols) != 1:
        return None
    (symbol,) = condition.free_symbols
    sources = getattr(environment, "var_to_sources", {}).get(symbol) or [None]
    return getattr(sources[0], "idx", None)


def expression(given: Any) -> Expression | None:
    """A sympy expression over sizes as nested tuples; None if it uses what they cannot say."""
    if given.is_Symbol:
        return str(given)
    if given.is_Integer:
        return int(given)
    if given in (sympy.true, sympy.false):
        return ("eq", 0, 0 if given == sympy.true else 1)
    if given.is_Float and float(given).is_integer():
        return int(given)
    name = _NAMES.get(given.func)
    if name is None or (given.is_Pow and not given.exp.is_nonnegative):
        return None
    operands = [expression(each) for each in given.args]
    if any(each is None for each in operands):
        return None
    return (name, *operands)


def _within(condition: Expression, ranges: Mapping[str, tuple[int, int | None]]) -> bool:
    """Whether the ranges say the condition already."""
    if not symbols(condition):
        return True
    if not isinstance(condition, tuple) or condition[0] not in ("lt", "le", "gt", "ge"):
        return False
    return {type(side) for side in condition[1:]} == {str, int} and symbols(condition) <= set(
        ranges
    )
