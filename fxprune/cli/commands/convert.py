"""``fxprune convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a pruned model.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder or file to write.", show_default=False)],
    engine: Annotated[
        str, typer.Option("--for", help="Engine that is to run it, as in prune.")
    ] = "transformers-remote",
    like: Annotated[
        Path | None, typer.Option(help="For llama.cpp: a GGUF of the dense model.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="For llama.cpp: f32, f16, bf16 or q8_0.")
    ] = None,
) -> None:
    """Write a pruned model for an engine; by default as a checkpoint of transformers."""
    from fxprune.serve.saved import convert as run_convert

    given = {"like": like, "dtype": dtype}
    how = run_convert(source, target, engine, **{n: v for n, v in given.items() if v is not None})
    print(f"saved in {target}; {how}")
