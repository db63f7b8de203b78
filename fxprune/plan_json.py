"""The file format of a plan: to JSON and back, trusting nothing in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fxprune.errors import PlanError

if TYPE_CHECKING:
    from fxprune.plan import Plan

FORMAT = "fxprune-plan"
VERSION = 1
# Younger than the format: a file without them is read as if they were empty.
_OPTIONAL = ("removed", "biases", "limits", "bound")
_RANGES = re.compile(r"(\d{1,12}(-\d{1,12})?(,\d{1,12}(-\d{1,12})?)*)?")


def encode(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values. What is optional and empty is left out."""
    data = {
        "format": FORMAT,
        "version": plan.version,
        "fingerprint": plan.fingerprint,
        "pruning_ratio": plan.pruning_ratio,
        "criterion": plan.criterion,
        "parameters_before": plan.parameters_before,
        "parameters_after": plan.parameters_after,
        "groups": {
            name: {"size": plan.sizes[name], "removed": _ranges(plan.sizes[name], units)}
            for name, units in plan.kept.items()
        },
        "removed": list(plan.removed),
        "biases": list(plan.biases),
        "limits": dict(plan.limits),
        "bound": plan.bound,
        "shapes": {name: list(shape) for name, shape in plan.shapes.items()},
    }
    return {name: value for name, value in data.items() if value or name not in _OPTIONAL}


def decode(text: str) -> dict[str, Any]:
    """The arguments of :class:`fxprune.plan.Plan` from the text of a file.

    Raises:
        PlanError: if the text is not JSON, of another format or version, or a field is missing,
            of the wrong type or out of range.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"it is not valid JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanError(f'it is not a plan (no "format": "{FORMAT}")')
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise PlanError(f"version {data.get('version')!r} is not supported; this reads {VERSION}")
    before = _count(data, "parameters_before")
    kept, sizes = {}, {}
    for name, entry in _field(data, "groups", dict).items():
        where = f"group {name!r}"
        if not isinstance(entry, dict):
            raise PlanError(f"{where} must be an object")
        # A size beyond the parameters is damage; refused before it becomes a huge tuple.
        sizes[name] = _count(entry, "size", where, most=before)
        kept[name] = _kept(sizes[name], _field(entry, "removed", str, where), where)
    optional = _optional(data)
    # Only biases may outweigh what goes.
    most = None if optional["biases"] else before
    return {
        "kept": kept,
        "sizes": sizes,
        "fingerprint": _field(data, "fingerprint", str),
        "pruning_ratio": _ratio(data),
        "criterion": _field(data, "criterion", (str, type(None))),
        "parameters_before": before,
        "parameters_after": _count(data, "parameters_after", most=most),
        **optional,
        "shapes": {name: _shape(name, s) for name, s in _field(data, "shapes", dict).items()},
        "version": VERSION,
    }


def _field(data: dict[str, Any], name: str, kind: Any, where: str = "the plan") -> Any:
    if name not in data:
        raise PlanError(f"{where} has no field {name!r}")
    value = data[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PlanError(f"{where}: the field {name!r} is of the wrong type ({value!r:.60})")
    return value


def _count(
    data: dict[str, Any], name: str, where: str = "the plan", most: int | None = None
) -> int:
    value: int = _field(data, name, int, where)
    if value < 0 or (most is not None and value > most):
        raise PlanError(f"{where}: the field {name!r} is out of range ({value})")
    return value


def _optional(data: dict[str, Any]) -> dict[str, Any]:
    removed = _field(data, "removed", list) if "removed" in data else []
    biases = _field(data, "biases", list) if "biases" in data else []
    limits = _field(data, "limits", dict) if "limits" in data else {}
    texts = {"removed": removed, "biases": biases, "limits": list(limits.values())}
    for name, value in texts.items():
        if not all(isinstance(item, str) for item in value):
            raise PlanError(f"the field {name!r} must hold text only")
    bound = _field(data, "bound", str) if "bound" in data else None
    return {"removed": tuple(removed), "biases": tuple(biases), "limits": limits, "bound": bound}


def _ratio(data: dict[str, Any]) -> float | None:
    value = _field(data, "pruning_ratio", (int, float, type(None)))
    if value is not None and not 0 <= value < 1:
        raise PlanError(f"the field 'pruning_ratio' is outside [0, 1) ({value})")
    return None if value is None else float(value)


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not whole:
        raise PlanError(f"the field 'shapes': {name!r} has no valid shape ({shape!r:.60})")
    return tuple(shape)


def _ranges(size: int, kept: Iterable[int]) -> str:
    """The units that are not kept, as text: ``"0-3,7"``."""
    edges = (-1, *kept, size)
    gaps = ((a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


def _kept(size: int, removed: str, where: str) -> tuple[int, ...]:
    if not _RANGES.fullmatch(removed):
        raise PlanError(f"{where}: the removed units are no list of ranges ({removed!r:.60})")
    kept: list[int] = []
    following = 0
    for piece in removed.split(",") if removed else ():
        first, _, last = piece.partition("-")
        start, stop = int(first), int(last or first) + 1
        if stop > size:
            raise PlanError(f"{where}: unit {stop - 1} is out of range; it has {size} units")
        if start < following or stop <= start:
            raise PlanError(f"{where}: the removed units repeat or are not sorted, at {piece!r}")
        kept.extend(range(following, start))
        following = stop
    kept.extend(range(following, size))
    return tuple(kept)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"the name {twice!r} is a duplicate")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")
