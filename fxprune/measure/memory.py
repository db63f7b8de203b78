"""The most memory that something takes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
CUDA = "allocated on the device at most, weights included (torch.cuda.max_memory_allocated)"
CPU = "growth of the resident set at most, weights not included (VmHWM of /proc/self/status)"


def meaning(device: torch.device) -> str:
    """What :func:`peak` counts on a device, in words."""
    return CUDA if device.type == "cuda" else CPU


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not tell."""
    return _status("VmRSS")


def peak(device: torch.device, call: Callable[[], T], before: int | None) -> tuple[T, int | None]:
    """Run something and see what memory it takes.

    Args:
        device: where it runs.
        call: what to run.
        before: :func:`resident` before anything of the kind ran; memory once taken may be kept, so
            it is not asked for again here. Only for the CPU.

    Returns:
        What ``call`` returned, and bytes as :func:`meaning` says; None where that cannot be told.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device)
    known = device.type == "cpu" and before is not None and _forget_peak()
    result = call()
    most = _status("VmHWM") if known else None
    return result, None if most is None or before is None else max(0, most - before)


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    kib = next(found, None)
    return None if kib is None else 1024 * kib
