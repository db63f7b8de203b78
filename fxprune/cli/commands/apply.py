"""``fxprune apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def apply_plan(
    plan: Annotated[Path, typer.Argument(help="File of a plan.", show_default=False)],
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder of safetensors, or smollm2.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    engine: Annotated[
        str | None, typer.Option("--for", help="Engine that must run the result, as in prune.")
    ] = None,
) -> None:
    """Prune a checkpoint by a plan, tensor by tensor: it need not fit into memory."""
    from fxprune.hf.folder.apply import apply
    from fxprune.hf.open.models import fetch
    from fxprune.plan import Plan

    read, folder = Plan.load(plan), fetch(source)
    if engine is not None:
        from fxprune.serve.saved import require

        require(engine, read, folder)
    apply(read, folder, target, progress=True)
    print(f"saved in {target}; open it with fxprune.load({str(target)!r}) or from_pretrained")
