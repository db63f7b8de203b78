"""A model to prune, with inputs of several sizes, captured once for many plans."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

import fxprune
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from tests.fuzz.reference import flat, shake
from tests.vision.families import BY_NAME as VISION
from tests.vision.families import Family
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
    """A subject in one dtype, traced.

    Attributes:
        subject: what it is of.
        model: in that dtype.
        inputs: in that dtype.
        traced: the capture.
        graph: its groups.
        whole: the rewritten graph that has lost nothing.
        truth: outputs of the model before it was captured.
        changed: what capture left behind in the model, in words.
    """

    subject: Subject
    model: nn.Module
    inputs: list[Inputs]
    traced: fxprune.Traced
    graph: DependencyGraph
    whole: fx.GraphModule
    truth: list[Tensor]
    changed: str

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
    before = _state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)
        traced = fxprune.trace(model, *inputs[0])
    graph = fxprune.discover(traced)
    whole = fxprune.rewrite(traced, Plan.of(graph, {}))
    after = _state(model)
    changed = [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]
    return Captured(subject, model, inputs, traced, graph, whole, truth, ", ".join(changed))


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything a module is, in values that stay as they are when it changes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            known = list(value) if isinstance(value, dict) else value
            found[f"{path}.{name}"] = known.clone() if isinstance(known, Tensor) else known
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"values of {name}"] = tensor.detach().clone()
        found[f"place of {name}"] = tensor.data_ptr(), tensor.requires_grad, tensor.grad is None
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))


def of_the_zoo(family: str) -> Subject:
    """A model of the zoo (``llama-sdpa``), or a small vision family (``vision/densenet``)."""
    if family.startswith("vision/"):
        return _of_vision(VISION[family.removeprefix("vision/")])
    name, _, attention = family.rpartition("-")
    entry = BY_NAME[name]
    torch.manual_seed(0)
    model = entry.make(attention).eval()
    shake(model)
    inputs = [entry.example(), entry.example(3, 17), entry.example(2, 9), entry.example(1, 21)]
    if entry.inputs == "image":
        for height, width in ((20, 12), (24, 24)):
            inputs.append(((torch.randn(2, 3, height, width),), {}))
    return Subject(family, model, inputs)


def _of_vision(family: Family) -> Subject:
    torch.manual_seed(0)
    model = family.make().eval()
    shake(model)
    sizes = ((2, family.size), (3, family.size), (4, family.other), (1, family.other))
    inputs: list[Inputs] = [((family.pictures(batch, size),), {}) for batch, size in sizes]
    return Subject(f"vision/{family.name}", model, inputs)
