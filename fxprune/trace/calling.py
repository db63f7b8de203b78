"""How a graph is called: like its model, and with nothing that it would drop without a word."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from torch.fx import _pytree as fx_pytree
from torch.fx.graph import _PyTreeCodeGen

from fxprune.errors import InputError


class ExactCodeGen(_PyTreeCodeGen):
    """Generates a forward that takes nested inputs of the captured structure only.

    torch's own takes from a list or a dict what it knows, and forgets what there is besides.
    """

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Names that the generated code uses."""
        return [*super().additional_globals(), ("_flattened", _flattened)]

    def gen_var_bindings(self, *args: Any, **kwargs: Any) -> str:
        """The line that flattens the inputs."""
        text = super().gen_var_bindings(*args, **kwargs)
        return text.replace("fx_pytree.tree_flatten_spec(", "_flattened(", 1)


def _flattened(inputs: Any, spec: Any) -> list[Any]:
    """The leaves of inputs, in the order of the graph's placeholders.

    Raises:
        InputError: a list of another length, or a dict of other keys.
    """
    _check(inputs, spec, "")
    return fx_pytree.tree_flatten_spec(inputs, spec)


def _check(value: Any, spec: Any, path: str) -> None:
    if spec.is_leaf():
        return
    children = spec.children()
    if spec.type in (list, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(children):
            _refuse(path, value, f"{len(children)} values")
        for place, (each, child) in enumerate(zip(value, children, strict=True)):
            _check(each, child, f"{path}[{place}]")
    elif spec.type in (dict, OrderedDict, defaultdict):
        keys = spec.context[1] if spec.type is defaultdict else spec.context
        if not isinstance(value, Mapping) or set(value) != set(keys):
            _refuse(path, value, f"the keys {', '.join(map(str, keys))}")
        for key, child in zip(keys, children, strict=True):
            _check(value[key], child, f"{path}[{key!r}]")


def _refuse(path: str, value: Any, expected: str) -> None:
    keyword = re.match(r"\[1\]\['(\w+)'\]", path)
    name = f"{keyword[1]}{path[keyword.end() :]}" if keyword else f"args{path.removeprefix('[0]')}"
    if isinstance(value, Mapping):
        given = f"the keys {', '.join(map(str, value))}"
    else:
        size = len(value) if isinstance(value, list | tuple) else None
        given = type(value).__name__ if size is None else f"{size} values"
    raise InputError(
        f"{name} holds {given}, and the graph was captured for {expected}: trace with an example "
        "of that structure"
    )
