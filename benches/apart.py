"""Run a function in a process of its own: for peak memory, and for what may never end."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Else glibc keeps freed blocks of up to 32 MiB for itself, and a peak is not one.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def run(function: str, *arguments: Any, seconds: float | None = None) -> Any:
    """Call a function in a fresh process.

    Args:
        function: ``module:name``.
        arguments: plain values, as JSON knows them.
        seconds: the time limit.

    Returns:
        What it returned, a plain value; None if it had not finished by then.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benches.apart", function]
    try:
        done = subprocess.run(
            [*command, json.dumps(arguments)],
            env={**os.environ, **MALLOC, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"{function}{arguments} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    found = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
