"""One run: a module made ready, trained by transformers' Trainer and put back together."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn
from transformers import EarlyStoppingCallback, TrainingArguments

from fxprune.data.loss import IGNORED
from fxprune.data.rows import collate
from fxprune.errors import FxpruneWarning, RecoveryError
from fxprune.hf.open.quiet import hushed, quiet
from fxprune.recover import adapters, rates, runs, sharded, teacher
from fxprune.recover.calls import LossFunction, taker
from fxprune.recover.data import Rows
from fxprune.recover.history import History
from fxprune.recover.methods import FullTraining, LoRA, Method
from fxprune.recover.own import cast_back, own, own_buffers, own_flags, own_weights
from fxprune.recover.reinitialise import reinitialise
from fxprune.recover.segments import Segmented, switch, switched_on
from fxprune.recover.settings import Training
from fxprune.recover.trainer import RecoveryTrainer
from fxprune.recover.watch import Watch
from fxprune.trace.modes import quick_products


class Loop:
    """A module made ready to be trained.

    Args:
        module: changed in place.
        method: what is trained.
        training: how.
        rows: on what.
        arguments: of Trainer.
        loss_fn: the loss of one batch, if the module is not a language model.
        collate_fn: makes a batch of examples.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Method,
        training: Training,
        rows: Rows,
        arguments: TrainingArguments,
        loss_fn: LossFunction | None = None,
        collate_fn: Callable[[list[Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._module, self._training, self._rows = module, training, rows
        self._arguments = arguments
        self._loss_fn, self._collate = loss_fn, collate_fn or collate
        if loss_fn is None:
            self._collate = functools.partial(_batch, self._collate)
        self._take = taker(module) if loss_fn is None else None
        self._teacher = teacher.make(method.distillation, module)
        self._dtypes: dict[str, torch.dtype] = {}
        self._adapted: Any = None
        if isinstance(method, LoRA):
            own_buffers(module)
            own_flags(module)
            own_weights(map(module.get_submodule, adapters.targets(module, method)))
            self._adapted = adapters.attach(module, method, training.seed)
        else:
            assert isinstance(method, FullTraining)
            self._dtypes = own(module)
            if method.reinitialise:
                reinitialise(module, training.seed)
        host: nn.Module = module if self._adapted is None else self._adapted
        self.trained = sum(p.numel() for p in host.parameters() if p.requires_grad)
        self._enabled = False  # gradient checkpointing in a transformers model
        try:
            self._host = self._checkpointed(host) if training.gradient_checkpointing else host
        except BaseException:
            self.abandon()
            raise
        self.step = 0

    def run(self, progress: bool) -> History:
        """Train, from the last checkpoint if there is one; the course of all steps.

        Raises:
            RecoveryError: the loss is not finite.
        """
        rows, arguments = self._rows, self._arguments
        watch = Watch(progress)
        patience = self._training.patience if rows.validation else None
        stop = [] if patience is None else [EarlyStoppingCallback(patience)]
        last = runs.last_checkpoint(Path(str(arguments.output_dir)))
        host, twin = self._host, None
        if sharded.is_sharded():
            teaching = self._teacher
            hidden = teaching is not None and teaching.hidden is not None
            host = twin = sharded.to_shard(self._module, hidden)
            if isinstance(self._host, Segmented):
                host = Segmented(twin, cast("fx.GraphModule", twin))
        arguments.eval_on_start = bool(rows.validation) and last is None
        with _silent(), quick_products():
            trainer = self._trainer(host, arguments, [watch, *stop])
            watch.trainer = trainer
            try:
                if last is None or not trainer.restore_finished(last):
                    trainer.train(resume_from_checkpoint=None if last is None else str(last))
                if twin is not None:
                    sharded.bring_back(twin, self._module)
            finally:
                watch.close()
                _own_forward(self._host)
        self.step = trainer.state.global_step
        if arguments.load_best_model_at_end and trainer.state.best_global_step:
            self.step = trainer.state.best_global_step
        history = History.of(trainer.state.log_history)
        _warn_if_worse(history)
        return history

    def find_rate(self, own: float, file: Path) -> dict[float, float]:
        """Take the learning rate that validates best after a few steps.

        Args:
            own: the method's own.
            file: where the losses of all are kept, see :func:`fxprune.recover.rates.find`.

        Returns:
            Those losses.
        """
        found = rates.find(own, self._after_a_few_steps, file)
        self._arguments.learning_rate = min(found, key=found.__getitem__)
        return found

    def _after_a_few_steps(self, rate: float) -> float:
        """The validation loss after a few steps with a rate; all values are then as before."""
        host, count = self._host, rates.steps(self._arguments.max_steps)
        values = [*host.buffers(), *(p for p in host.parameters() if p.requires_grad)]
        before = [value.detach().clone() for value in values]
        changed = {
            "learning_rate": rate, "max_steps": count, "eval_strategy": "no",
            "save_strategy": "no", "load_best_model_at_end": False,
            "warmup_steps": round(self._training.warmup * count),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, _silent(), quick_products():
            arguments = copy.copy(self._arguments)
            for name, value in {**changed, "output_dir": folder}.items():
                setattr(arguments, name, value)
            trainer = self._trainer(host, arguments, [])
            try:
                trainer.train()
                return trainer.evaluate()["eval_loss"]
            except RecoveryError:  # the loss was not finite
                return math.inf
            finally:
                _own_forward(host)
                with torch.no_grad():
                    for value, old in zip(values, before, strict=True):
                        value.copy_(old)
                        value.grad = None

    def _trainer(
        self, host: nn.Module, arguments: TrainingArguments, callbacks: list[Any]
    ) -> RecoveryTrainer:
        trainer = RecoveryTrainer(
            model=host,
            args=arguments,
            train_dataset=self._rows.training,
            eval_dataset=self._rows.validation or None,
            data_collator=self._collate,
            callbacks=callbacks,
            take=self._take,
            loss_fn=self._loss_fn,
            teacher=self._teacher,
        )
        _quieten(trainer)
        return trainer

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone, in PEFT's form, if there is one."""
        if self._adapted is not None:
            with quiet():
                self._adapted.save_pretrained(folder / runs.ADAPTER)

    def finish(self, merge: bool) -> nn.Module:
        """The trained module as it was given, or with its adapter apart."""
        self._restore()
        if self._adapted is None:
            return self._module
        return adapters.merge(self._adapted) if merge else self._adapted

    def abandon(self) -> None:
        """After a failure: the module as it was given, but for weights that were trained."""
        self._restore()
        if self._adapted is not None:
            self._adapted.unload()

    def _restore(self) -> None:
        cast_back(self._module, self._dtypes)
        if self._enabled:
            switch(self._module, "disable")()

    def _checkpointed(self, host: nn.Module) -> nn.Module:
        """The host with gradient checkpointing."""
        if isinstance(self._module, fx.GraphModule):
            return Segmented(host.to(self._arguments.device), self._module)
        before = switched_on(self._module)
        switch(self._module, "enable")({"use_reentrant": False})
        self._enabled = not before
        return host


def _batch(collate_fn: Callable[..., Any], rows: list[Any]) -> dict[str, torch.Tensor]:
    """Rows as a batch. The first token is not predicted, and not counted either."""
    made: dict[str, torch.Tensor] = collate_fn(rows)
    made["labels"][:, 0] = IGNORED
    return made


def _own_forward(module: nn.Module) -> None:
    """Take back the ``forward`` that accelerate has put before a module's own for autocast."""
    vars(module).pop("_is_accelerate_prepared", None)
    original = vars(module).pop("_original_forward", None)
    if original is not None:
        del module.forward
        if module.forward != original:  # the user had put another one there
            module.forward = original


def _quieten(trainer: RecoveryTrainer) -> None:
    """No second report on standard output beside our own."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers' advice out of the way; what we print ourselves stays."""
    with hushed(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def _warn_if_worse(history: History) -> None:
    """Say so where no evaluation is better than the one before training."""
    before = [each for each in history.evaluations if each.step == 0]
    best = history.best
    if before and best and best.loss >= before[0].loss:
        warnings.warn(
            f"recovery made the validation loss no better: {before[0].loss:.3f} before, "
            f"{best.loss:.3f} at best; try a lower learning rate, or more data",
            FxpruneWarning,
            stacklevel=4,
        )
