"""Block influence and angular distance in one sweep over pieces are those of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune
from fxprune.depth import AngularDistance, BlockInfluence, choose_depth, score_units
from tests.compensate.test_streamed import IDS, Case


@pytest.mark.parametrize("criterion", [BlockInfluence(), AngularDistance()])
@pytest.mark.parametrize("unit", ["block", "branch"])
@pytest.mark.parametrize("name", ["tiny", "bloom"])
def test_as_in_memory(name: str, unit: str, criterion: Any) -> None:
    case = Case(name)
    mask = torch.ones_like(IDS)
    mask[1, 9:] = 0
    masked = {"input_ids": IDS, "attention_mask": mask}
    data = masked if "attention_mask" in case.traced.kwargs else IDS
    options: dict[str, Any] = {"units": unit, "batch_size": 3}
    known = score_units(case.traced, criterion, data, **options)
    source = fxprune.Weights(case.model, memory=0)
    found = score_units(case.blank, criterion, data, stream=source, **options)
    assert len(found) > 1
    assert dict(found) == dict(known)


@pytest.mark.parametrize("schedule", ["run", "greedy"])
def test_runs_of_blocks_and_one_after_the_other(schedule: str) -> None:
    case = Case("deep")
    depth = fxprune.Depth(remove=2, keep_first=0, keep_last=0, schedule=schedule)  # type: ignore[arg-type]
    known = choose_depth(case.traced, depth, AngularDistance(), IDS)
    source = fxprune.Weights(case.model)
    found = choose_depth(case.blank, depth, AngularDistance(), IDS, stream=source)
    assert (found.removed, found.at_removal) == (known.removed, known.at_removal)
    assert len(found.removed) == 2
