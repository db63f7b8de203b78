"""Lists of layers of a model, and which of their layers a plan leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fxprune.errors import ShrinkError

_BLOCK = re.compile(r"(.+)\.(\d+):block")


@dataclass(frozen=True)
class Stack:
    """A list of layers that loses some.

    Attributes:
        path: of the list.
        size: how many layers it has.
        kept: which of them stay, ascending.
    """

    path: str
    size: int
    kept: tuple[int, ...]

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths of the layers that go, each with a dot at the end."""
        return tuple(f"{self.path}.{i}." for i in range(self.size) if i not in self.kept)


@dataclass(frozen=True)
class Names:
    """Names in the shorter model and in the whole one."""

    stacks: Sequence[Stack]

    def original(self, name: str) -> str:
        """``model.layers.3.weight`` to ``model.layers.4.weight`` where one before it went."""
        for stack in self.stacks:
            rest = name.removeprefix(f"{stack.path}.")
            if rest != name:
                number, dot, tail = rest.partition(".")
                return f"{stack.path}.{stack.kept[int(number)]}{dot}{tail}"
        return name

    def renamed(self, name: str) -> str | None:
        """The name in the shorter model of something in the whole one; None if it goes."""
        for stack in self.stacks:
            rest = name.removeprefix(f"{stack.path}.")
            if rest != name:
                number, dot, tail = rest.partition(".")
                if int(number) not in stack.kept:
                    return None
                return f"{stack.path}.{stack.kept.index(int(number))}{dot}{tail}"
        return name

    def inside(self, path: str) -> bool:
        """Whether the path leads into one of the lists."""
        return any(path.startswith(f"{stack.path}.") for stack in self.stacks)

    def numbers(self, path: str) -> set[tuple[int, int]]:
        """Numbers of and in the list that a path leads into, in the whole model and in this."""
        for stack in self.stacks:
            rest = path.removeprefix(f"{stack.path}.")
            if rest != path:
                number = int(rest.partition(".")[0])
                return {(stack.kept[number], number), (stack.size, len(stack.kept))}
        return set()

    def shorter(self, path: str, number: int) -> int | None:
        """The number that a layer of the whole model has in the shorter one; None if it goes."""
        kept = next((stack.kept for stack in self.stacks if stack.path == path), None)
        if kept is None:
            return number
        return kept.index(number) if number in kept else None


def shortened(model: nn.Module, removed: Sequence[str]) -> list[Stack]:
    """The lists of layers that lose the blocks with these names.

    Raises:
        ShrinkError: a name is not that of a block, or of no list of layers; or none would stay.
    """
    gone: dict[str, set[int]] = {}
    for name in removed:
        block = _BLOCK.fullmatch(name)
        if block is None:
            raise ShrinkError(
                f"the plan removes {name}: a transformers model has its layers whole; "
                "fxprune.rewrite makes a graph without it"
            )
        gone.setdefault(block[1], set()).add(int(block[2]))
    found = []
    for path, numbers in gone.items():
        layers = at(model, path)
        if not isinstance(layers, nn.ModuleList) or max(numbers) >= len(layers):
            raise ShrinkError(f"{type(model).__name__} has no list of layers {path!r}")
        kept = tuple(i for i in range(len(layers)) if i not in numbers)
        if not kept:
            raise ShrinkError(f"no layer of {path} would stay")
        found.append(Stack(path, len(layers), kept))
    return found


def layer_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of layers that lie in no other list, with their paths."""
    found = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    for path, module in found.items():
        if not any(path.startswith(f"{other}.") for other in found):
            yield path, module


def at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, if there is one."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
