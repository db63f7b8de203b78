"""Pruning in pieces on the command line: when, and what it will take."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fxprune.cli.commands.fields import as_options
from fxprune.errors import FxpruneError, ProcessError, RecoveryError

if TYPE_CHECKING:
    from fxprune.config import PruneConfig
    from fxprune.data.calibrate import Calibration
    from fxprune.data.text import Text
    from fxprune.hf.folder.weights import Weights
    from fxprune.hf.open.models import LoadedModel
    from fxprune.stream.forecast import Forecast
    from fxprune.trace import Traced

MIB = 2**20


def source(model: str, device: str, config: PruneConfig, recovers: bool) -> Weights | None:
    """Where the weights are read from while the model runs in pieces; None where it need not.

    Args:
        model: as it was typed.
        device: where it runs.
        config: whether it is to.
        recovers: whether the result is to be retrained at once.

    Raises:
        ProcessError: this is one of several processes.
        RecoveryError: it cannot be then.
        SelectionError: the configuration asks for what cannot be done so.
    """
    from fxprune.data import processes
    from fxprune.hf.folder.in_pieces import too_large
    from fxprune.hf.folder.weights import Weights

    if not (config.stream or too_large(model, device)):
        return None
    if processes.current() is not None:
        raise ProcessError(
            "a model runs in pieces in one process: start fxprune prune without a launcher"
        )
    if recovers:
        raise RecoveryError("--recover trains the result in memory: run fxprune recover afterwards")
    try:
        replace(config, stream=True)
    except FxpruneError as error:
        raise type(error)(as_options(str(error))) from error
    return Weights(model, device=device)


def foretell(model: str, config: PruneConfig, text: Text, device: str) -> None:
    """Print pieces, memory, bytes read and sweeps; where there are weights, the time as well.

    Args:
        model: as it was typed; a ``config.json`` will do.
        config: how it would be pruned.
        text: to calibrate on.
        device: where.

    Raises:
        FxpruneError: the model cannot be found, or not be pruned so.
    """
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from fxprune.data.draw import made_up
    from fxprune.groups.dependency import discover
    from fxprune.hf.folder.in_pieces import blank
    from fxprune.hf.open.architecture import is_causal_model
    from fxprune.importance.collect import DATA
    from fxprune.prune import draw_calibration, draws
    from fxprune.select.options import in_bytes
    from fxprune.stream.forecast import forecast
    from fxprune.trace import trace
    from fxprune.trace.inputs import from_config

    config = replace(config, stream=True, written_samples=0)
    weighs = resolve_kind(model) != "config"
    loaded = blank(model, weights=weighs)
    causal = is_causal_model(loaded.model)
    criterion = config.make_criterion(causal)
    if loaded.tokenizer is not None and causal:
        data, more = draw_calibration(loaded.model, config, criterion, text, loaded.tokenizer)
    else:
        data, more = (
            made_up(each.count, each.lengths) for each in draws(loaded.model, config, criterion)
        )
    traced = trace(loaded.model, (), from_config(loaded.model, torch.device("cpu")))
    needs = frozenset() if criterion is None else criterion.needs & DATA
    found = forecast(discover(traced), config, needs, data, more)
    found.memory(in_bytes(config.max_memory))
    console = Console()
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console.print(_pieces(found), **plain)
    head, *rows = found.rows()
    table = Table(*(Column(each, overflow="fold") for each in head))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in _summary(found, device):
        console.print(line, **plain)
    if weighs:
        seconds = _measured(loaded, traced, found, data, device, model)
        console.print(seconds, **plain)
    else:
        console.print("time: not told, for there are no weights here", **plain)


def resolve_kind(model: str) -> str:
    """Whether there are weights, by what was typed."""
    from pathlib import Path

    from fxprune.hf.folder import checkpoint
    from fxprune.hf.open.models import resolve

    if (Path(model).expanduser() / checkpoint.FACTS).is_file():
        return "folder"
    return resolve(model).kind


def _pieces(found: Forecast) -> str:
    names = [piece.name for piece in found.pieces]
    shown = names if len(names) <= 6 else [*names[:3], "...", *names[-2:]]
    return f"{len(names)} pieces, {found.weights / 2**30:.2f} GiB of weights: {', '.join(shown)}"


def _summary(found: Forecast, device: str) -> list[str]:
    host = "host" if device == "cpu" else "device"
    lines = [
        f"peak memory of the {host}: about {found.fixed / MIB:,.0f} MiB, and "
        f"{found.stream / MIB:,.0f} MiB between pieces"
    ]
    if device != "cpu":
        lines = [
            f"peak memory of the device: about {found.fixed / MIB:,.0f} MiB",
            f"peak memory of the host: about {found.stream / MIB:,.0f} MiB between pieces, "
            "or in files above --max-memory",
        ]
    sweeps = sum(stage.sweeps for stage in found.stages)
    return [*lines, f"read: {found.read / 2**30:.2f} GiB, in {sweeps} sweeps"]


def _measured(
    loaded: LoadedModel,
    traced: Traced,
    found: Forecast,
    data: Calibration | None,
    device: str,
    model: str,
) -> str:
    """Seconds of all sweeps, by those of the first two pieces on all batches."""
    from fxprune.data.calibrate import batches
    from fxprune.data.sweep import sweeping
    from fxprune.hf.folder.weights import Weights

    if data is None:
        return "time: not told, for nothing runs"
    source = Weights(model, device=device)
    try:
        given = batches(loaded.model, data, None, source.device)[:2]
        with sweeping(traced, source, given) as sweep:
            times = [time.perf_counter()]
            pieces = min(2, len(found.pieces))
            sweep.forward(pieces, done=lambda number: times.append(time.perf_counter()))
    except FxpruneError as error:
        return f"time: not told ({error})"
    each = (times[-1] - times[-2]) * len(batches(loaded.model, data)) / max(1, len(given))
    # Backward and the products of two models take about twice what forward does.
    factors = {"scoring": 3.0, "compensating": 4.0, "proving": 0.0, "saving": 0.0}
    passes = sum(factors.get(stage.name, 1.0) for stage in found.stages)
    seconds = each * len(found.pieces) * passes
    return f"time: about {seconds / 60:,.1f} min, by the first block ({each:.2f} s for all batches)"
