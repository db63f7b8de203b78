"""Modules that are to be left as they are, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from fxprune.errors import SelectionError
from fxprune.trace.traced import Traced


def ignored(traced: Traced, names: Sequence[str]) -> dict[str, str]:
    """The tensors of some modules.

    Args:
        traced: the whole model, or what was left of it; names are of the whole.
        names: names of modules, or :mod:`fnmatch` patterns of them. Everything inside them counts.

    Returns:
        Canonical name of each parameter and buffer inside to the name or pattern that it is
        ignored for.

    Raises:
        SelectionError: a name matches no module.
    """
    if not names:
        return {}
    module = traced.module
    tensors = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    tensors += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    modules = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    found: dict[str, str] = {}
    for pattern in (names,) if isinstance(names, str) else names:
        matches = [name for name in modules if fnmatchcase(name, pattern)]
        if not matches:
            close = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.4)
            hint = f"; close: {', '.join(close)}" if close else ""
            raise SelectionError(f"ignore={pattern!r}: the model has no such module{hint}")
        inside = tuple(f"{name}." for name in matches)
        for tensor in tensors:
            if tensor.startswith(inside):
                found.setdefault(traced.canonical(tensor), pattern)
    return found
