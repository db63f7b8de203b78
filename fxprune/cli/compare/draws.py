"""The tensors that a comparison feeds to its models, and the keys of its results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fxprune.cli.compare.data import Data
from fxprune.config import PruneConfig
from fxprune.data import text
from fxprune.data.draw import Draw
from fxprune.errors import CalibrationError
from fxprune.hf.open.models import LoadedModel
from fxprune.measure.perplexity import Window
from fxprune.measure.perplexity import windows as cut
from fxprune.prune import draws
from fxprune.trace.digests import digest, model_digest


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
    loaded: LoadedModel,
    configurations: Sequence[PruneConfig],
    data: Data,
    known: dict[Draw, list[torch.Tensor]],
) -> dict[Draw, list[torch.Tensor]]:
    """Every draw of calibration data that a configuration needs, what the model writes with it.

    ``known`` holds what was drawn before, keeps what is drawn now, and is what is returned.
    """
    assert loaded.tokenizer is not None
    for config in configurations:
        for each in both(loaded, config):
            each.of(loaded.model, loaded.tokenizer, data.calibration, known)
    return known


def both(loaded: LoadedModel, config: PruneConfig) -> tuple[Draw, Draw]:
    """What the criterion sees, and what compensation sees."""
    return draws(loaded.model, config, config.make_criterion())


def keys(
    loaded: LoadedModel,
    configurations: Sequence[PruneConfig],
    columns: dict[str, list[Window]],
    crops: dict[Draw, list[torch.Tensor]],
) -> dict[PruneConfig | None, str]:
    """What makes a result the same: the version, the weights, the data and the options.

    Text that the model writes follows from those, so it is not written to know.
    """
    from importlib.metadata import version

    measured = {name: torch.stack([each.ids for each in cut]) for name, cut in columns.items()}
    common = [version("fxprune"), model_digest(loaded.model), digest(measured.items())]
    of_draw = {each: digest((str(n), x) for n, x in enumerate(ids)) for each, ids in crops.items()}

    def key(*facts: object) -> str:
        return hashlib.sha256(json.dumps([*common, *facts]).encode()).hexdigest()[:32]

    keys: dict[PruneConfig | None, str] = {None: key("dense")}
    for each in configurations:
        seen = [of_draw[replace(draw, written=0)] for draw in both(loaded, each)]
        keys[each] = key(each.to_dict(), seen)
    return keys
