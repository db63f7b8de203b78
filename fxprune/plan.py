"""The plan: which units stay. Plain data between deciding (left of it) and doing (right of it).

On disk a plan is JSON. The removed units are written as ranges (``"0-3,7"``), because most units
stay; everything else is as in :class:`Plan`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.axes.dims import Dim, find
from fxprune.axes.positions import Units, as_ranges, check_units, from_ranges
from fxprune.errors import PlanError
from fxprune.files import write_text
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.kinds import kind_of_unit
from fxprune.groups.parameters import Shapes, count_parameters, digest, parameter_shapes, weight_of

if TYPE_CHECKING:
    from torch import nn

    from fxprune.groups.group import Group
    from fxprune.trace.traced import Traced

FORMAT = "fxprune-plan"
VERSION = 1
# Younger than the format: a file without them is read as if they were empty.
_OPTIONAL = ("removed", "biases", "limits", "bound")


@dataclass(frozen=True)
class Plan:
    """Which units of which groups stay.

    Attributes:
        kept: group name to the units that stay, ascending; only groups that lose units.
        sizes: number of units before, of the groups in ``kept``.
        fingerprint: which architecture the plan is for, see :func:`fingerprint`.
        pruning_ratio: the fraction of parameters that was asked for, if it was asked that way.
        criterion: what the units were scored with, as text.
        parameters_before: parameters of the whole model.
        parameters_after: parameters of the whole model after pruning.
        shapes: the shapes behind ``fingerprint``, by canonical parameter name. May be empty; it
            only makes the message better when the plan meets another model.
        removed: names of the residual branches and blocks that go whole, in graph order, see
            :func:`fxprune.find_branches`. Groups are those of the model without them.
        biases: canonical names of the biases that the plan adds to Linears that had none, sorted.
            They are counted in ``parameters_after``.
        limits: group name to what kept it from losing more or less than the others, in short:
            ``keep_first=4``, ``min_kept=1``, ``override 0.25``. Nothing special: not listed.
        bound: the limit of the budget that kept further units from staying (``params``,
            ``kv_cache``), several joined by ", "; None if none did.
        version: version of the file format.
    """

    kept: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    fingerprint: str
    pruning_ratio: float | None = None
    criterion: str | None = None
    parameters_before: int = 0
    parameters_after: int = 0
    shapes: Shapes = field(default_factory=dict, repr=False)
    removed: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    limits: dict[str, str] = field(default_factory=dict, repr=False)
    bound: str | None = None
    version: int = VERSION

    @classmethod
    def of(
        cls,
        graph: DependencyGraph,
        kept: Mapping[str, Sequence[int]],
        *,
        pruning_ratio: float | None = None,
        criterion: str | None = None,
        biases: Iterable[str] = (),
        limits: Mapping[str, str] | None = None,
        bound: str | None = None,
    ) -> Plan:
        """The plan that keeps these units of this graph's groups, counted and checked.

        Args:
            graph: the groups of the model; of :func:`fxprune.bypass`, for a plan that removes
                branches and blocks too.
            kept: group name to the units that stay, ascending. Groups that keep everything are
                left out of the plan.
            pruning_ratio: the fraction of parameters that was asked for.
            criterion: what the units were scored with.
            biases: names of the biases to add, see :attr:`biases`.
            limits: see :attr:`limits`.
            bound: see :attr:`bound`.

        Raises:
            PlanError: for what :meth:`check` refuses.
        """
        groups = _by_name(graph)
        sizes = {name: groups[name].size for name in kept if name in groups}
        losing = {name: tuple(int(unit) for unit in units) for name, units in kept.items()}
        for name, size in sizes.items():
            if losing[name] == tuple(range(size)):
                del losing[name]
        shapes = parameter_shapes(graph)
        plan = cls(
            kept=losing,
            sizes={name: sizes[name] for name in losing if name in sizes},
            fingerprint=digest(shapes),
            pruning_ratio=pruning_ratio,
            criterion=criterion,
            shapes=shapes,
            removed=graph.traced.removed,
            biases=tuple(sorted(biases)),
            limits=dict(limits or {}),
            bound=bound,
        )
        plan.check(graph)
        return replace(
            plan,
            parameters_before=sum(map(prod, shapes.values())),
            parameters_after=count_parameters(graph, plan.kept_counts(graph), plan.biases),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON. An interrupted save leaves an older file as it was."""
        path = Path(path)
        text = json.dumps(encode(self), indent=1, allow_nan=False) + "\n"
        write_text(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that :meth:`save` wrote.

        Raises:
            PlanError: if the file is missing or damaged; says which field is wrong.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
        try:
            plan = cls(**decode(text))
            plan.validate()
        except PlanError as error:
            raise PlanError(f"{path} is not a usable plan: {error}") from error
        return plan

    def validate(self) -> None:
        """Check the plan by itself, without a model.

        Raises:
            PlanError: if a group keeps no unit, units are out of range, repeated or unsorted, a
                bias is added twice, or the shapes are not those of the fingerprint.
        """
        if self.shapes and digest(self.shapes) != self.fingerprint:
            raise PlanError("its shapes do not match its fingerprint")
        if len(set(self.removed)) < len(self.removed):
            raise PlanError("it removes a branch or block twice")
        if len(set(self.biases)) < len(self.biases):
            raise PlanError("it adds a bias twice")
        for name, units in self.kept.items():
            size = self.sizes.get(name)
            if size is None:
                raise PlanError(f"group {name!r} has no size in the plan")
            check_units(name, size, units)

    def check(self, graph: DependencyGraph) -> None:
        """Check that the plan fits a model.

        Raises:
            PlanError: if the plan is for another model (names the first tensor that differs, where
                the plan has the shapes), names an unknown or frozen group, disagrees about a size,
                keeps 0 units of a group, has units out of range, repeated or unsorted, or adds a
                bias that the model has already or that belongs to no weight of a Linear.
        """
        shapes = parameter_shapes(graph)
        self._check_shapes(shapes)
        if set(self.removed) != set(graph.traced.removed):
            raise PlanError(
                f"the plan removes {_listed(self.removed)} and this graph lacks "
                f"{_listed(graph.traced.removed)}: take discover(bypass(traced, plan.removed))"
            )
        groups = _by_name(graph)
        for name, units in self.kept.items():
            group = groups.get(name)
            if group is None:
                close = get_close_matches(name, groups, n=3)
                hint = f"; close: {', '.join(close)}" if close else ""
                raise PlanError(f"the plan names an unknown group {name!r}{hint}")
            if group.reason is not None and group.kind != "vocabulary":
                raise PlanError(f"the plan prunes the frozen group {name!r}: {group.reason}")
            if self.sizes.get(name) not in (None, group.size):
                raise PlanError(
                    f"group {name!r} has {group.size} units and the plan is for {self.sizes[name]}"
                )
            if 0 < len(units) < group.least:
                raise PlanError(
                    f"group {name!r} keeps {len(units)} units: {group.least} are chosen"
                )
        for name in self.biases:
            if name in shapes:
                raise PlanError(f"the plan adds the bias {name!r}, which the model has already")
            weight = weight_of(name)
            if len(shapes.get(weight, ())) != 2 or weight not in graph.layouts:
                raise PlanError(f"the plan adds the bias {name!r}: no Linear has it")
        self.validate()

    def check_model(self, model: nn.Module) -> None:
        """Check that the plan is for a model with these parameters, without its graph.

        Raises:
            PlanError: it is for another model; the message names the first tensor that differs.
        """
        self._check_shapes({name: tuple(p.shape) for name, p in model.named_parameters()})

    def _check_shapes(self, shapes: Shapes) -> None:
        if digest(shapes) != self.fingerprint:
            raise PlanError(f"the plan is for another model: {_difference(self.shapes, shapes)}")

    def then(self, other: Plan, traced: Traced) -> Plan:
        """This plan and then another as one, for the model that this one is for.

        Args:
            other: a plan for what this one leaves: as a graph, or as a model of transformers, where
                layers behind a removed one have other numbers.
            traced: the model that this plan is for; its weights are not needed.

        Raises:
            PlanError: one of the two is for another model, or the model's groups and branches
                cannot say what is left.
        """
        from fxprune.hf.shrink.chain import then

        return then(self, other, traced)

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens that stay, ascending; None if none go."""
        kinds = {kind_of_unit(name.rpartition(":")[2]): units for name, units in self.kept.items()}
        return kinds.get("vocabulary")

    def kept_units(self, graph: DependencyGraph) -> dict[Dim, Units]:
        """The units that stay, int64 and ascending, by the dim of each group that loses units."""
        return {
            find(graph[name].dim): np.asarray(units, dtype=np.int64)
            for name, units in self.kept.items()
        }

    def kept_counts(self, graph: DependencyGraph) -> dict[Dim, int]:
        """How many units stay, by the dim of each group that loses units."""
        return {find(graph[name].dim): len(units) for name, units in self.kept.items()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "nothing"


def _by_name(graph: DependencyGraph) -> dict[str, Group]:
    return {group.name: group for group in (*graph.groups, *graph.frozen)}


def _difference(planned: Shapes, here: Shapes) -> str:
    for name in sorted({*planned, *here}) if planned else ():
        if name not in here:
            return f"this one has no parameter {name!r}"
        if name not in planned:
            return f"the parameter {name!r} is not in the plan's model"
        if planned[name] != here[name]:
            return f"{name!r} has shape {here[name]} here and {planned[name]} in the plan"
    return "the names or shapes of its parameters differ"


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
            name: {"size": plan.sizes[name], "removed": as_ranges(plan.sizes[name], units)}
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
        kept[name] = from_ranges(sizes[name], _field(entry, "removed", str, where), where)
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"the name {twice!r} is a duplicate")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
