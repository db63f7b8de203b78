"""An optimiser that goes on with the smaller model: its state is cut as the parameters are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import RewriteError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import weight_of
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.rewrite.planned import planned
from fxprune.trace.traced import Traced

# Of the axes of a state tensor, which of its parameter's each is; None for one of size 1.
Axes = tuple[int | None, ...]
_MEND = "prune before training, or make a new optimizer"


def check(optimizer: Any, model: nn.Module) -> None:
    """Refuse an optimiser whose state cannot be cut, before any work is done.

    Args:
        optimizer: of ``torch.optim``, or what is like one, perhaps wrapped by accelerate.
            None is fine.
        model: the model whose parameters it has.

    Raises:
        RewriteError: it holds a tensor that is no parameter of the model, or state of which it is
            not known how to cut it.
    """
    for _ in () if optimizer is None else _entries(_bare(optimizer), model, None):
        pass


def carry(
    optimizer: Any,
    before: nn.Module,
    after: nn.Module,
    traced: Traced | None = None,
    plan: Plan | None = None,
    *,
    renamed: Callable[[str], str | None] | None = None,
) -> None:
    """Let an optimiser go on with the parameters of a smaller model, in place.

    The optimiser stays the same object, so schedulers that hold it go on; so do its groups, with
    their options. State of the shape of its parameter (moments, momentum, master weights) keeps the
    entries that the parameter keeps, and so do means over one of its axes (the rows and columns of
    Adafactor, which are then means over what has gone as well); numbers stay. Gradients that are
    there are cut too. Parameters that went whole leave their groups, biases that the plan adds join
    the group of the weight beside them. Nothing is changed before all is known to fit.

    Args:
        optimizer: see :func:`check`; None does nothing.
        before: the model whose parameters it has.
        after: the smaller model.
        traced: ``before``, traced; without it the two have the same shapes.
        plan: what led from the one to the other.
        renamed: the name in ``after`` of a parameter of ``before``, None if it went; without it,
            they have the same names, and a parameter that ``after`` does not hold stays as it is
            unless the plan removes it.

    Raises:
        RewriteError: see :func:`check`; or a parameter of ``after`` has another shape than the plan
            leaves, or was one tensor and is two.
    """
    if optimizer is None:
        return
    optimizer, called = _bare(optimizer), renamed or str
    graph, resize = (None, None) if traced is None or plan is None else planned(traced, plan)
    there = dict(after.named_parameters(remove_duplicate=False))
    moved: dict[int, nn.Parameter | None] = {}
    states: dict[nn.Parameter, dict[str, Any]] = {}
    for entry in _entries(optimizer, before, graph):
        new = entry.found(there, called)
        if new is None and renamed is None and not entry.dropped(graph):
            new = entry.parameter  # nothing that the graph reads
        moved[id(entry.parameter)] = new
        if new is not None and new is not entry.parameter:
            states[new] = entry.cut(new, graph, resize)
    added = [(called(bias), called(weight_of(bias))) for bias in (plan.biases if plan else ())]
    for group in optimizer.param_groups:
        _regroup(group, optimizer.state, moved, called)
        for bias, weight in added:
            if any(each is there.get(weight or "") for each in group["params"]):
                group["params"].append(there[str(bias)])
                group.get("param_names", []).append(bias)
    for new, state in states.items():
        new.grad = state.pop(_GRADIENT, new.grad)
        if state:
            optimizer.state[new] = state


def _regroup(
    group: dict[str, Any],
    state: dict[nn.Parameter, Any],
    moved: Mapping[int, nn.Parameter | None],
    called: Callable[[str], str | None],
) -> None:
    """Put the new parameters of a group in the places of the old ones."""
    olds: list[nn.Parameter] = group["params"]
    if "param_names" in group:  # of an optimizer that was made of named parameters
        named = zip(group["param_names"], olds, strict=True)
        group["param_names"] = [called(n) or n for n, old in named if moved[id(old)] is not None]
    for old in olds:
        if moved[id(old)] is not old:
            state.pop(old, None)
    group["params"][:] = [new for old in olds if (new := moved[id(old)]) is not None]


_GRADIENT = "fxprune_gradient"  # cut as if it were state


@dataclass(frozen=True, eq=False)
class _Entry:
    """A parameter that an optimiser has.

    Attributes:
        parameter: the parameter.
        names: all its names in the model.
        shape: its shape, also if its memory is free by now.
        state: what the optimiser knows of it.
        axes: of each tensor of that; empty for numbers.
    """

    parameter: nn.Parameter
    names: list[str]
    shape: tuple[int, ...]
    state: dict[str, Any]
    axes: dict[str, Axes]

    def __str__(self) -> str:
        return self.names[0]

    def found(
        self, there: Mapping[str, nn.Parameter], called: Callable[[str], str | None]
    ) -> nn.Parameter | None:
        """What stands in its place, if anything does.

        Raises:
            RewriteError: that are two.
        """
        names = map(called, self.names)
        found = {id(there[name]): there[name] for name in names if name and name in there}
        if len(found) > 1:
            raise RewriteError(f"{self} was one tensor and is two in the smaller model")
        return next(iter(found.values()), None)

    def dropped(self, graph: DependencyGraph | None) -> bool:
        """Whether it goes whole, with a branch or block."""
        return graph is not None and graph.traced.canonical(self.names[0]) in graph.traced.dropped

    def cut(
        self, new: nn.Parameter, graph: DependencyGraph | None, resize: Resizer | None
    ) -> dict[str, Any]:
        """The state for what stays of the parameter.

        Raises:
            RewriteError: the parameter that stays has another shape.
        """
        left = dict(self.state)
        layouts = None if graph is None else graph.layouts.get(graph.traced.canonical(str(self)))
        for key, axes in self.axes.items():
            value = left[key]
            for place, axis in enumerate(axes):
                if axis is None or layouts is None or resize is None:
                    continue
                if resize.changed(layouts[axis]):
                    kept = resize.index(layouts[axis]).to(value.device)
                    value = value.index_select(place, kept)
            expected = tuple(1 if axis is None else new.shape[axis] for axis in axes)
            if axes and tuple(value.shape) != expected:
                raise RewriteError(
                    f"the optimizer's {key!r} of {self} is cut to {tuple(value.shape)}, and the "
                    f"smaller parameter has {tuple(new.shape)}"
                )
            left[key] = value
        return left


def _bare(optimizer: Any) -> Any:
    """The optimiser itself, where something like accelerate's is around it."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
        raise RewriteError(
            f"optimizer= takes an optimizer of torch, not {type(optimizer).__name__}"
        )
    return optimizer


