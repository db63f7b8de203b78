"""``fxprune recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fxprune.errors import RecoveryError
from fxprune.recover.methods import ALL_LINEAR, Distillation, LoRA
from fxprune.recover.settings import Training


def recover(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A pruned model's folder; also any folder, hub name, or smollm2.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="To train on: text, .jsonl or .json (in each row a text, messages, conversations,"
            " or Alpaca's instruction, input, output), or datasets:NAME; self: text that the"
            " teacher writes."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run: model, adapter, log, checkpoints; goes on if begun."),
    ],
    method: Annotated[str, typer.Option(help="lora, or full: all parameters.")] = "lora",
    teacher: Annotated[
        str | None, typer.Option(help="Learn from this model as well: the original, usually.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of teacher and student.")] = (
        Distillation.temperature
    ),
    teacher_weight: Annotated[float, typer.Option(help="How much of the loss it is.")] = (
        Distillation.weight
    ),
    hidden_weight: Annotated[float, typer.Option(help="Weight of the loss on hidden states.")] = (
        Distillation.hidden
    ),
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapters.")] = LoRA.rank,
    alpha: Annotated[float, typer.Option(help="Alpha of the LoRA adapters.")] = LoRA.alpha,
    dropout: Annotated[float, typer.Option(help="Dropout of the LoRA adapters.")] = LoRA.dropout,
    targets: Annotated[
        str, typer.Option(help="Layers that LoRA adapts: all-linear, or names with commas.")
    ] = ALL_LINEAR,
    reinitialise: Annotated[
        bool, typer.Option("--reinitialise", help="Full training from scratch, to compare.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", show_default="--epochs")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = Training.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Sequences per step, on all devices together.")
    ] = Training.batch_size,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Sequences per pass and device.", show_default="4 or less")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens in a sequence.")] = Training.length,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="The highest; find: try a few first, and take the one that validates best.",
            show_default="3e-4 for lora, else 1e-4",
        ),
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = (
        Training.schedule
    ),
    warmup: Annotated[float, typer.Option(help="Fraction of the steps.")] = Training.warmup,
    weight_decay: Annotated[
        float, typer.Option(help="Weight decay of AdamW.")
    ] = Training.weight_decay,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: bfloat16 on a GPU that has it.")
    ] = Training.precision,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints, with validation.", show_default="a tenth"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a better one.")
    ] = None,
    keep_best: Annotated[bool, typer.Option(help="End with the best evaluation's weights.")] = True,
    validation: Annotated[
        str, typer.Option(help="Fraction of the documents to validate on, or a file for that.")
    ] = "0.05",
    eval_text: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Text for perplexity before and after; repeatable."),
    ] = None,
    eval_samples: Annotated[int, typer.Option(help="Windows of 128 tokens per text.")] = 64,
    drop_overlap: Annotated[
        bool,
        typer.Option(help="Leave out, not refuse, training documents with text of --eval."),
    ] = False,
    bad_rows: Annotated[
        str, typer.Option(help="refuse, or skip: rows of --data that cannot be read.")
    ] = "refuse",
    train_on_prompt: Annotated[
        bool, typer.Option(help="Let instructions count too, not their responses alone.")
    ] = False,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Let the teacher answer the rows of --data anew.")
    ] = False,
    merge: Annotated[
        bool, typer.Option(help="Save the merged model, not LoRA's adapter alone.")
    ] = True,
    dtype: Annotated[
        str | None,
        typer.Option(help="Train in float32, bfloat16; the model is saved in its own."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, to leave a GPU alone.", show_default="a GPU if any")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data order, dropout and adapters.")] = 0,
) -> None:
    """Retrain a pruned model: LoRA or all parameters, from text or from a teacher.

    Many devices: accelerate launch -m fxprune recover ..., with the same options.
    """
    from rich.console import Console

    from fxprune.cli.recover import Teaching, named_method, recover_spec, validation_data
    from fxprune.data.text import read_all

    done = recover_spec(
        model,
        data,
        out,
        method=named_method(
            method,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets,
            reinitialise=reinitialise,
        ),
        teaching=Teaching(teacher, temperature, teacher_weight, hidden_weight),
        training=Training(
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            length=length,
            learning_rate=_rate_of(learning_rate),
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            evaluate_every=evaluate_every,
            patience=patience,
            keep_best=keep_best,
            seed=seed,
        ),
        evaluation=read_all(eval_text or ()),
        windows=eval_samples,
        dtype=dtype,
        device=device,
        merge=merge,
        validation=validation_data(validation),
        drop_overlap=drop_overlap,
        bad_rows=bad_rows,
        train_on_prompt=train_on_prompt,
        rewrite=rewrite,
    )
    if done is None:
        return
    console = Console()
    done.show(console)
    console.print(done.where(), markup=False, soft_wrap=True)


def _rate_of(given: str | None) -> float | Literal["find"] | None:
    if given is None or given == "find":
        return given  # type: ignore[return-value]
    try:
        return float(given)
    except ValueError:
        raise RecoveryError(f"--learning-rate {given!r}: a number, or find") from None
