"""``fxprune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("fxprune-demo"),
    ratio: Annotated[str, typer.Option(help="Fraction of all parameters to remove.")] = "20%",
    eval_text: Annotated[Path | None, typer.Option(help="Text for perplexity.")] = None,
    recover_too: Annotated[
        bool, typer.Option("--recover", help="Retrain it for a few steps.")
    ] = False,
) -> None:
    """Prune a real language model (SmolLM2-135M, fetched once) and show the result."""
    from fxprune.cli.demo import demo as run_demo
    from fxprune.data.text import read

    evaluation = None if eval_text is None else read(eval_text)
    run_demo(out, ratio, evaluation=evaluation, recover=recover_too)
