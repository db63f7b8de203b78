"""Pruning configurations side by side: one model, equal data, one table."""

from fxprune.cli.compare.command import compare
from fxprune.cli.compare.comparison import Comparison, run
from fxprune.cli.compare.grids import grid

__all__ = ["Comparison", "compare", "grid", "run"]
