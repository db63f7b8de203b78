"""Single-op models: what must be prunable in each, and how it is proven.

A model is a few layers and one function. ``axes`` maps a weight axis (``up.weight[0]``) to the
layout it must have, drawn as in :func:`draw`: ``12``, ``(3 x 4)``, ``(5 + 7)``, frozen parts with a
``!``. ``why`` maps it to a part of the reason for which it is frozen.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import fxprune
from fxprune.axes.dims import Dim, Layout, Product, resolve
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from tests.toys import positions

Body = Callable[..., Any]


class Single(nn.Module):
    """Named layers, parameters and buffers under a function."""

    def __init__(self, body: Body, parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.body(self, *inputs)


@dataclass(frozen=True, eq=False)
class Case:
    """One model.

    Attributes:
        name: test id.
        parts: makes the layers.
        body: ``body(model, *inputs)``.
        axes: weight axis to its drawn layout.
        why: weight axis to a part of its reason for being frozen.
        inputs: shape of each input; the first size is the batch.
        exact: zeroed weights give zeroed units, so the plain model is a reference.
        tokens: inputs are integers below this.
        least: units that every group keeps at least.
        batches: the model takes other batch sizes than the example's.
        alone: it fixes a size, so others cannot be branches of the same model.
        normalised: prunable units are averaged somewhere; as a rule where it is not exact.
    """

    name: str
    parts: Callable[[], Mapping[str, Any]]
    body: Body
    axes: Mapping[str, str]
    why: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ((2, 7, 6),)
    exact: bool = True
    tokens: int = 0
    least: int = 1
    batches: bool = True
    alone: bool = False
    normalised: bool | None = None

    def build(self) -> Single:
        return Single(self.body, self.parts())

    @property
    def alike(self) -> tuple[Any, ...]:
        """Cases that agree here can be branches of one model."""
        return (
            self.inputs,
            self.exact,
            self.tokens,
            self.least,
            self.batches,
            self.alone and self.name,
        )


class Bundle(nn.Module):
    """Cases as branches of one model: it is exporting that costs time."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = tuple(cases)
        self.branches = nn.ModuleDict({case.name: case.build() for case in cases})
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    # Away from 0 and 1 and of one sign, so that nothing cancels and roots exist.
                    tensor.copy_(torch.rand(tensor.shape) * 0.6 + 0.1)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return tuple(branch(*inputs) for branch in self.branches.values())

    def example(self, batch: int | None = None) -> tuple[torch.Tensor, ...]:
        case, generator = self.cases[0], torch.Generator().manual_seed(batch or 0)
        shapes = [(batch or shape[0], *shape[1:]) for shape in case.inputs]
        if case.tokens:
            return tuple(torch.randint(case.tokens, shape, generator=generator) for shape in shapes)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    def discover(self) -> DependencyGraph:
        with warnings.catch_warnings():
            # Some of the models have a parameter for each position.
            warnings.simplefilter("ignore", fxprune.FxpruneWarning)
            return fxprune.discover(fxprune.trace(self, self.example()))


def bundles(cases: Sequence[Case], most: int = 12) -> list[tuple[Case, ...]]:
    """Cases that are alike, a dozen together."""
    alike: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        alike.setdefault(case.alike, []).append(case)
    return [
        tuple(same[start : start + most])
        for same in alike.values()
        for start in range(0, len(same), most)
    ]


