"""Stage 5: scores and a budget become a plan."""

from fxprune.select.budget import Budget
from fxprune.select.depth import Depth
from fxprune.select.schedule import goals, schedule
from fxprune.select.select import select

__all__ = ["Budget", "Depth", "goals", "schedule", "select"]
