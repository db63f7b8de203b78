"""Modules that are to be left as they are, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from fxprune.errors import SelectionError
from fxprune.trace.traced import Traced


def ignored(traced: Traced, names: Sequence[str], only: Sequence[str] = ()) -> dict[str, str]:
    """The tensors of some modules, and those outside of others.

    Args:
        traced: the whole model, or what was left of it; names are of the whole.
        names: names of modules, or :mod:`fnmatch` patterns of them. Everything inside them counts.
        only: likewise, of modules outside of which everything counts. A tensor that a module inside
            shares with one outside does too.

    Returns:
        Canonical name of each parameter and buffer that is left as it is to why:
        ``ignore=lm_head``, ``only=model.language_model``.

    Raises:
        SelectionError: a name matches no module.
    """
    names, only = ((given,) if isinstance(given, str) else given for given in (names, only))
    if not names and not only:
        return {}
    module = traced.module
    tensors = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    tensors += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    modules = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    found: dict[str, str] = {}
    for pattern in names:
        inside = _inside(modules, "ignore", pattern)
        for tensor in tensors:
            if tensor.startswith(inside):
                found.setdefault(traced.canonical(tensor), f"ignore={pattern}")
    inside = tuple(each for pattern in only for each in _inside(modules, "only", pattern))
    for tensor in tensors if only else ():
        if not tensor.startswith(inside):
            found.setdefault(traced.canonical(tensor), f"only={','.join(only)}")
    return found


def _inside(modules: Sequence[str], option: str, pattern: str) -> tuple[str, ...]:
    """How names of tensors in the modules of a pattern begin."""
    matches = [name for name in modules if fnmatchcase(name, pattern)]
    if not matches:
        close = difflib.get_close_matches(pattern, modules, n=3, cutoff=0.4)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise SelectionError(f"{option}={pattern!r}: the model has no such module{hint}")
    return tuple(f"{name}." for name in matches)
