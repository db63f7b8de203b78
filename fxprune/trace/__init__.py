"""Stage 1: a model becomes a clean FX graph."""

from fxprune.trace.export import trace
from fxprune.trace.traced import Traced

__all__ = ["Traced", "trace"]
