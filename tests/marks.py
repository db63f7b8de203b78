"""Marks for some of several examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def but_slow(examples: Iterable[Any], *slow: Any) -> list[Any]:
    """All examples; some are run by hand, for what is hard about them is in the others too."""
    return [pytest.param(x, marks=pytest.mark.slow) if x in slow else x for x in examples]
