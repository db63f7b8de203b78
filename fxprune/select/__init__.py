"""Stage 5: scores and a budget become a plan."""

from fxprune.select.select import select

__all__ = ["select"]
