"""Pruning while a model is trained, part by part, for loops written by hand."""

from __future__ import annotations

from collections import deque
from dataclasses import fields
from typing import Any

from torch import nn

from fxprune.config import PruneConfig
from fxprune.errors import SelectionError
from fxprune.groups.dependency import discover
from fxprune.plan import Plan
from fxprune.prune import prune
from fxprune.result import PruneResult
from fxprune.rewrite.compose import together, whole
from fxprune.rewrite.history import history_of, without_weights
from fxprune.select.schedule import Gradual
from fxprune.trace import Traced

# Fields of a configuration that are of one pruning alone, and options that are settled here.
_ONCE = ("pruning_ratio", "budget", "depth", "steps", "branches", "stream")
_NOT = ("scores", "consume", "share", "calibration", "compensation_data")


class GradualPruner:
    """Prunes a model that is being trained, after the steps that a schedule names.

    Scores are estimated anew each time, on the batches that were trained on last, and so is what
    compensation is fitted to. The optimiser goes on with what stays, see :func:`fxprune.prune`.

    Args:
        model: the model as it is before the first of them. Once something went, it and what
            :meth:`after` gives share tensors, and only the latter is to be used.
        optimizer: that trains it; None for none.
        schedule: how much is to be gone after which steps.
        config: how to prune, but for the ratio.
        batches: how many of the last batches are kept to score with.
        args: example positional inputs, if the model needs some to be traced, see
            :func:`fxprune.trace`.
        kwargs: example keyword inputs.
        options: further options of :func:`fxprune.prune`, such as ``loss_fn``, and fields of
            :class:`fxprune.PruneConfig`.

    Attributes:
        model: as it is by now.
        plans: of each pruning so far, in terms of the model that it was given.

    Raises:
        SelectionError: an option is not for pruning part by part.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        schedule: Gradual,
        *,
        config: PruneConfig | None = None,
        batches: int = 8,
        args: Any = (),
        kwargs: Any = None,
        **options: Any,
    ) -> None:
        known = {each.name for each in fields(PruneConfig)}
        own = PruneConfig.of(config, **{k: v for k, v in options.items() if k in known})
        said = [name for name in _ONCE if getattr(own, name) != getattr(PruneConfig(), name)]
        if said := [*said, *(name for name in options if name in _NOT)]:
            raise SelectionError(f"{said[0]}= is not for pruning while training: leave it out")
        if batches < 1:
            raise SelectionError(f"batches={batches}: at least 1, to score with")
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.plans: list[Plan] = []
        self._config, self._options = config, options
        self._example = {"args": args, "kwargs": kwargs}
        self._seen: deque[Any] = deque(maxlen=batches)
        self._first: Traced | None = None

    def see(self, batch: Any) -> None:
        """Keep a batch to score with, as :func:`fxprune.estimate` takes it."""
        self._seen.append(batch)

    def after(self, step: int, batch: Any = None) -> nn.Module:
        """Prune, if something is to go after this step.

        Call it when the optimiser has made the step and the gradients are zero again.

        Args:
            step: how many steps of training are done.
            batch: what was trained on, to be kept; None if :meth:`see` got it.

        Returns:
            The model to go on with: the same one if nothing went, else a smaller one, of the same
            class where a transformers config can say the sizes, or a GraphModule.

        Raises:
            FxpruneError: what :func:`fxprune.prune` refuses. The model and the optimiser are then
                as they were.
        """
        if batch is not None:
            self.see(batch)
        ratio = self.schedule.steps.get(step)
        if ratio is not None and (result := self.prune(float(ratio))) is not None:
            self.model = result.model
        return self.model

    def prune(self, ratio: float) -> PruneResult | None:
        """Prune until this fraction of the original is gone; None if it is already."""
        left = (
            self.plans[-1].parameters_after / self.plans[0].parameters_before if self.plans else 1
        )
        more = 1 - (1 - ratio) / left
        if more <= 0:
            return None
        result = prune(
            self.model,
            config=self._config,
            pruning_ratio=more,
            calibration=list(self._seen) or None,
            optimizer=self.optimizer,
            share=True,
            **self._example,
            **self._options,
        )
        if self._first is None:
            self._first = without_weights(result.traced)
            self._example = {"args": result.traced.args, "kwargs": result.traced.kwargs}
        self.plans.append(result.plan)
        return result

    @property
    def plan(self) -> Plan:
        """What is left of the original, as one plan for it.

        Raises:
            SelectionError: nothing went yet.
            PlanError: what is left cannot be said in units of the original's groups.
        """
        if self._first is None:
            raise SelectionError("nothing went yet, so there is no plan")
        known = history_of(self.model)
        if known is not None and len(known.steps) == len(self.plans):
            return whole(known)
        kept: dict[str, tuple[int, ...]] = {}
        for each in self.plans:
            kept = together(kept, each.kept)
        biases = {name for each in self.plans for name in each.biases}
        criterion = self.plans[-1].criterion
        return Plan.of(discover(self._first), kept, criterion=criterion, biases=biases)
