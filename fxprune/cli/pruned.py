"""What every process does of ``fxprune prune``: draw the data, and prune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.config import PruneConfig
    from fxprune.data.text import Text
    from fxprune.hf.folder.weights import Weights
    from fxprune.hf.open.models import LoadedModel
    from fxprune.importance.scores import Scores
    from fxprune.result import PruneResult


def pruned(
    loaded: LoadedModel,
    config: PruneConfig,
    folder: Path,
    calibration: Text | None,
    scores: Scores | None,
    source: Weights | None = None,
    progress: bool = False,
) -> PruneResult:
    """Draw the data and prune. This is all that other processes than the first do.

    Args:
        loaded: see :func:`fxprune.cli.workflow.run`.
        config: likewise.
        folder: beside which a model in pieces keeps what was found.
        calibration: text for criteria that need some.
        scores: of an earlier run.
        source: the weights, of a model that runs in pieces.
        progress: show progress bars.
    """
    import torch

    from fxprune.prune import draw_calibration, prune
    from fxprune.rewrite.history import pruned_first
    from fxprune.trace.inputs import device_of, from_config

    model, tokenizer = loaded.model, loaded.tokenizer
    device = torch.device("cpu") if source is not None else device_of(model)
    if source is not None:
        config = replace(config, stream=True, written_samples=0)
    criterion = None if scores is not None else config.make_criterion(calibration is not None)
    data: Any = calibration
    more, drawn = None, config
    if not config.tokens:  # else what is drawn has to be of those that stay
        data, more = draw_calibration(model, config, criterion, calibration, tokenizer, progress)
        drawn = replace(config, written_samples=0)  # they are in the data
    return prune(
        model if source is None else source,
        kwargs=from_config(pruned_first(model), device),
        config=drawn,
        calibration=data,
        compensation_data=more,
        tokenizer=tokenizer,
        scores=scores,
        consume=source is None,
        progress=progress,
        state=None if source is None else folder.with_name(f".{folder.name}.pieces"),
    )
