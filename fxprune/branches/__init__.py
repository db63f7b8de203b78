"""Residual branches of a traced model: found in its graph, bypassed, and run one at a time."""

from fxprune.branches.bypass import bypass
from fxprune.branches.find import Branches, find_branches
from fxprune.branches.pieces import Piece, Pieces, pieces_of
from fxprune.branches.unit import Unit

__all__ = ["Branches", "Piece", "Pieces", "Unit", "bypass", "find_branches", "pieces_of"]
