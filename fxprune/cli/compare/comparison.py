"""Runs the configurations of a comparison and keeps its folder up to date."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fxprune.cli.compare import draws, plot, results, table
from fxprune.cli.compare.data import Data
from fxprune.cli.compare.labels import label
from fxprune.cli.compare.measure import dense, measure, prepare, score, try_selections
from fxprune.cli.compare.results import Result
from fxprune.cli.compare.table import Row
from fxprune.config import PruneConfig
from fxprune.data.draw import Draw
from fxprune.errors import (
    CalibrationError,
    FxpruneError,
    FxpruneWarning,
    ModelError,
    SelectionError,
)
from fxprune.files import write_text, writing
from fxprune.hf.open.load import check_device, load, named_dtype
from fxprune.hf.open.models import LoadedModel
from fxprune.measure.perplexity import Window
from fxprune.progress import step


@dataclass(frozen=True, eq=False)
class Comparison:
    """A finished comparison.

    Attributes:
        rows: the table, the model as it was first.
        results: every draw.
        folder: where ``results.jsonl``, ``results.csv``, ``results.md`` and the plot are.
        measured: how many results are new; the others were there.
    """

    rows: list[Row]
    results: list[Result]
    folder: Path
    measured: int


def run(
    model: str,
    configurations: Sequence[PruneConfig],
    data: Data,
    folder: str | Path,
    *,
    lengths: Mapping[int, int | None],
    device: str = "cpu",
    dtype: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Prune one model in several ways and measure all of them on the same data.

    The model is loaded, traced and searched for groups once. All criteria that see the same draw of
    calibration crops are estimated in one pass. A result is written as soon as it is there; a run
    with the same settings, model and data takes it from there.

    Args:
        model: a folder, a name on the hub, or ``smollm2``.
        configurations: what to try.
        data: what to calibrate and to measure on.
        folder: where the results go.
        lengths: tokens in the windows that perplexity is measured on, each with the most windows
            per text, spread over it; None for all.
        device: where to compute.
        dtype: of the weights, see :func:`fxprune.hf.open.load.named_dtype`; None for the
            checkpoint's.
        progress: show the stages.

    Raises:
        FxpruneError: whatever a stage refuses; results that are there stay.
    """
    folder = Path(folder)
    configurations = list(dict.fromkeys(configurations))
    _check(configurations)
    results.check_folder(folder)
    check_device(device)
    named_dtype(dtype)
    done = results.load(folder)
    loaded = _loaded(model, lengths, device, dtype, progress)
    columns = draws.windows(loaded, data, lengths)
    with step("fingerprinting the model and the data", progress):
        plain = [replace(each, written_samples=0) for each in configurations]
        crops = draws.crops(loaded, plain, data, {})
        keys = draws.keys(loaded, configurations, columns, crops)
    wanted: list[PruneConfig | None] = [None, *configurations]
    missing = [each for each in wanted if keys[each] not in done]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    notes = _notes(loaded, data, columns)

    def keep(result: Result) -> None:
        results.add(folder, result)
        done[result.key] = result
        _write_tables(folder, [done[keys[c]] for c in wanted if keys[c] in done], notes)

    if missing:
        with step("drawing calibration data", progress):
            draws.crops(loaded, [each for each in missing if each is not None], data, crops)
        _measure_all(loaded, missing, keys, columns, crops, keep, progress)
    found = [done[keys[each]] for each in wanted]
    rows = _write_tables(folder, found, notes)
    if not plot.plot(rows, folder / plot.FILE):
        warnings.warn(
            "no plot: it needs matplotlib (pip install 'fxprune[plot]')",
            FxpruneWarning,
            stacklevel=2,
        )
    return Comparison(rows, found, folder, len(missing))


def _measure_all(
    loaded: LoadedModel,
    missing: Sequence[PruneConfig | None],
    keys: dict[PruneConfig | None, str],
    columns: dict[str, list[Window]],
    crops: dict[Draw, list[torch.Tensor]],
    keep: Callable[[Result], None],
    progress: bool,
) -> None:
    pending = [each for each in missing if each is not None]
    bench = prepare(loaded, columns, progress)
    # Impossible budgets and groups come to light before anything slow.
    try_selections(bench, pending)
    if None in missing:
        keep(dense(bench, keys[None]))
    by_draw: dict[Draw, list[PruneConfig]] = {}
    for each in pending:
        by_draw.setdefault(draws.both(loaded, each)[0], []).append(each)
    number = 0
    for draw, members in by_draw.items():
        scores = score(bench, members, crops[draw])
        for each in members:
            number += 1
            title = f"[{number}/{len(pending)}] {label(each)}, seed {each.seed}"
            try:
                _, mends = draws.both(loaded, each)
                seen = crops[draw], crops[mends]
                keep(measure(bench, each, scores, seen, keys[each], title))
            except FxpruneError as error:
                raise type(error)(f"{label(each)}, seed {each.seed}: {error}") from error


def _check(configurations: Sequence[PruneConfig]) -> None:
    """Refuse what a comparison does not do.

    Raises:
        SelectionError: a configuration asks for it.
    """
    if any(each.tokens for each in configurations):
        raise SelectionError(
            "vocabulary= changes what a token is, and configurations are compared by tokens: take "
            "fxprune prune, which measures by words"
        )
    for each in configurations:
        for name in ("depth", "stream", "max_memory"):
            if getattr(each, name):
                raise SelectionError(f"a comparison has no {name}=: take fxprune prune for that")


def _loaded(
    model: str,
    lengths: Mapping[int, int | None],
    device: str,
    dtype: str | None,
    progress: bool,
) -> LoadedModel:
    """The model, once its config promises what a comparison needs."""
    from fxprune.hf.open.architecture import is_causal, model_class
    from fxprune.hf.open.models import fetch, load_config

    config = load_config(model)
    if not is_causal(config):
        raise ModelError(
            f"{model_class(config).__name__} is not a causal language model; a comparison measures "
            "perplexity"
        )
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and max(lengths) > positions:
        raise CalibrationError(
            f"windows of {max(lengths)} tokens are too long: the model takes {positions}"
        )
    fetch(model)
    with step(f"loading {model}", progress):
        return load(model, device, named_dtype(dtype))


def _notes(loaded: LoadedModel, data: Data, columns: dict[str, list[Window]]) -> list[str]:
    kind = str(next(loaded.model.parameters()).dtype).removeprefix("torch.")
    measured = ", ".join(f"{name}: {len(cut)} windows" for name, cut in columns.items())
    return [
        f"model: {loaded.name}, {type(loaded.model).__name__}, {kind}",
        f"calibration: crops of {data.name}; draws are seeds 0, 1, ...",
        f"perplexity: mean over the draws (smallest to largest); {measured}",
        "seconds: estimate is one pass that all criteria of a draw share; compensate is the "
        "configuration's own",
    ]


def _write_tables(folder: Path, found: Sequence[Result], notes: Sequence[str]) -> list[Row]:
    rows = table.rows(found)
    write_text(folder / "results.csv", table.as_csv(rows))
    write_text(folder / "results.md", table.markdown(rows, notes))
    return rows
