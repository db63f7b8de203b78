"""``fxprune convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a pruned graph.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
) -> None:
    """Make a pruned graph a checkpoint of transformers."""
    from fxprune.hf.folder.convert import convert as run_convert

    run_convert(source, target)
    print(f"saved in {target}; open it with fxprune.load({str(target)!r}) or from_pretrained")
