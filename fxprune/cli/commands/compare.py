"""``fxprune compare``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.commands.fields import named_as_typed, put, takes_config
from fxprune.cli.commands.options import Model
from fxprune.groups.kinds import DEFAULT_KINDS

# What all configurations of a table have in common.
COMMON = (
    "ignore", "only", "layers", "overrides", "max_ratio", "keep_first", "keep_last", "cost_aware",
    "multiple_of", "min_kept", "steps", "search", "branches", "compensation_scope",
    "compensation_samples", "effort",
)  # fmt: skip


@partial(takes_config, names=COMMON)
def compare(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the results; continued if begun.")],
    given: Mapping[str, Any],
    criteria: Annotated[
        str, typer.Option(help="Names with commas: taylor, flap, magnitude, ...")
    ] = "random,magnitude,taylor",
    ratios: Annotated[str, typer.Option(help="Fractions of all parameters to remove.")] = "0.2",
    text: Annotated[
        str | None,
        typer.Option(
            help="Calibration: text, .jsonl, token ids in .npy or .safetensors, datasets:NAME, or"
            " self: what the model writes. Without it, prose that comes with Python."
        ),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Text for perplexity, repeatable; else half of --text."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens in the windows for perplexity.")] = "128",
    windows: Annotated[
        str, typer.Option(help="Windows per text, one number or one per length; 0: all.")
    ] = "64",
    seeds: Annotated[int, typer.Option(help="Draws of calibration crops.")] = 1,
    samples: Annotated[
        str | None, typer.Option(help="Crops that criteria see.", show_default="10; 128 for obs")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            help="Tokens in a crop.", show_default="128; for obs and compensation also 1024"
        ),
    ] = None,
    ranking: Annotated[
        str | None, typer.Option(help="local, global, uniform.", show_default="global")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--for", help="Engines that must run the result; none: whatever the scores."),
    ] = None,
    normalise: Annotated[
        str | None, typer.Option(help="kind, group, standardise, none; else the criterion's own.")
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="One set of kinds, with commas; repeatable.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean, max, prod, last.")] = None,
    compensate: Annotated[
        str, typer.Option(help="none, bias, least-squares, blockwise; auto as in fxprune prune.")
    ] = "auto",
    written: Annotated[
        str | None,
        typer.Option(help="Short sequences that the model itself writes; else three a crop."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; else the checkpoint's.")
    ] = None,
) -> None:
    """Prune one model in many ways and compare perplexities: options with commas are a table."""
    from fxprune.cli.compare import compare as run_comparison

    with named_as_typed():
        done = run_comparison(
            model,
            criteria,
            ratios,
            text,
            evals or (),
            out=out,
            lengths=lengths,
            windows=windows,
            seeds=seeds,
            samples=samples,
            length=length,
            ranking=ranking,
            normalise=normalise,
            target=target,
            kinds=kinds or (",".join(DEFAULT_KINDS),),
            aggregate=aggregate,
            compensate=compensate,
            written=written,
            device=device,
            dtype=dtype,
            **put({}, given),
        )
    print((done.folder / "results.md").read_text(encoding="utf-8"), end="")
    print(f"{done.measured} of {len(done.results)} results are new; all files are in {done.folder}")
