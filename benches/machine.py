"""What the figures were taken on: versions, threads, GPU, beside what pytest-benchmark tells."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from fxprune.measure.latency_tables import processor

LIBRARIES = ("torch", "transformers", "peft", "torch-pruning")


def facts() -> dict[str, Any]:
    """What pytest-benchmark does not know, to be added to its ``machine_info``."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "gpu": gpu and {"name": gpu.name, "memory": gpu.total_memory},
    }


def info() -> dict[str, Any]:
    """``machine_info`` of pytest-benchmark, less of it where that is missing, and :func:`facts`."""
    try:
        from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info as known
    except ImportError:
        cpu = {"brand_raw": processor(), "flags": []}
        found = {"system": platform.system(), "machine": platform.machine(), "cpu": cpu}
        return {**found, "python_version": platform.python_version(), **facts()}
    return {**known(), **facts()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
