"""Progress on standard error, so that what is printed stays clean.

On a terminal bars and spinners that disappear; elsewhere (a log) one line per step.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], description: str, show: bool = True) -> Iterator[T]:
    """Iterate with a progress bar."""
    return track_some(items, len(items), description, show)


def track_some(items: Iterable[T], total: int, description: str, show: bool = True) -> Iterator[T]:
    """Iterate with a progress bar over what is made on the way, ``total`` items of it."""
    if not show or not sys.stderr.isatty():
        with step(description, show):
            yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(file=sys.stderr)
    yield from rich_track(items, description, total=total, console=console, transient=True)


@contextlib.contextmanager
def step(description: str, show: bool = True) -> Iterator[None]:
    """Show that one long step runs."""
    if not show:
        yield
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(file=sys.stderr).status(description):
            yield
    else:
        print(f"{description} ...", file=sys.stderr, flush=True)
        yield
