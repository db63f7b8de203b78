"""Pruning while transformers' Trainer trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxprune.config import PruneConfig
from fxprune.errors import RecoveryError
from fxprune.hf.open.architecture import is_transformers
from fxprune.recover.gradual import GradualPruner
from fxprune.recover.segments import switch, switched_on
from fxprune.result import PruneResult
from fxprune.select.schedule import Gradual


class PruningCallback(TrainerCallback):
    """Prunes the model of a Trainer after the steps that a schedule names.

    The model of the Trainer stays the same object, of the same class, and becomes smaller; the
    optimiser goes on with what stays, and so does the schedule of its learning rate. Checkpoints
    hold the model as it is by then. Scores are estimated on the batches that were trained on last.

    Args:
        schedule: how much is to be gone after which of the Trainer's steps.
        config: how to prune, but for the ratio.
        batches: how many of the last batches are kept to score with.
        options: see :class:`fxprune.recover.gradual.GradualPruner`.

    Attributes:
        pruner: what prunes; its ``plan`` leads from the original to what is left.
    """

    def __init__(
        self,
        schedule: Gradual,
        *,
        config: PruneConfig | None = None,
        batches: int = 8,
        **options: Any,
    ) -> None:
        self.schedule = schedule
        self.pruner: GradualPruner | None = None
        self._options = {"config": config, "batches": batches, **options}
        self._watch: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Begin to keep batches.

        Raises:
            RecoveryError: the run is one in which the model cannot be pruned.
        """
        model = given["model"]
        _check(args, state, model, self.schedule)
        self.pruner = GradualPruner(model, given["optimizer"], self.schedule, **self._options)
        self._keep_batches(model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Prune, if something is to go after this step.

        Raises:
            FxpruneError: what :func:`fxprune.prune` refuses.
        """
        ratio = self.schedule.steps.get(state.global_step)
        if ratio is None or self.pruner is None:
            return
        model = given["model"]
        self._watch.remove()
        with _plain(model, args.gradient_checkpointing_kwargs):
            result = self.pruner.prune(float(ratio))
            if result is not None:
                become(model, _stock(result, model))
        self._keep_batches(model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Keep no more batches."""
        if self._watch is not None:
            self._watch.remove()

    def _keep_batches(self, model: nn.Module) -> None:
        def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if module.training and self.pruner is not None:
                held = {n: x for n, x in kwargs.items() if isinstance(x, torch.Tensor) and x.dim()}
                self.pruner.see(held)

        self._watch = model.register_forward_pre_hook(keep, with_kwargs=True)


def become(model: nn.Module, small: nn.Module) -> None:
    """Let a model be a smaller one of its class, for all who hold it.

    Hooks on the model itself stay; those on modules inside go with these.

    Args:
        model: changed in place.
        small: what it is to be; not to be used any more.
    """
    hooks = {name: value for name, value in vars(model).items() if name.endswith(_HOOKS)}
    vars(model).clear()
    vars(model).update({**vars(small), **hooks})


_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def _stock(result: PruneResult, model: nn.Module) -> nn.Module:
    """The smaller model of the same class.

    Raises:
        RecoveryError: no config can say its sizes.
    """
    small = result.model
    if type(small) is not type(model):
        raise RecoveryError(
            f"what is left is no {type(model).__name__}, which the Trainer trains: choose sizes "
            "that its config can say, such as ranking='uniform', or write the loop by hand with "
            "fxprune.GradualPruner"
        )
    return small


@contextlib.contextmanager
def _plain(model: Any, checkpointing: Any) -> Iterator[None]:
    """A model without what accelerate and Trainer put around its forward pass."""
    names = [name for name in ("forward", "_original_forward") if name in vars(model)]
    wrapped = {name: vars(model).pop(name) for name in names}
    if checkpointed := switched_on(model):
        switch(model, "disable")()
    try:
        yield
    finally:
        vars(model).update(wrapped)
        if checkpointed:
            switch(model, "enable")(checkpointing)


def _check(
    args: TrainingArguments, state: TrainerState, model: nn.Module, schedule: Gradual
) -> None:
    """Refuse a run in which the model cannot become another.

    Raises:
        RecoveryError: says why.
    """
    if not is_transformers(model):
        raise RecoveryError(
            f"{type(model).__name__} is not a transformers model: merge adapters first, or write "
            "the loop by hand with fxprune.GradualPruner"
        )
    many = args.world_size > 1 or args.n_gpu > 1
    best = args.load_best_model_at_end
    refused = {
        "several devices": many,
        "FSDP": bool(args.fsdp),
        "DeepSpeed": bool(args.deepspeed),
        "torch_compile": bool(args.torch_compile),
        "load_best_model_at_end, whose weights may be of another size,": best,
    }
    if said := next((name for name, there in refused.items() if there), None):
        raise RecoveryError(f"a model cannot be pruned while it is trained with {said}")
    first, last = min(schedule.steps), max(schedule.steps)
    if state.global_step >= first:
        raise RecoveryError(
            f"the run goes on after step {state.global_step}, and what went from step {first} on "
            "is not known: train what was saved with a schedule of its own"
        )
    if last > state.max_steps:
        raise RecoveryError(f"the schedule ends after step {last}, the run after {state.max_steps}")
