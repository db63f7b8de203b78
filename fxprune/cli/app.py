"""The command line: ``fxprune inspect``, ``prune``, ``recover``, ``compare``, ``eval``, ``demo``.

Nothing heavy is imported here, so that ``--help`` and a mistyped option answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from fxprune.cli.commands import apply, compare, convert, demo, evaluate, inspect, prune, recover
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.files import why_not_written

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Structured pruning of language models and other networks.",
)
app.command("inspect")(inspect.inspect)
app.command("prune")(prune.prune)
app.command("apply")(apply.apply_plan)
app.command("convert")(convert.convert)
app.command("compare")(compare.compare)
app.command("recover")(recover.recover)
app.command("eval")(evaluate.evaluate)
app.command("demo")(demo.demo)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as one line; other libraries' are not for the user of a command."""
    if issubclass(category, FxpruneWarning) and os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; errors the user can mend are one line and exit status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except Exception as error:
            said = str(error) if isinstance(error, FxpruneError) else why_not_written(error)
            if not said:
                raise
            file = getattr(error, "filename", None)
            said = f"error: {file}: {said}" if file else f"error: {said}"
            if not _told(said):
                print(said, file=sys.stderr)
            sys.exit(2)


def _told(message: str) -> bool:
    """Whether this is one of many processes, and another says that already."""
    if "RANK" not in os.environ:
        return False
    from fxprune.data.processes import told

    return told(message)
