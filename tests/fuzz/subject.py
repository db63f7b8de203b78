"""A model to prune, with inputs of several sizes, captured once for many plans."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

import fxprune
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from tests.fuzz.reference import flat, shake
from tests.zoo import BY_NAME

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Spec:
    """A plan by names alone, so that it can be made for any capture of the same model.

    Attributes:
        kept: group to the units that stay.
        removed: residual branches and blocks that go.
    """

    kept: Mapping[str, tuple[int, ...]]
    removed: tuple[str, ...] = ()


@dataclass
class Subject:
    """A model and its inputs.

    Attributes:
        name: for people.
        model: with values unlike one another.
        inputs: to trace with, and others of other sizes.
        training: whether training draws random numbers and keeps no statistics, so that the graph
            must draw the same.
    """

    name: str
    model: nn.Module
    inputs: list[Inputs]
    training: bool = False


@dataclass
class Captured:
    """A subject in one dtype, traced."""

    subject: Subject
    model: nn.Module
    inputs: list[Inputs]
    traced: fxprune.Traced
    graph: DependencyGraph
    whole: fx.GraphModule
    truth: list[Tensor]
    cache: dict[Any, Any] = field(default_factory=dict)

    def plan(self, spec: Spec) -> Plan:
        """The plan that a specification names."""
        graph = self.graph
        if spec.removed:
            graph = fxprune.discover(fxprune.bypass(self.traced, spec.removed))
        return Plan.of(graph, spec.kept)

    def groups(self, removed: tuple[str, ...]) -> tuple[Any, ...]:
        """The groups that are left when branches went."""
        if not removed:
            return self.graph.groups
        return fxprune.discover(fxprune.bypass(self.traced, removed)).groups


def capture(subject: Subject, dtype: torch.dtype = torch.float32) -> Captured:
    """Trace a subject in a dtype and rewrite it by an empty plan."""
    model, inputs = subject.model, subject.inputs
    if dtype != torch.float32:
        model = copy.deepcopy(model).to(dtype)
        inputs = tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs
        )
    with torch.no_grad():
        truth = [each.clone() for each in flat(model(*inputs[0][0], **inputs[0][1]))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)
        traced = fxprune.trace(model, *inputs[0])
    graph = fxprune.discover(traced)
    whole = fxprune.rewrite(traced, Plan.of(graph, {}))
    return Captured(subject, model, inputs, traced, graph, whole, truth)


def of_the_zoo(name: str, attention: str) -> Subject:
    """A model of the zoo."""
    entry = BY_NAME[name]
    torch.manual_seed(0)
    model = entry.make(attention).eval()
    shake(model)
    inputs = [entry.example(), entry.example(3, 17), entry.example(2, 9), entry.example(1, 21)]
    if entry.inputs == "image":
        for height, width in ((20, 12), (24, 24)):
            inputs.append(((torch.randn(2, 3, height, width),), {}))
    return Subject(f"{name}-{attention}", model, inputs)
