"""``fxprune eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.options import check_parent, numbers


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Local folders (save_pretrained or fxprune), hub names, GGUF files, or smollm2."
            " The first is what the others are compared with.",
            show_default=False,
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Text or .jsonl for perplexity; repeatable.")
    ] = None,
    domain: Annotated[
        str,
        typer.Option(
            metavar="FIELD",
            help="Measure the lines of each .jsonl apart by this field of theirs, such as source.",
            show_default=False,
        ),
    ] = "",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="32 windows and 16 continuations of each text, of Python's documentation if none"
            " is given. Needs no hub.",
        ),
    ] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of lm-eval with commas, repeatable: NAME, or NAME=FILE.jsonl to ask what"
            " is in a file, in the columns of the task."
        ),
    ] = None,
    length: Annotated[
        str, typer.Option(help="Tokens in a window, BOS included; several with commas.")
    ] = "128",
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the beginnings of windows; else they do not overlap."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows per text at most; 0: all.")] = 0,
    bos: Annotated[
        str,
        typer.Option(
            help="BOS at the head of every window: window, none; auto: if the tokenizer"
            " puts it before a text by itself."
        ),
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Only the first questions of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; else as the task says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per pass, for perplexity and tasks.")] = 4,
    generation: Annotated[
        bool, typer.Option(help="Measure latency, tokens/s and peak memory.")
    ] = True,
    batch_sizes: Annotated[str, typer.Option(help="Rows to time with, with commas.")] = "1",
    prompt: Annotated[int, typer.Option(help="Tokens in, to time.")] = 12,
    new: Annotated[int, typer.Option(help="Tokens out, to time.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds to take the median of.")] = 5,
    continuations: Annotated[
        int,
        typer.Option(
            help="Continue so many beginnings of each text, --prompt tokens in and --new out, and"
            " count what is repeated."
        ),
    ] = 0,
    table: Annotated[
        bool,
        typer.Option("--table", help="A column for each model; several always have one each."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all facts here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures here.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; else the checkpoint's.")
    ] = None,
) -> None:
    """Measure models: perplexity, zero-shot tasks, repetition, speed, memory, KV-cache."""
    for file in (json_file, markdown, html):
        check_parent(file)
    lengths = numbers("--length", length)
    rows = numbers("--batch-sizes", batch_sizes)
    from rich.console import Console

    from fxprune.cli.evaluate import evaluate_specs
    from fxprune.measure.settings import Settings

    measured = evaluate_specs(
        models,
        text or (),
        tasks or (),
        settings=Settings(
            lengths=lengths,
            stride=stride,
            windows=windows or None,
            bos=bos,
            limit=limit,
            batch_size=batch_size,
            generation=generation,
            batch_sizes=rows,
            prompt=prompt,
            new=new,
            rounds=rounds,
            continuations=continuations,
        ),
        quick=quick,
        domain=domain,
        num_fewshot=num_fewshot,
        device=device,
        dtype=dtype,
        table=table,
    )
    measured.write(json_file, markdown, html)
    measured.show(Console())
