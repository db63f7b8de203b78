"""The plan: which units stay. Plain data between deciding (left of it) and doing (right of it).

On disk a plan is JSON. The removed units are written as ranges (``"0-3,7"``), because most units
stay; everything else is as in :class:`Plan`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fxprune.axes.dims import Dim, Units, find, kept_size
from fxprune.errors import PlanError
from fxprune.files import write_text
from fxprune.plan_json import VERSION, decode, encode

if TYPE_CHECKING:
    from torch import nn

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group

Shapes = dict[str, tuple[int, ...]]


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
            fingerprint=_digest(shapes),
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
        if self.shapes and _digest(self.shapes) != self.fingerprint:
            raise PlanError("its shapes do not match its fingerprint")
        if len(set(self.removed)) < len(self.removed):
            raise PlanError("it removes a branch or block twice")
        if len(set(self.biases)) < len(self.biases):
            raise PlanError("it adds a bias twice")
        for name, units in self.kept.items():
            size = self.sizes.get(name)
            if size is None:
                raise PlanError(f"group {name!r} has no size in the plan")
            _check_units(name, size, units)

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
        for name in self.kept:
            group = groups.get(name)
            if group is None:
                close = get_close_matches(name, groups, n=3)
                hint = f"; close: {', '.join(close)}" if close else ""
                raise PlanError(f"the plan names an unknown group {name!r}{hint}")
            if group.reason is not None:
                raise PlanError(f"the plan prunes the frozen group {name!r}: {group.reason}")
            if self.sizes.get(name) not in (None, group.size):
                raise PlanError(
                    f"group {name!r} has {group.size} units and the plan is for {self.sizes[name]}"
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
        if _digest(shapes) != self.fingerprint:
            raise PlanError(f"the plan is for another model: {_difference(self.shapes, shapes)}")

    def kept_units(self, graph: DependencyGraph) -> dict[Dim, Units]:
        """The units that stay, int64 and ascending, by the dim of each group that loses units."""
        return {
            find(graph[name].dim): np.asarray(units, dtype=np.int64)
            for name, units in self.kept.items()
        }

    def kept_counts(self, graph: DependencyGraph) -> dict[Dim, int]:
        """How many units stay, by the dim of each group that loses units."""
        return {find(graph[name].dim): len(units) for name, units in self.kept.items()}


def parameter_shapes(graph: DependencyGraph) -> Shapes:
    """Shape of every parameter of the model by canonical name; a tied parameter appears once."""
    aliases = graph.traced.aliases
    # The names of a tied parameter all lead to one entry, whether or not torch lists them all.
    named = graph.traced.module.named_parameters(remove_duplicate=False)
    return dict(sorted((aliases.get(name, name), tuple(p.shape)) for name, p in named))


def remaining_shapes(graph: DependencyGraph) -> Shapes:
    """:func:`parameter_shapes` without the parameters of removed branches and blocks."""
    dropped = graph.traced.dropped
    return {n: shape for n, shape in parameter_shapes(graph).items() if n not in dropped}


def fingerprint(graph: DependencyGraph) -> str:
    """What a plan calls its model: sha256 over the sorted (canonical name, shape) of parameters.

    Sibling fine-tunes of one architecture share it; another size or family does not.
    """
    return _digest(parameter_shapes(graph))


def count_parameters(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    biases: Iterable[str] = (),
) -> int:
    """Exact number of parameters of the whole model.

    A tied tensor counts once, buffers do not count, parameters that the graph does not use count
    as they are, and those of removed branches are no more.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        counts: units that stay, by dim; a dim that is absent keeps all.
        biases: names of biases that are added, see :attr:`Plan.biases`.
    """
    total = 0
    for name, shape in remaining_shapes(graph).items():
        layouts = graph.layouts.get(name)
        if counts and layouts is not None:
            shape = tuple(kept_size(layout, counts) for layout in layouts)
        total += prod(shape)
    return total + sum(kept_size(graph.layouts[weight_of(b)][0], counts or {}) for b in biases)


def weight_of(bias: str) -> str:
    """The name of the weight beside a bias; "" if the name is not that of a bias."""
    owner, dot, last = bias.rpartition(".")
    return f"{owner}{dot}weight" if last == "bias" else ""


def _check_units(name: str, size: int, units: Sequence[int]) -> None:
    if not units:
        raise PlanError(f"group {name!r} keeps 0 of its {size} units; at least 1 must stay")
    array = np.asarray(units)
    if array.dtype.kind != "i":
        raise PlanError(f"group {name!r}: kept units must be integers")
    outside = array[(array < 0) | (array >= size)]
    if outside.size:
        raise PlanError(
            f"group {name!r}: unit {outside[0]} is out of range; it has {size} units, "
            f"0 to {size - 1}"
        )
    steps = np.diff(array)
    if (steps == 0).any():
        unit = array[int(np.argmax(steps == 0))]
        raise PlanError(f"group {name!r}: unit {unit} is a duplicate")
    if (steps < 0).any():
        raise PlanError(f"group {name!r}: kept units are not sorted")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "nothing"


def _by_name(graph: DependencyGraph) -> dict[str, Group]:
    return {group.name: group for group in (*graph.groups, *graph.frozen)}


def _digest(shapes: Shapes) -> str:
    text = json.dumps([[name, *shape] for name, shape in sorted(shapes.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _difference(planned: Shapes, here: Shapes) -> str:
    for name in sorted({*planned, *here}) if planned else ():
        if name not in here:
            return f"this one has no parameter {name!r}"
        if name not in planned:
            return f"the parameter {name!r} is not in the plan's model"
        if planned[name] != here[name]:
            return f"{name!r} has shape {here[name]} here and {planned[name]} in the plan"
    return "the names or shapes of its parameters differ"
