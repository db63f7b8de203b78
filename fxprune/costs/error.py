"""What cannot be counted is refused."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class CostError(FxpruneError):
    """A cost that cannot be counted exactly, or not at the sizes asked for."""
