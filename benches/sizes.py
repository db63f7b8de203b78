"""How much the benches do, by the environment variable ``BENCH_SIZE``.

``quick`` sees in a minute or two that each runs to its end: sizes and rounds are too small for the
figures to mean anything, so limits are not asserted and ``benches.report`` refuses them. ``cpu``,
the default, suits a machine of few cores. ``full`` has every batch and as many rounds as published.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
SIZES = ("quick", "cpu", "full")
SIZE = os.environ.get("BENCH_SIZE", "cpu")
if SIZE not in SIZES:
    raise SystemExit(f"BENCH_SIZE={SIZE!r}: choose from {', '.join(SIZES)}")
QUICK = SIZE == "quick"


def pick(*, quick: T, cpu: T, full: T | None = None) -> T:
    """What belongs to the size; ``full`` is as ``cpu`` where it is left out."""
    chosen = {"quick": quick, "cpu": cpu, "full": cpu if full is None else full}[SIZE]
    return chosen
