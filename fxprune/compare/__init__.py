"""Pruning configurations side by side: one model, equal data, one table."""

from fxprune.compare.command import compare
from fxprune.compare.comparison import Comparison, run
from fxprune.compare.configuration import Configuration
from fxprune.compare.grids import grid

__all__ = ["Comparison", "Configuration", "compare", "grid", "run"]
