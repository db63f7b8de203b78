"""The tensors that a comparison feeds to its models, and the keys of its results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from fxprune.cli.compare.configuration import Configuration
from fxprune.cli.compare.data import Data
from fxprune.data import sources, text
from fxprune.errors import CalibrationError
from fxprune.hf.open.models import LoadedModel
from fxprune.measure.perplexity import Window
from fxprune.measure.perplexity import windows as cut
from fxprune.trace.digests import digest, model_digest

Draw = tuple[int, int, int]  # seed, crops, tokens in each


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
    loaded: LoadedModel, configurations: Sequence[Configuration], data: Data
) -> dict[Draw, torch.Tensor]:
    """Every draw of calibration crops that a configuration needs."""
    assert loaded.tokenizer is not None
    wanted = dict.fromkeys(each for c in configurations for each in (draw(c), more(c)))
    return {
        (seed, count, length): sources.draw(loaded.tokenizer, data.calibration, count, length, seed)
        for seed, count, length in wanted
    }


def draw(configuration: Configuration) -> Draw:
    """The draw that the criterion sees."""
    return configuration.seed, configuration.samples, configuration.length


def more(configuration: Configuration) -> Draw:
    """The draw that compensation sees; it begins with the criterion's."""
    count = configuration.compensation_samples or configuration.samples
    return configuration.seed, count, configuration.length


def keys(
    loaded: LoadedModel,
    configurations: Sequence[Configuration],
    columns: dict[str, list[Window]],
    crops: dict[Draw, torch.Tensor],
) -> dict[Configuration | None, str]:
    """What makes a result the same: the version, the weights, the data and the options."""
    from importlib.metadata import version

    measured = {name: torch.stack([each.ids for each in cut]) for name, cut in columns.items()}
    common = [version("fxprune"), model_digest(loaded.model), digest(measured)]
    of_draw = {each: digest({"crops": ids}) for each, ids in crops.items()}

    def key(*facts: object) -> str:
        return hashlib.sha256(json.dumps([*common, *facts]).encode()).hexdigest()[:32]

    keys: dict[Configuration | None, str] = {None: key("dense")}
    for each in configurations:
        seen = [of_draw[draw(each)], of_draw[more(each)]]
        keys[each] = key(dataclasses.asdict(each), seen)
    return keys
