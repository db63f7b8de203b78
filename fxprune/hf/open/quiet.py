"""Silence for libraries that write progress and advice to the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

_LOGGERS = ("transformers", "huggingface_hub", "gguf", "lm_eval", "datasets", "evaluate")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep these libraries from writing to the terminal; errors still raise.

    Their progress bars are made in many places and not all of them can be switched off, so standard
    error is put aside for the duration.
    """
    with hushed(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep the advice of their loggers back, and nothing else.

    Of those that are imported and not hushed yet: to set a level costs a walk over every logger.
    """
    known = [logging.getLogger(name) for name in _LOGGERS if name in sys.modules]
    loggers = [logger for logger in known if logger.level < logging.ERROR]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