def draw(layout: Layout) -> str:
    """``12``, ``(3 x 4)``, ``(5 + 7)``; a frozen dim has a ``!``, a symbolic one a ``*``."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        mark = "*" if layout.free else "!" if layout.reason else ""
        return ("" if layout.free else str(layout.size)) + mark
    sign = " x " if isinstance(layout, Product) else " + "
    return f"({sign.join(draw(part) for part in layout.parts)})" if layout.parts else "1"


def drawn(graph: DependencyGraph, case: Case, site: str) -> str:
    name, axis = site.removesuffix("]").split("[")
    canonical = graph.traced.canonical(f"branches.{case.name}.{name}")
    return draw(graph.layouts[canonical][int(axis)])


def reasons(graph: DependencyGraph, case: Case, site: str) -> list[str]:
    name = f"branches.{case.name}.{site}"
    return [g.reason or "" for g in graph.frozen if name in {str(s) for s in g.sites}]


def plans(graph: DependencyGraph, least: int) -> tuple[list[Plan], list[Plan]]:
    """Over all groups at once: a random one, the fewest units, all but one unit; and more."""
    choice = np.random.default_rng(3)

    def plan(count: Callable[[int], int]) -> Plan:
        kept = {
            g.name: np.sort(
                choice.permutation(g.size)[: max(least, g.least, count(g.size))]
            ).tolist()
            for g in graph.groups
        }
        return Plan.of(graph, kept)

    return (
        [
            plan(lambda size: int(choice.integers(1, size + 1))),
            plan(lambda size: 1),
            plan(lambda size: size - 1),
        ],
        [
            plan(lambda size: int(choice.integers(1, size + 1))),
            plan(lambda size: (size + 1) // 2),
        ],
    )


def switched_off(graph: DependencyGraph, plan: Plan) -> nn.Module:
    """The plain model, its removed units zeroed by plain loops."""
    kept = plan.kept_units(graph)
    model = copy.deepcopy(graph.traced.module)
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, layouts in graph.layouts.items():
            if name not in names:
                continue
            for axis, layout in enumerate(layouts):
                for place, units in enumerate(positions(layout)):
                    if any(dim in kept and unit not in kept[dim] for dim, unit in units):
                        names[name].select(axis, place).zero_()
    return model


def prove(graph: DependencyGraph, bundle: Bundle, several: Sequence[Plan]) -> None:
    """Rewrite under several plans and compare with the original, at two batch sizes."""
    case = bundle.cases[0]
    for plan in several:
        small = fxprune.rewrite(graph.traced, plan)
        reference = switched_off(graph, plan) if case.exact else None
        for batch in (None, 5) if case.batches else (None,):
            example = bundle.example(batch)
            if reference is not None:
                with torch.no_grad():
                    results = zip(bundle.cases, small(*example), reference(*example), strict=True)
                for each, mine, theirs in results:
                    torch.testing.assert_close(
                        mine, theirs, rtol=1e-4, atol=1e-4, msg=lambda m, n=each.name: f"{n}: {m}"
                    )
            fxprune.verify(graph.traced, small, plan, example)


def check_closure(graph: DependencyGraph) -> None:
    """The R1-R3 closure of every site is the group."""
    members: dict[str, set[Any]] = {}
    for node, facts in graph.network.nodes(data=True):
        members.setdefault(facts["group"], set()).add(node)
    for group in graph.groups:
        sites = {str(s) for s in group.sites}
        for site in group.sites:
            (start,) = (n for n in graph.neurons(site.tensor, site.axis) if n[1] == group.name)
            reached = graph.trigger(start)
            assert graph.sites_of(reached) == sites, f"{group} from {site}"
            assert reached == members[group.name], f"{group} from {site}"


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def mid(
    name: str,
    inner: Callable[..., torch.Tensor],
    want: str = "12",
    *,
    up: int = 12,
    down: int | None = None,
    extra: Callable[[], Mapping[str, Any]] = dict,
    axes: Mapping[str, str] | None = None,
    **options: Any,
) -> Case:
    """``down(inner(model, up(x)))``: one op between two linear layers, x having 6 features.

    Args:
        name: test id.
        inner: the op.
        want: the layout of what comes out of ``up``.
        up: its size.
        down: the size of what goes into ``down``, if another.
        extra: further layers and parameters.
        axes: layouts of further axes.
        options: fields of the case.
    """

    def parts() -> Mapping[str, Any]:
        layers = {"up": nn.Linear(6, up), "down": nn.Linear(down or up, 5)}
        return {**layers, **extra()}

    def body(m: Any, x: torch.Tensor) -> Any:
        return m.down(inner(m, m.up(x)))

    axes = {"up.weight[0]": want, "up.bias[0]": want, **(axes or {})}
    return Case(name, parts, body, axes, **options)
