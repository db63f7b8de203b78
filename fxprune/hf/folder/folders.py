"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def taken(path: Path) -> bool:
    """Whether there is something other than an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


@contextlib.contextmanager
def whole(target: Path, *, replace: bool, within: Path | None = None) -> Iterator[Path]:
    """A new folder to fill, put in place as ``target`` when the block ends without an error.

    It is filled beside ``target``, in a temporary folder that is removed in any case.

    Args:
        target: the folder to make; its parents are made too.
        replace: what to do where ``target`` exists by then: replace it, or leave it and drop ours
            (another process was first).
        within: where that folder is made; beside ``target`` if left out.

    Yields:
        The folder to write into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", dir=within or target.parent
    ) as temporary:
        # One level down: a temporary folder is private to its user, this one is as any other.
        made, old = Path(temporary, "new"), Path(temporary, "old")
        made.mkdir()
        yield made
        # Some libraries write files that only their owner can read.
        readable = made.stat().st_mode & 0o666
        for file in made.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | readable)
        if replace and target.exists():
            os.rename(target, old)
        try:
            os.rename(made, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            if replace or not target.exists():
                raise
