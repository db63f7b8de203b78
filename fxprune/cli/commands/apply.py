"""``fxprune apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.errors import ServeError


def apply_plan(
    plan: Annotated[Path, typer.Argument(help="File of a plan.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder of safetensors, a .gguf file, or smollm2."),
    ],
    target: Annotated[Path, typer.Argument(help="Folder or file to write.", show_default=False)],
    engine: Annotated[
        str | None, typer.Option("--for", help="Engine that must run the result, as in prune.")
    ] = None,
) -> None:
    """Prune a checkpoint by a plan, tensor by tensor: it need not fit into memory."""
    from fxprune.hf.folder.apply import apply
    from fxprune.hf.open.models import fetch
    from fxprune.plan import Plan

    read = Plan.load(plan)
    if Path(source).suffix == ".gguf" and Path(source).is_file():
        from fxprune.serve.gguf.dense import cut

        if engine not in (None, "llama.cpp"):
            raise ServeError(
                f"{source} is a file of llama.cpp, and nothing is written for {engine}"
            )
        cut(read, source, target, progress=True)
        print(f"saved in {target}; run it with llama-cli -m {target}")
        return
    folder = fetch(source)
    if engine is not None:
        from fxprune.serve.saved import require

        require(engine, read, folder)
    apply(read, folder, target, progress=True)
    print(f"saved in {target}; open it with fxprune.load({str(target)!r}) or from_pretrained")
