"""The line of a modelling file for which no config can say a number of heads."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

_COUNT = re.compile(r"\b(num_heads|num_attention_heads|n_heads?)$")
_NAMED = re.compile(r"(?:\): |ShrinkError: )(\S+) (?:has shape|is missing|is \S+, and as)")


def forbidding(model: Any, message: str) -> str:
    """The statement that stands against another number of heads, as ``file:line: statement``.

    That is the one that computes the size of a head from how many there are; or that takes the
    hidden size for that of all heads together; or that makes what the message names; or that
    counts slopes from the number of heads.

    Args:
        model: the model.
        message: of the :class:`fxprune.errors.ShrinkError`.

    Returns:
        The line; empty if none is found.
    """
    named = _NAMED.search(message)
    if named is None:
        file = inspect.getmodule(type(model))
        return next(_statements(file, _ranges), "") if file and "of a range" in message else ""
    modules = list(_above(model, named[1].rpartition(".")[0]))[:3]
    kinds = [kind for module in modules for kind in _of_library(type(module))]
    kinds += _of_library(type(model.config))
    word = "|".join(map(re.escape, named[1].split(".")[-2:]))

    def makes(node: ast.stmt) -> bool:
        return re.match(rf"self\.({word}) = ", ast.unparse(node)) is not None

    tests = (_divides, _takes_hidden_size, makes)
    return next((line for test in tests for kind in kinds for line in _statements(kind, test)), "")


def _above(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules above a tensor of its layer, the innermost first."""
    while path:
        yield model.get_submodule(path)
        path, _, last = path.rpartition(".")
        if last.isdigit():
            return


def _of_library(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if each.__module__.startswith("transformers.models")]


def _statements(thing: type | ModuleType, wanted: Callable[[ast.stmt], bool]) -> Iterator[str]:
    """The simple statements of a class or a module that are wanted, each with its place."""
    source, first = inspect.getsourcelines(thing)
    tree = ast.parse(textwrap.dedent("".join(source)))
    file = Path(inspect.getfile(thing)).name
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and wanted(node):
            yield f"{file}:{max(first, 1) + node.lineno - 1}: {ast.unparse(node)}"


def _divides(node: ast.stmt) -> bool:
    """Whether something is divided by the number of heads, and the config cannot say the result."""
    text = ast.unparse(node)
    return (
        text.startswith("self.")
        and "getattr(config, 'head_dim'" not in text
        and any(
            isinstance(each, ast.BinOp)
            and isinstance(each.op, ast.FloorDiv | ast.Div)
            and _COUNT.search(ast.unparse(each.right)) is not None
            for each in ast.walk(node)
        )
    )


def _takes_hidden_size(node: ast.stmt) -> bool:
    """Whether a module is made whose size is the hidden size on each side."""
    call = getattr(node, "value", None)
    if not isinstance(call, ast.Call) or not call.args or "Config" in ast.unparse(call.func):
        return False
    return all(ast.unparse(each).endswith("hidden_size") for each in call.args)


def _ranges(node: ast.stmt) -> bool:
    return "arange(1, " in ast.unparse(node)
