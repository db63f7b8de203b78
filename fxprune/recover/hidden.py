"""Hidden states of a student beside those of its teacher, matched unit by unit by the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import RecoveryError
from fxprune.hf.shrink.stacks import Names, at, shortened
from fxprune.plan import Plan
from fxprune.recover.methods import Distillation
from fxprune.rewrite.planned import planned
from fxprune.trace import trace


@dataclass(frozen=True, eq=False)
class Pair:
    """One normalisation in both models.

    Attributes:
        student: the module in the smaller model.
        teacher: the module in the original.
        kept: the units of the teacher's that the student has, int64; None for all.
    """

    student: nn.Module
    teacher: nn.Module
    kept: Tensor | None


@dataclass(eq=False)
class HiddenStates:
    """What enters the normalisations of both models: the residual stream, in a transformer.

    Attributes:
        pairs: the normalisations that both have.
    """

    pairs: list[Pair]
    _seen: dict[nn.Module, Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, distillation: Distillation, student: nn.Module) -> HiddenStates:
        """Match the normalisations of two models.

        Raises:
            RecoveryError: they have none in common.
            PlanError: the plan is not for the teacher.
        """
        teacher, plan = distillation.teacher, distillation.plan
        assert plan is not None
        same = isinstance(student, fx.GraphModule)
        names = Names(() if same else shortened(teacher, plan.removed))
        found: list[tuple[str, nn.Module, nn.Module]] = []
        for name, module in student.named_modules():
            other = at(teacher, names.original(name))
            if _is_normalisation(module) and other is not None:
                found.append((names.original(name), module, other))
        if not found:
            raise RecoveryError(
                f"{type(student).__name__} has no normalisation under a name of the teacher's: "
                "leave out the hidden states"
            )
        differ = [name for name, mine, other in found if _size(mine) != _size(other)]
        kept = _kept(teacher, plan, differ) if differ else {}
        return cls([Pair(mine, other, kept.get(name)) for name, mine, other in found])

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Keep what enters while both models run inside the block."""
        handles = [
            module.register_forward_pre_hook(self._keep)
            for pair in self.pairs
            for module in (pair.student, pair.teacher)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, counts: Tensor) -> Tensor:
        """Squared distance over the teacher's squares, the mean over normalisations.

        Call it after both models ran under :meth:`watch`; it forgets what was kept.

        Args:
            counts: which tokens count, boolean (rows, length).

        Raises:
            RecoveryError: no pair has the same shape.
        """
        losses = []
        for pair in self.pairs:
            mine, theirs = self._seen.pop(pair.student, None), self._seen.pop(pair.teacher, None)
            if mine is None or theirs is None:
                continue
            if pair.kept is not None:
                theirs = theirs.index_select(-1, pair.kept.to(theirs.device))
            # Queries and keys are normalised per head, of which the student may have fewer.
            if mine.shape != theirs.shape or mine.shape[:2] != counts.shape:
                continue
            mine, theirs = mine[counts].float(), theirs[counts].float()
            losses.append((mine - theirs).square().sum() / theirs.square().sum())
        self._seen.clear()
        if not losses:
            raise RecoveryError("no hidden state of the student has the teacher's shape")
        return torch.stack(losses).mean()

    def _keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._seen.setdefault(module, args[0])


def _is_normalisation(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(p.dim() == 1 for p in own)


def _size(module: nn.Module) -> int:
    return next(module.parameters()).shape[0]


def _kept(teacher: nn.Module, plan: Plan, names: list[str]) -> dict[str, Tensor]:
    """The units that stay of normalisations that lost some."""
    traced = trace(teacher)
    _, resizer = planned(traced, plan)
    found = {}
    for name in names:
        parameter = next(last for last, _ in teacher.get_submodule(name).named_parameters())
        (layout,) = resizer.inferred.tensors[traced.canonical(f"{name}.{parameter}")]
        found[name] = resizer.index(layout)
    return found
