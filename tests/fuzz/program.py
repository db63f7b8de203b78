"""A random module as data: steps that can be dropped one by one, and the source they make."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")
DRAWS = 8  # random numbers of a step, of which its op takes what it needs


@dataclass(frozen=True)
class Value:
    """A tensor in the generated ``forward``.

    Attributes:
        name: its variable.
        kind: ``flat`` (batch, channels), ``rows`` (batch, length, channels), ``signal`` (batch,
            channels, length) or ``map`` (batch, channels, height, width).
        width: channels.
        space: which length or picture size it has, by name; two values with the same name agree.
    """

    name: str
    kind: str
    width: int
    space: str = ""


@dataclass(frozen=True)
class Step:
    """One step of a program.

    Attributes:
        key: its number, which stays when others are dropped.
        op: which of :data:`OPS`.
        sources: keys of the steps it reads; of a dropped one, its first source is read instead.
        draws: random numbers.
    """

    key: int
    op: str
    sources: tuple[int, ...]
    draws: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A module.

    Attributes:
        domain: the first input: ``features``, ``sequence``, ``tokens``, ``image`` or ``signal``.
        steps: what it does; keys start at 1, and 0 is the input.
        outputs: keys of the values it gives.
        form: how: 0 alone (if one), 1 tuple, 2 list, 3 dict.
        draws: random numbers for inputs and heads.
    """

    domain: str
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    form: int
    draws: tuple[int, ...]

    def without(self, keys: set[int]) -> Program:
        """The program without some steps."""
        left = tuple(step for step in self.steps if step.key not in keys)
        parents = {step.key: step.sources[0] for step in self.steps if step.key in keys}

        def resolved(key: int) -> int:
            while key in parents:
                key = parents[key]
            return key

        moved = tuple(replace(s, sources=tuple(map(resolved, s.sources))) for s in left)
        return replace(self, steps=moved, outputs=tuple(map(resolved, self.outputs)))


class Draw:
    """Choices out of fixed random numbers, so that a step does the same among other steps."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)
        self._place = 0

    def below(self, bound: int) -> int:
        """A number from 0 to below ``bound``, or 0."""
        number = self._numbers[self._place % len(self._numbers)] + self._place
        self._place += 1
        return number % max(1, bound)

    def pick(self, choices: Sequence[T]) -> T:
        """One of several."""
        return choices[self.below(len(choices))]

    def flag(self) -> bool:
        """True or false."""
        return self.below(2) == 0

    def width(self) -> int:
        """A number of channels, unlike the sizes of batches and lengths."""
        return self.pick((6, 7, 8, 9, 10, 12, 14, 15, 16, 20))


Op = Callable[["Code", Value, Draw, list[Value]], Value | None]
OPS: dict[str, tuple[frozenset[str], Op]] = {}


def op(kinds: str) -> Callable[[Op], Op]:
    """Register an op for values of these kinds. It returns None where it does not apply."""

    def add(function: Op) -> Op:
        name = getattr(function, "__name__").strip("_")  # noqa: B009
        assert name not in OPS, name
        OPS[name] = (frozenset(kinds.split()), function)
        return function

    return add


@dataclass
class Code:
    """The source of a module, while it grows."""

    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    key: int = 0  # of the step that writes: names do not change when other steps go
    counts: dict[str, int] = field(default_factory=dict)
    drops: bool = False  # draws random numbers in training
    keeps: bool = False  # keeps statistics in training

    def fresh(self, prefix: str) -> str:
        """A new name."""
        name = f"{prefix}{self.key}"
        self.counts[name] = self.counts.get(name, 0) + 1
        return name if self.counts[name] == 1 else f"{name}_{self.counts[name]}"

    def layer(self, expression: str) -> str:
        """A sub-module; returns how ``forward`` calls it."""
        name = self.fresh("m")
        self.init.append(f"self.{name} = {expression}")
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        """A parameter of that shape."""
        name = self.fresh("p")
        self.init.append(f"self.{name} = nn.Parameter(torch.randn({', '.join(map(str, shape))}))")
        return f"self.{name}"

    def buffer(self, *shape: int) -> str:
        """A buffer of that shape."""
        name = self.fresh("b")
        size = ", ".join(map(str, shape))
        self.init.append(f'self.register_buffer("{name}", torch.randn({size}))')
        return f"self.{name}"

    def line(self, text: str) -> None:
        """A line of ``forward``."""
        self.forward.append(text)

    def temporary(self, expression: str) -> str:
        """A variable for an expression."""
        name = self.fresh("t")
        self.line(f"{name} = {expression}")
        return name

    def value(self, expression: str, like: Value, **changes: Any) -> Value:
        """A new value, like another but for the changes."""
        name = self.fresh("v")
        self.line(f"{name} = {expression}")
        return replace(like, name=name, **changes)

    def source(self, arguments: Sequence[str]) -> str:
        """The whole module, as a class ``M``."""
        body = ["class M(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        body += [f"        {line}" for line in self.init]
        body += ["", f"    def forward(self, {', '.join(arguments)}):"]
        body += [f"        {line}" for line in _read(self.forward)]
        return "\n\n\n".join([*self.classes.values(), "\n".join(body)]) + "\n"


def _read(lines: list[str]) -> list[str]:
    """Without values that nothing reads: dropout there would draw numbers that a graph does not."""
    again = True
    while again:
        again = False
        for place, line in enumerate(lines):
            made = re.match(r"([vt]\w+) = ", line)
            if made and not re.search(rf"\b{made[1]}\b", "\n".join(lines[place + 1 :])):
                lines = lines[:place] + lines[place + 1 :]
                again = True
                break
    return lines


def draws(random_numbers: random.Random) -> tuple[int, ...]:
    """Random numbers for a step."""
    return tuple(random_numbers.randrange(10080) for _ in range(DRAWS))
