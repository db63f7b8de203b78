"""Keep latency tables in the cache folder, one file for each model, machine and shape."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import CheckpointError, SelectionError
from fxprune.files import write_text, writing
from fxprune.groups.parameters import fingerprint
from fxprune.hf.open.cache import cache_dir
from fxprune.select.latency import LatencyCurve, LatencyTable
from fxprune.trace.inputs import device_of

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.trace import Traced


def key(graph: DependencyGraph, shape: tuple[int, int], groups: Sequence[str], sizes: int) -> str:
    """What tells one measurement from another: the computation, the machine, what is measured."""
    traced = graph.traced
    facts = (
        fingerprint(graph),
        traced.graph_module.code,
        sorted({str(p.dtype) for p in traced.module.parameters()}),
        machine(traced),
        torch.__version__,
        shape,
        list(groups),
        sizes,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def machine(traced: Traced) -> str:
    """The device that the model is on, in words."""
    device = device_of(traced.module)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def read(name: str) -> LatencyTable | None:
    """The table of this key, if it is there."""
    try:
        found: dict[str, Any] = json.loads(_file(name).read_text(encoding="utf-8"))
        curves = [
            LatencyCurve(**{field: tuple(values) for field, values in curve.items()})
            for curve in found.pop("curves")
        ]
        shape, removed = tuple(found.pop("shape")), tuple(found.pop("removed"))
        return LatencyTable(shape=shape, removed=removed, curves=tuple(curves), **found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # of an older version, or damaged: it is measured again


def write(name: str, table: LatencyTable) -> None:
    """Keep a table.

    Raises:
        SelectionError: the cache folder cannot be written.
    """
    file = _file(name)
    try:
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(table), indent=1) + "\n")
    except CheckpointError as error:
        raise SelectionError(
            f"the cache folder {file.parent} cannot be written ({error}): set FXPRUNE_CACHE to "
            "another, or measure with cache=False"
        ) from error


def _file(name: str) -> Path:
    return cache_dir() / f"latency-{name}.json"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
