"""The tensors that a comparison feeds to its models, and the keys of its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from fxprune.cli.compare.data import Data
from fxprune.config import PruneConfig
from fxprune.data import text
from fxprune.data.draw import lengths_for, mixed_crops, samples
from fxprune.errors import CalibrationError
from fxprune.hf.open.models import LoadedModel
from fxprune.measure.perplexity import Window
from fxprune.measure.perplexity import windows as cut
from fxprune.trace.digests import digest, model_digest

Draw = tuple[int, int, tuple[int, ...]]  # seed, crops, tokens in them


def windows(
    loaded: LoadedModel, data: Data, lengths: Mapping[int, int | None]
) -> dict[str, list[Window]]:
    """Windows to measure on, by column."""
    assert loaded.tokenizer is not None
    found = {}
    for name, each in data.evaluations.items():
        ids = text.joined(loaded.tokenizer, each)
        for length, limit in lengths.items():
            try:
                found[f"{name} @ {length}"] = cut(ids, length, limit=limit)
            except CalibrationError as error:
                raise CalibrationError(f"{name}: {error}") from error
    return found


def crops(
    loaded: LoadedModel, configurations: Sequence[PruneConfig], data: Data
) -> dict[Draw, list[torch.Tensor]]:
    """Every draw of calibration crops that a configuration needs."""
    assert loaded.tokenizer is not None
    wanted = dict.fromkeys(
        each for c in configurations for each in (draw(loaded, c), more(loaded, c))
    )
    return {
        (seed, count, lengths): mixed_crops(
            loaded.tokenizer, data.calibration, count, lengths, seed
        )
        for seed, count, lengths in wanted
    }


def draw(loaded: LoadedModel, config: PruneConfig) -> Draw:
    """The draw that the criterion sees."""
    criterion = config.make_criterion()
    covariances = criterion is not None and "moments" in criterion.needs
    lengths = lengths_for(loaded.model, config.calibration_lengths, covariances)
    return config.seed, samples(config.calibration_samples, covariances), lengths


def more(loaded: LoadedModel, config: PruneConfig) -> Draw:
    """The draw that compensation sees."""
    lengths = lengths_for(loaded.model, config.calibration_lengths, covariances=True)
    return config.seed, config.compensation_samples, lengths


def keys(
    loaded: LoadedModel,
    configurations: Sequence[PruneConfig],
    columns: dict[str, list[Window]],
    crops: dict[Draw, list[torch.Tensor]],
) -> dict[PruneConfig | None, str]:
    """What makes a result the same: the version, the weights, the data and the options."""
    from importlib.metadata import version

    measured = {name: torch.stack([each.ids for each in cut]) for name, cut in columns.items()}
    common = [version("fxprune"), model_digest(loaded.model), digest(measured)]
    of_draw = {each: digest({str(n): x for n, x in enumerate(ids)}) for each, ids in crops.items()}

    def key(*facts: object) -> str:
        return hashlib.sha256(json.dumps([*common, *facts]).encode()).hexdigest()[:32]

    keys: dict[PruneConfig | None, str] = {None: key("dense")}
    for each in configurations:
        seen = [of_draw[draw(loaded, each)], of_draw[more(loaded, each)]]
        keys[each] = key(each.to_dict(), seen)
    return keys
