"""Pruning with the dependency ignored: every structure is scored and cut on its own.

The ablation of LLM-Pruner (arXiv 2305.11627, table 6). A group loses as many units as in the
coupled plan, so all shapes fit, but each parameter axis keeps the units that its own scores choose:
row 7 of one matrix then meets column 9 of the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.axes import dims
from fxprune.axes.dims import Dim, Units, find
from fxprune.errors import CriterionError, RewriteError
from fxprune.rewrite.rewrite import rewrite

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group, Site
    from fxprune.plan import Plan
    from fxprune.trace import Traced

# (canonical parameter name, axis) to the units that stay there, int64 and ascending, by dim.
Choice = dict[tuple[str, int], dict[Dim, Units]]


def site_groups(groups: Iterable[Group]) -> list[Group]:
    """One group for each parameter axis of each group, with that site alone."""
    return [
        dataclasses.replace(group, name=site_name(group, site), sites=(site,))
        for group in groups
        for site in group.sites
        if site.parameter
    ]


def site_name(group: Group, site: Site) -> str:
    """Name of the group that has this site alone."""
    return f"{group.name}@{site}"


def choose(graph: DependencyGraph, plan: Plan, scores: Mapping[str, Any]) -> Choice:
    """The units that each parameter axis keeps by its own scores, as many as in the coupled plan.

    Args:
        graph: the groups of the model.
        plan: the coupled plan; only its numbers of units count.
        scores: scores of :func:`site_groups`, low goes first, equal ones by position.

    Raises:
        CriterionError: a site has no scores.
    """
    choice: Choice = {}
    for name, units in plan.kept.items():
        group = graph[name]
        for site in (site for site in group.sites if site.parameter):
            own = site_name(group, site)
            if own not in scores:
                raise CriterionError(f"no scores for {own!r}")
            order = np.argsort(np.asarray(scores[own], dtype=np.float64), kind="stable")
            kept = np.sort(order[group.size - len(units) :])
            choice.setdefault((site.tensor, site.axis), {})[find(group.dim)] = kept
    return choice


def rewrite_uncoupled(
    traced: Traced, graph: DependencyGraph, plan: Plan, choice: Choice
) -> fx.GraphModule:
    """The coupled smaller module with other values: each axis sliced by its own choice.

    Args:
        traced: the original; it is not changed.
        graph: its groups.
        plan: the coupled plan, which gives the shapes.
        choice: from :func:`choose`; an axis that is absent keeps the plan's units.

    Raises:
        RewriteError: a parameter cannot be found in the smaller module.
        PlanError: the plan does not fit the model.
    """
    small = rewrite(traced, plan)
    coupled = plan.kept_units(graph)
    found = dict(small.named_parameters(remove_duplicate=False))
    for name, tensor in traced.tensors.items():
        layouts = graph.layouts[name]
        loses = any(atom in coupled for layout in layouts for atom in dims.atoms(layout))
        if not isinstance(tensor, nn.Parameter) or not loses:
            continue
        if name not in found:
            raise RewriteError(f"the smaller module has no parameter {name!r}; report the model")
        with torch.no_grad():
            value: torch.Tensor = tensor
            for axis, layout in enumerate(layouts):
                kept = {**coupled, **choice.get((name, axis), {})}
                places = torch.from_numpy(dims.index(layout, kept))
                if len(places) < layout.size:
                    value = value.index_select(axis, places.to(tensor.device))
            found[name].copy_(value)
    return small
