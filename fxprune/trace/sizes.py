"""Symbolic sizes as plain integers.

Every symbol of ``torch.export`` (batch, sequence, height) gets a number of its own as stand-in: a
large prime, or a multiple of one where the graph asks for multiples. An expression over symbols
then has an integer value that no feature size has by accident, so the axis algebra can compare,
divide and factor sizes without symbolic mathematics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from sympy import Integer
from torch import fx

from fxprune.trace.arguments import argument
from fxprune.trace.guards import Guards, holds, symbols

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 3, 6, 12, 24, 48, 96, 5, 7, 14, 28, 56, 112)
_OFFSETS = (0, 1, -1, 2, 3)
_TRIES = 20_000
# Sizes at which an expression that never varies is told from one that does.
_SAMPLES = (2, 3, 7, 64, 1021, 10_007, 1_000_003)
_SMALL = 4096  # where no large number will do, such as that of learned positions


def _is_prime(n: int) -> bool:
    return n > 1 and (n == 2 or n % 2 == 1) and all(n % k for k in range(3, int(n**0.5) + 1, 2))


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether a size can vary (a SymInt may have been specialised to a number)."""
    return not isinstance(size, int) and _constant(size.node.expr) is None


@lru_cache(maxsize=4096)
def _constant(expression: Any) -> int | None:
    """The number that an expression always is, though it may speak of symbols; None if it varies.

    Padding to whole chunks and cutting off again leaves quotients such as ``(128 * n) // n`` in
    which sympy does not see the number.
    """
    if expression.is_number:
        return int(expression)
    names = sorted(expression.free_symbols, key=str)
    found: set[Any] = set()
    for first in _SAMPLES:
        try:
            value = expression.xreplace(
                {name: Integer(first + place) for place, name in enumerate(names)}
            )
        except ZeroDivisionError:  # such a size is none
            return None
        if not value.is_number or len(found | {value}) > 1:
            return None
        found.add(value)
    return int(found.pop())


def form(value: torch.Tensor) -> tuple[Any, ...]:
    """The shape as numbers and expressions.

    To compare symbolic sizes themselves is to ask torch, which then takes for one what happens to
    be equal in the example.
    """
    return tuple(s if isinstance(s, int) else s.node.expr for s in value.shape)


def strides(value: torch.Tensor) -> tuple[Any, ...]:
    """The strides, likewise."""
    return tuple(s if isinstance(s, int) else s.node.expr for s in value.stride())


class Sizes:
    """Stand-ins for the symbols of one traced graph.

    Args:
        chosen: stand-ins that a graph's guards allow, see :func:`stand_ins`.
    """

    def __init__(self, chosen: Mapping[str, int] | None = None) -> None:
        self._chosen = dict(chosen or {})
        self._symbols: dict[Any, Any] = {}
        self._expressions: dict[Any, int] = {}
        self._primes = (n for n in count(20_011, 2) if _is_prime(n))

    def value(self, size: int | torch.SymInt) -> int:
        """The size, or the stand-in of a symbolic one."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        constant = _constant(expression)
        if constant is not None:
            return constant
        known = self._expressions.get(expression)
        if known is None:
            for symbol in sorted(expression.free_symbols, key=str):
                if symbol not in self._symbols:
                    chosen = self._chosen.get(str(symbol))
                    self._symbols[symbol] = Integer(chosen or next(self._primes))
            substituted = expression.xreplace(self._symbols)
            known = int(substituted) if substituted.is_number else next(self._primes)
            self._expressions[expression] = known
        return known

    def is_open(self, size: int | torch.SymInt) -> bool:
        """Whether a size is a symbol of its own that has no stand-in yet."""
        if not is_symbolic(size):
            return False
        symbol = size.node.expr  # type: ignore[union-attr]
        return bool(
            symbol.is_Symbol and str(symbol) not in self._chosen and symbol not in self._symbols
        )

    def define(self, size: torch.SymInt, value: int) -> None:
        """Give the stand-in of an open size."""
        self._symbols[size.node.expr] = Integer(value)

    def shape(self, value: torch.Tensor) -> tuple[tuple[int, bool], ...]:
        """Each axis of the tensor as (size or stand-in, whether it is symbolic)."""
        return tuple((self.value(s), is_symbolic(s)) for s in value.shape)


def settle(graph: fx.Graph, sizes: Sizes) -> None:
    """Give the sizes of slices that the capture left open the stand-ins that follow from others.

    Where ``torch.export`` cannot decide between which bounds of a symbolic axis a slice lies, the
    size it gives is a symbol of its own, though it is known once the others are.
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not torch.ops.aten.slice.Tensor:
            continue
        whole, place = node.args[0].meta.get("val"), argument(node, "dim")
        size = node.meta["val"].shape[place]
        if not isinstance(whole, torch.Tensor) or not sizes.is_open(size):
            continue
        start, end, step = (
            sizes.value(bound.meta["val"]) if isinstance(bound, fx.Node) else bound
            for bound in (argument(node, name) for name in ("start", "end", "step"))
        )
        taken = range(*slice(start, end, step).indices(sizes.value(whole.shape[place])))
        sizes.define(size, len(taken))


def stand_ins(guards: Guards) -> tuple[dict[str, int], set[str]]:
    """A number for every symbol, such as the graph takes.

    Returns:
        The numbers; and the symbols that have none, for which only sizes near the example's do.
    """
    primes = (n for n in count(10_007, 2) if _is_prime(n))
    chosen = {name: next(primes) for name in guards.ranges}
    if guards.allow(chosen):
        return chosen, set()
    bounded = {name: _candidates(guards, name, prime) for name, prime in chosen.items()}
    for sizes in _combinations(guards, bounded):
        if guards.allow(sizes):
            return sizes, set()
    lost = {name for name, found in bounded.items() if not found}
    for condition in guards.conditions:
        if not holds(condition, chosen):
            lost |= symbols(condition)
    return chosen, lost or set(chosen)


def _candidates(guards: Guards, name: str, prime: int) -> list[int]:
    """Numbers for one symbol, alone in the conditions that are about nothing else."""
    low, high = guards.ranges[name]
    own = [c for c in guards.conditions if symbols(c) == {name}]
    large = (prime * m + k for m in _MULTIPLES for k in _OFFSETS)
    top = _SMALL if high is None else min(high, _SMALL)
    small = sorted(range(top, low - 1, -1), key=lambda n: not _is_prime(n))
    numbers = itertools.chain(large, small)
    within = (n for n in numbers if low <= n and (high is None or n <= high))
    fits = (n for n in within if all(holds(c, {name: n}) for c in own))
    return list(itertools.islice(fits, len(_MULTIPLES)))


def _combinations(guards: Guards, candidates: Mapping[str, list[int]]) -> Iterator[dict[str, int]]:
    """Numbers for all symbols: first each at the same place of its list, then any."""
    lists = list(candidates.values())
    if not all(lists):
        return
    together = zip(*lists, strict=False)
    every = itertools.product(*lists)
    for numbers in itertools.islice(itertools.chain(together, every), _TRIES):
        yield dict(zip(candidates, numbers, strict=True))
