"""Layers that look alike: drawn once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby

Layer = tuple[str, int]


def ranges(indices: Iterable[int]) -> str:
    """Indices as text: ``"0-3, 7"``."""
    ordered = sorted(indices)
    runs: list[str] = []
    for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(runs)


def classes(signatures: Mapping[Layer, Hashable]) -> list[tuple[Layer, ...]]:
    """Layers of one stack with equal signatures, wherever they are in it."""
    found: dict[tuple[str, Hashable], list[Layer]] = {}
    for layer, signature in sorted(signatures.items()):
        found.setdefault((layer[0], signature), []).append(layer)
    return [tuple(layers) for layers in found.values()]


def hidden(signatures: Mapping[Layer, Hashable], least: int) -> list[tuple[Layer, ...]]:
    """Layers that need no picture because one before them looks the same; neighbours together.

    Args:
        signatures: what each layer looks like.
        least: so many layers must look the same.
    """
    rest = sorted(
        layer for alike in classes(signatures) if len(alike) >= least for layer in alike[1:]
    )
    found: list[list[Layer]] = []
    for stack, index in rest:
        if found and found[-1][-1] == (stack, index - 1):
            found[-1].append((stack, index))
        else:
            found.append([(stack, index)])
    return [tuple(run) for run in found]


def inside(path: str, layer: Layer | None) -> str:
    """A path as seen from a layer it lies in, else unchanged."""
    if layer is None:
        return path
    prefix = f"{layer[0]}.{layer[1]}"
    if path == prefix:
        return ""
    return path[len(prefix) + 1 :] if path.startswith((prefix + ".", prefix + ":")) else path
