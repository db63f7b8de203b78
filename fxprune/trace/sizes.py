"""Symbolic sizes as plain integers.

Every symbol of ``torch.export`` (batch, sequence) gets a large prime of its own as stand-in. An
expression over symbols then has an integer value that no feature size has by accident, so the axis
algebra can compare, divide and factor sizes without symbolic mathematics.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from sympy import Integer


def _is_prime(n: int) -> bool:
    return n % 2 == 1 and all(n % k for k in range(3, int(n**0.5) + 1, 2))


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether a size can vary (a SymInt may have been specialised to a number)."""
    return not isinstance(size, int) and bool(size.node.expr.free_symbols)


class Sizes:
    """Stand-ins for the symbols of one traced graph."""

    def __init__(self) -> None:
        self._symbols: dict[Any, int] = {}
        self._expressions: dict[Any, int] = {}
        self._primes = (n for n in count(10_007, 2) if _is_prime(n))

    def value(self, size: int | torch.SymInt) -> int:
        """The size, or the stand-in of a symbolic one."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        known = self._expressions.get(expression)
        if known is None:
            for symbol in sorted(expression.free_symbols, key=str):
                if symbol not in self._symbols:
                    self._symbols[symbol] = Integer(next(self._primes))
            substituted = expression.xreplace(self._symbols)
            known = int(substituted) if substituted.is_number else next(self._primes)
            self._expressions[expression] = known
        return known

    def shape(self, value: torch.Tensor) -> tuple[tuple[int, bool], ...]:
        """Each axis of the tensor as (size or stand-in, whether it is symbolic)."""
        return tuple((self.value(s), is_symbolic(s)) for s in value.shape)
