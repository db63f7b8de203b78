"""transformers' Trainer for language models and graphs of them, with a teacher or without."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from fxprune.data.loss import IGNORED
from fxprune.errors import RecoveryError
from fxprune.recover import runs
from fxprune.recover.calls import Take, cross_entropy, next_token
from fxprune.recover.sharded import put, reshard, whole
from fxprune.recover.teacher import Teacher

TENSORS = "trained.safetensors"


class RecoveryTrainer(Trainer):
    """A Trainer that computes the loss of tokens itself, the same for every kind of module.

    Its checkpoints hold what training changes.

    Args:
        take: makes a module's inputs out of a batch.
        teacher: the teacher, if there is one.
        loss_fn: instead of all that, the loss of one batch.
        arguments: those of Trainer.
    """

    def __init__(
        self,
        *,
        take: Take | None,
        teacher: Teacher | None = None,
        loss_fn: Any = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._take, self._teacher, self._loss_fn = take, teacher, loss_fn
        # The loss below is over all tokens of a step; a user's own is a mean of one batch.
        self.model_accepts_loss_kwargs = loss_fn is None
        self.tokens, self.started = 0, time.perf_counter()
        if teacher is not None:
            teacher.to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; of the evaluation data without the teacher."""
        if self._take is None:
            loss = self._loss_fn(model, inputs)
            return (loss, {}) if return_outputs else loss
        if self._teacher is None or not model.training:
            predicted, labels = next_token(model(**self._take(inputs)), inputs["labels"], model)
            count = num_items_in_batch if model.training else None
            loss = cross_entropy(predicted, labels, count)
        else:
            assert num_items_in_batch is not None
            loss = self._taught(model, self._teacher, inputs, num_items_in_batch)
        if model.training:
            # The gradients of all processes are averaged, and each has divided by all tokens.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _taught(
        self, model: nn.Module, teacher: Teacher, inputs: dict[str, Any], count: Tensor | int
    ) -> Tensor:
        assert self._take is not None
        with teacher.watch():
            predicted, labels = next_token(model(**self._take(inputs)), inputs["labels"], model)
            expected = teacher.predict(inputs)
        loss = teacher.loss(predicted, expected, labels, count)
        if teacher.hidden is not None:
            counts = inputs["labels"] != IGNORED
            # A mean over tokens already; this batch's share of the step's.
            share = torch.count_nonzero(labels != IGNORED) / count
            hidden = teacher.hidden.loss(counts)
            loss = loss + teacher.distillation.hidden * share * hidden
        return loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """The precision of the run, for the teacher and for evaluation too.

        Trainer leaves that to accelerate, which changes the trained model's ``forward`` alone.
        """
        return self.accelerator.autocast()

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One forward and backward pass.

        Raises:
            RecoveryError: the loss is not finite; the weights are those before the step.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise RecoveryError(
                self._broken(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
            )
        if num_items_in_batch is None:
            self.tokens += _examples(inputs) * self.accelerator.num_processes
        else:
            self.tokens = int(num_items_in_batch)
        return loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss per predicted token of the evaluation data, the same in any number of processes.

        Trainer's own is a mean of batches, and fills the last ones up with rows that it has seen.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        model, size = self.model_wrapped, self.args.per_device_eval_batch_size
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        total = torch.zeros(2, device=self.args.device)
        model.eval()
        for first in range(0, len(rows), size * processes):
            # All processes run as often, because what is sharded among them waits for all.
            start = first + own * size
            some = [rows[place] for place in range(start, min(start + size, len(rows)))]
            batch = self._prepare_inputs(self.data_collator(some or [rows[0]]))
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, batch)
            if some:
                weight = self._weight(batch)
                total += torch.stack([loss.float() * weight, weight.to(loss.device)])
        total = self.accelerator.reduce(total, "sum")
        metrics = {f"{metric_key_prefix}_loss": float(total[0] / total[1])}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _weight(self, batch: dict[str, Any]) -> Tensor:
        """How much the loss of a batch counts: its predicted tokens, or its examples."""
        if self._take is None:
            return torch.tensor(float(_examples(batch)))
        return torch.count_nonzero(batch["labels"][:, 1:] != IGNORED).float()

    def _broken(self, what: str) -> str:
        last = runs.last_checkpoint(Path(str(self.args.output_dir)))
        good = (
            "no checkpoint was written" if last is None else f"the last good checkpoint is {last}"
        )
        return (
            f"{what}; {good}. Try a lower learning rate, a longer warm-up, or float32 instead of "
            "float16"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the log of a step how many tokens it predicted, and in how many seconds.

        Raises:
            RecoveryError: the loss on the evaluation data is not finite; no checkpoint is written.
        """
        if "loss" in logs:
            logs |= {"tokens": self.tokens, "seconds": time.perf_counter() - self.started}
        super().log(logs, start_time)
        if not math.isfinite(measured := logs.get("eval_loss", 0.0)):
            step = self.state.global_step
            raise RecoveryError(
                self._broken(f"the loss on the validation data is {measured} after step {step}")
            )

    def restore_finished(self, checkpoint: Path) -> bool:
        """Take over the end of a run that was over when this checkpoint was written.

        Returns:
            Whether it was; else nothing is done.
        """
        state = TrainerState.load_from_json(str(checkpoint / runs.STATE))
        control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
        if state.global_step < self.args.max_steps and not control.get("should_training_stop"):
            return False
        self.state = state
        best = self.args.load_best_model_at_end and state.best_global_step
        folder = f"checkpoint-{state.best_global_step}" if best else checkpoint.name
        self._read(checkpoint.with_name(folder))
        return True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        found: dict[str, Tensor] = {}
        for name, tensor in self._trained().items():
            full = whole(tensor)
            if isinstance(tensor, nn.Parameter) and not torch.isfinite(full).all():
                step = self.state.global_step
                raise RecoveryError(self._broken(f"{name} is not finite after step {step}"))
            if self.args.should_save:  # all processes come here, one writes
                found[name] = full.cpu().contiguous() if state_dict is None else state_dict[name]
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(found, folder / TENSORS, metadata={"format": "pt"})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what training changes, of shards the whole."""
        if self.is_fsdp_enabled:
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self._read(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._read(Path(self.state.best_model_checkpoint))

    @torch.no_grad()
    def _read(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(folder / TENSORS)
        except (OSError, SafetensorError) as error:
            raise RecoveryError(
                f"{folder / TENSORS} cannot be read ({error}): remove that checkpoint"
            ) from error
        own = self._trained()
        if own.keys() != tensors.keys():
            raise RecoveryError(f"{folder / TENSORS} is of another module or method")
        for name, tensor in own.items():
            put(tensor, tensors[name])

    def _trained(self) -> dict[str, Tensor]:
        """What training changes: parameters with gradients, and buffers (running statistics)."""
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:
            reshard(model)
        trained: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        saved = model.state_dict().keys()
        return trained | {name: b for name, b in model.named_buffers() if name in saved}


def _examples(batch: dict[str, Any]) -> int:
    """How many examples are in a batch of a user's own."""
    return next((len(x) for x in batch.values() if isinstance(x, Tensor) and x.dim()), 0)
