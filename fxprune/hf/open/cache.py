"""The folder where models that were fetched or converted are kept, and what was measured once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import ModelError
from fxprune.hf.folder.folders import whole


def cache_dir() -> Path:
    """``FXPRUNE_CACHE`` if set, else ``fxprune`` in ``XDG_CACHE_HOME`` or in ``~/.cache``."""
    if override := os.environ.get("FXPRUNE_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fxprune"


@contextlib.contextmanager
def in_cache(target: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to fill in the cache, see :func:`fxprune.hf.folder.folders.whole`.

    Raises:
        ModelError: the cache cannot be written.
    """
    try:
        with whole(target, replace=replace) as made:
            yield made
    except OSError as error:
        raise ModelError(
            f"the cache folder {target.parent} cannot be written ({error.strerror or error}); "
            "set FXPRUNE_CACHE to one that can"
        ) from error
