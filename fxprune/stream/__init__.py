"""Scores layer by layer, each from what the already pruned layers before it give."""

from fxprune.stream.propagate import propagate

__all__ = ["propagate"]
