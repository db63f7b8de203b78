"""``fxprune inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.options import check_parent

LOOKED_AT = "A local folder (a pruned one too), a hub name, a GGUF file, a config.json, or smollm2."


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=LOOKED_AT, show_default=False)],
    dot: Annotated[Path | None, typer.Option(help="Write a Graphviz picture here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all facts here.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with pictures here; of a pruned model before and after."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="For --html: scores that prune --save-scores wrote, for a heat map."),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead: why a group, or what a tensor or module belongs to, is coupled.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For --explain: only the path to this tensor or module."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Only this layer, group by group.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Group by group.")] = False,
    legal: Annotated[
        bool, typer.Option("--legal", help="Which sizes a config, devices and kernels can take.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option("--for", help="With --legal: what this engine can run, as well.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PRUNED",
            help="Instead: what this folder, pruned of MODEL or of the same original, lost.",
        ),
    ] = None,
) -> None:
    """Show what can be pruned and what cannot, and why. Needs no weights."""
    for file in (dot, json_file, html):
        check_parent(file)
    from fxprune.cli import inspect as command

    wanted = command.Wanted(
        dot, json_file, html, scores, explain, to, layer, every, legal, engine, against
    )
    wanted.check()
    command.inspect_spec(model, wanted)
