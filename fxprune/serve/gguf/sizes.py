"""The sizes in a dense file's metadata, changed to those that a plan leaves in all layers alike."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.axes.dims import find
from fxprune.errors import ServeError
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.serve.gguf.file import Metadata, integers

_WIDTHS = (
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
)
_OF_HEADS = ("attention.key_length", "attention.value_length", "rope.dimension_count")


def of(
    entries: Metadata, plan: Plan, graph: DependencyGraph, kept: Sequence[int], head_dim: int
) -> Metadata:
    """The metadata with the layers that stay, and narrower MLPs, fewer experts and heads.

    Args:
        entries: those of the dense file.
        plan: the plan.
        graph: the groups of the model, without what the plan removes whole.
        kept: numbers of the layers that stay.
        head_dim: channels of a head.

    Raises:
        ServeError: the file has another size than the model, or none.
    """
    name = entries["general.architecture"].value
    count = entries[f"{name}.block_count"].value
    made = {}
    for key, entry in entries.items():
        listed = isinstance(entry.value, list) and key.startswith(f"{name}.")
        if listed and len(entry.value) == count:
            entry = entry._replace(value=[entry.value[number] for number in kept])
        made[key] = entry
    made[f"{name}.block_count"] = integers(len(kept))
    left = _left(plan, graph)
    new = _widths(entries, name, left.pop("mlp", {}))
    for size, units in left.pop("expert", {}).items():
        new |= _number(entries, name, "expert_count", size, units)
    if left:
        new |= _heads(entries, name, left) | dict.fromkeys(_OF_HEADS, head_dim)
    return made | {f"{name}.{key}": integers(value) for key, value in new.items()}


def _left(plan: Plan, graph: DependencyGraph) -> dict[str, dict[int, int]]:
    """What stays of groups that lose units, by kind and size: equally much in all of a size."""
    counts = plan.kept_counts(graph)
    found: dict[str, dict[int, int]] = {}
    for group in graph.groups:
        if (units := counts.get(find(group.dim), group.size)) != group.size:
            found.setdefault(group.kind, {})[group.size] = units
    return found


def _widths(entries: Metadata, name: str, left: dict[int, int]) -> dict[str, int]:
    new: dict[str, int] = {}
    for size, units in left.items():
        there = [w for w in _WIDTHS if (e := entries.get(f"{name}.{w}")) and e.value == size]
        if there:
            new |= dict.fromkeys(there, units)
            continue
        before = entries[f"{name}.feed_forward_length"].value
        if len(left) > 1 or not isinstance(before, int) or before % size:
            key = f"{name}.feed_forward_length"
            raise ServeError(f"llama.cpp: {key} is {before}, and MLPs of {size} keep {units}")
        new["feed_forward_length"] = before // size * units
    return new


def _heads(entries: Metadata, name: str, left: dict[str, dict[int, int]]) -> dict[str, int]:
    heads = entries[f"{name}.attention.head_count"].value
    kv_heads = entries.get(f"{name}.attention.head_count_kv", integers(heads)).value
    new_kv = new_each = 0
    for size, units in left.get("attention", {}).items():
        new_kv = _number(entries, name, "attention.head_count_kv", size, units).popitem()[1]
    for size, units in left.get("query", {}).items():
        if size * kv_heads != heads:
            raise ServeError(
                f"llama.cpp: {name} has {heads} and {kv_heads} heads, the model {size} to each"
            )
        new_each = units
    new_kv, new_each = new_kv or kv_heads, new_each or heads // kv_heads
    return {"attention.head_count": new_kv * new_each, "attention.head_count_kv": new_kv}


def _number(entries: Metadata, name: str, key: str, size: int, units: int) -> dict[str, int]:
    entry = entries.get(f"{name}.{key}")
    if entry is None or entry.value != size:
        there = "missing" if entry is None else entry.value
        raise ServeError(
            f"llama.cpp: {name}.{key} is {there}, and of {size} the model keeps {units}"
        )
    return {key: units}
