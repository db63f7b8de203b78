"""Pruning with the dependency ignored: every structure is scored and cut on its own.

The ablation of LLM-Pruner (arXiv 2305.11627, table 6). A group loses as many units as in the
coupled plan, so all shapes fit, but each parameter axis keeps the units that its own scores choose:
row 7 of one matrix then meets column 9 of the next. ``python -m benches.ablation CALIBRATION
EVALUATION ...`` prunes a model both ways by the criteria that can score a structure alone and
prints a line of JSON for each: perplexity at 128 and 1024 tokens. 10 x 128 tokens of calibration,
an equal share of every group, no compensation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

import fxprune
from benches import tables
from fxprune.axes import dims, positions
from fxprune.axes.dims import Dim, find
from fxprune.axes.positions import Units
from fxprune.data import text
from fxprune.errors import CriterionError, RewriteError
from fxprune.hf.open.models import load_model
from fxprune.importance.named import by_name
from fxprune.rewrite.rewrite import rewrite

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group, Site
    from fxprune.plan import Plan
    from fxprune.trace import Traced

KINDS = ("mlp", "attention")
CRITERIA = ("taylor2", "taylor", "taylor-vector", "magnitude", "random")
WINDOWS = {128: 16, 1024: 2}
# (canonical parameter name, axis) to the units that stay there, int64 and ascending, by dim.
Choice = dict[tuple[str, int], dict[Dim, Units]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--windows", type=int, nargs=2, default=list(WINDOWS.values()))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load_model(options.model, dtype=torch.float32)
    assert loaded.tokenizer is not None
    traced = fxprune.trace(loaded.model)
    graph = fxprune.discover(traced)
    groups = [group for group in graph.groups if group.kind in KINDS]
    texts = {path: text.read(path) for path in options.evaluations}
    most = dict(zip(WINDOWS, options.windows, strict=True))
    columns = tables.columns(loaded.tokenizer, texts, most)
    corpus = text.read(options.calibration)
    for seed in options.draws:
        crops = text.crops(loaded.tokenizer, corpus, 10, 128, seed)
        for name in options.criteria:
            criterion = by_name(name, seed)
            scores, own = (
                fxprune.estimate(loaded.model, graph, criterion, crops, groups=chosen)
                for chosen in (groups, site_groups(groups))
            )
            plan = fxprune.select(graph, scores, options.ratio, kinds=KINDS, ranking="local")
            small = fxprune.rewrite(traced, plan)
            alone = rewrite_uncoupled(traced, graph, plan, choose(graph, plan, own))
            for module, how in ((small, "coupled"), (alone, "no dependency")):
                line = {"criterion": name, "draw": seed, "cut": how}
                print(json.dumps({**line, **tables.measured(module, columns)}), flush=True)


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
                places = torch.from_numpy(positions.index(layout, kept))
                if len(places) < layout.size:
                    value = value.index_select(axis, places.to(tensor.device))
            found[name].copy_(value)
    return small


if __name__ == "__main__":
    main()
