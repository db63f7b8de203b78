"""Residual branches of a traced model: found in its graph, and bypassed."""

from fxprune.branches.bypass import bypass
from fxprune.branches.find import Branches, find_branches
from fxprune.branches.unit import Unit

__all__ = ["Branches", "Unit", "bypass", "find_branches"]
