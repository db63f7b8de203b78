"""The options of a run as transformers' Trainer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fxprune.errors import RecoveryError
from fxprune.hf.open.quiet import quiet
from fxprune.recover.data import Rows
from fxprune.recover.settings import Training

if TYPE_CHECKING:
    from transformers import TrainingArguments

AUTOCAST = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def training_arguments(
    folder: Path, training: Training, rows: Rows, device: str | None = None
) -> TrainingArguments:
    """Make Trainer's arguments.

    Args:
        folder: for checkpoints.
        training: the options, with a learning rate.
        rows: what is trained and validated on.
        device: ``cpu`` to stay there.

    Raises:
        RecoveryError: the batch does not divide among the processes, or the device has not the
            precision.
    """
    from transformers import TrainingArguments

    steps = training.planned_steps(len(rows.training))
    every, _ = training.evaluations(len(rows.training), len(rows.validation))
    validates = bool(rows.validation)
    best = validates and (training.keep_best or training.patience is not None)
    assert isinstance(training.learning_rate, int | float)
    constant = training.schedule == "constant"
    with quiet():
        made = TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type="constant_with_warmup" if constant else training.schedule,
            warmup_steps=round(training.warmup * steps),
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            optim="adamw_torch",
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if validates else "no",
            eval_steps=every,
            save_steps=every,
            save_total_limit=training.checkpoints + best,
            load_best_model_at_end=validates and training.keep_best,
            metric_for_best_model="eval_loss" if best else None,
            greater_is_better=False if best else None,
            prediction_loss_only=True,
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            report_to=[],
            seed=training.seed,
            data_seed=training.seed,
            use_cpu=device == "cpu",
            restore_callback_states_from_checkpoint=True,
            ddp_find_unused_parameters=False,
        )
        made.dataloader_pin_memory = made.device.type == "cuda"
        made._n_gpu = min(1, made.n_gpu)  # many devices by many processes, not by DataParallel
    size = training.rows_at_once(made.world_size)
    made.per_device_train_batch_size = made.per_device_eval_batch_size = size
    made.gradient_accumulation_steps = training.batch_size // (size * made.world_size)
    _set_precision(made, training.precision)
    return made


def _set_precision(made: TrainingArguments, precision: str) -> None:
    """Autocast, where it is asked for or, on a GPU with bfloat16, nothing else is."""
    kind = made.device.type
    if precision == "auto":
        # What accelerate launch was told counts.
        own = kind == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bfloat16" if own and made.mixed_precision == "no" else "auto"
    if precision == "float16" and kind == "cpu":
        raise RecoveryError("float16 does not train on a CPU: take float32 or bfloat16")
    if precision in AUTOCAST:
        # TrainingArguments has made up its mind before it knows the device.
        made.mixed_precision = AUTOCAST[precision]
        made.bf16, made.fp16 = precision == "bfloat16", precision == "float16"
