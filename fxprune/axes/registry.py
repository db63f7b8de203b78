"""The table of rules: which function says what an op does to axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.axes.context import Context
from fxprune.axes.dims import Axes
from fxprune.errors import RuleError

Rule = Callable[[Context, fx.Node], Axes | list[Axes]]

RULES: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the axis rule of one or more ops.

    The decorated function takes the :class:`~fxprune.axes.context.Context` and the FX node and
    returns the layout of each output axis (a list of such tuples for an op with several outputs).

    Args:
        targets: op overloads (``torch.ops.aten.add.Tensor``) or packets (``torch.ops.aten.add``,
            for all overloads).

    Raises:
        RuleError: an op has a rule already.
    """

    def register(rule: Rule) -> Rule:
        for target in targets:
            if target in RULES:
                raise RuleError(f"{target} has a rule already: {RULES[target].__name__}")
            RULES[target] = rule
        return rule

    return register


def find_rule(target: Any) -> Rule | None:
    """The rule of an op: its overload's, else its packet's, else what its tags imply."""
    if target in RULES:
        return RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet]
    if torch.Tag.pointwise in getattr(target, "tags", ()) and _gives_one_tensor(target):
        return RULES.get(torch.Tag.pointwise)
    return None


def _gives_one_tensor(target: Any) -> bool:
    return [str(value.type) for value in target._schema.returns] == ["Tensor"]