def _entries(optimizer: Any, model: nn.Module, graph: DependencyGraph | None) -> Iterator[_Entry]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in (each for group in optimizer.param_groups for each in group["params"]):
        if id(parameter) not in names:
            raise RewriteError(
                f"the optimizer holds a tensor of shape {tuple(parameter.shape)} that is no "
                f"parameter of {type(model).__name__}: make it of model.parameters()"
            )
        own, shape = names[id(parameter)], tuple(parameter.shape)
        if graph is not None and (known := graph.layouts.get(graph.traced.canonical(own[0]))):
            shape = tuple(layout.size for layout in known)
        state = dict(optimizer.state.get(parameter, {}))
        axes = {key: _axes(own[0], key, value, shape) for key, value in state.items()}
        if parameter.grad is not None:
            state[_GRADIENT], axes[_GRADIENT] = parameter.grad, tuple(range(len(shape)))
        yield _Entry(parameter, own, shape, state, axes)


def _axes(name: str, key: str, value: Any, shape: tuple[int, ...]) -> Axes:
    """Which axes of its parameter those of a value of the state are; none for a number.

    Raises:
        RewriteError: it cannot be told.
    """
    if not isinstance(value, torch.Tensor):
        if value is None or isinstance(value, bool | int | float | str):
            return ()
        raise RewriteError(
            f"the optimizer's {key!r} of {name} is a {type(value).__name__}, and how to cut it is "
            f"not known: {_MEND}"
        )
    given, every = tuple(value.shape), tuple(range(len(shape)))
    if not given:
        return ()
    if value.is_floating_point():  # a quantised one has scales elsewhere
        if given == shape:
            return every
        if len(given) == len(shape) and all(a in (1, b) for a, b in zip(given, shape, strict=True)):
            return tuple(axis if given[axis] == shape[axis] else None for axis in every)
        # Means over one axis, by their names: shapes do not tell those of a square matrix apart.
        for word, axes in (("row", every[:-1]), ("col", (*every[:-2], *every[-1:]))):
            if word in key and given == tuple(shape[axis] for axis in axes):
                return axes
    raise RewriteError(
        f"the optimizer's {key!r} of {name} is {value.dtype} of shape {given}, the parameter of "
        f"{shape}, and how to cut it is not known: {_MEND}"
    )
