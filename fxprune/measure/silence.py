"""Silence for lm-eval and what it works with."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from fxprune.hf.open.quiet import quiet

_LOGGERS = ("lm_eval", "datasets", "evaluate")


@contextlib.contextmanager
def silent(bars: bool = False) -> Iterator[None]:
    """Keep lm-eval from writing to the terminal; errors still raise.

    Args:
        bars: let its progress bars through.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with contextlib.nullcontext() if bars else quiet():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
