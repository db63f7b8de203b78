"""What is told of a run in pieces is what it does."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

import fxprune
from fxprune.data.held import holding
from fxprune.data.loader import Loader
from fxprune.data.sweep import Sweep, inputs_of
from fxprune.errors import CalibrationError
from fxprune.stream.forecast import Forecast, forecast, shapes_of
from tests.compensate.test_streamed import IDS, Case

CONFIG = fxprune.PruneConfig(stream=True)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("deep")


def told(case: Case, needs: Any, data: Any = IDS, config: Any = CONFIG) -> Forecast:
    return forecast(fxprune.discover(case.blank), config, frozenset(needs), data, data)


def test_weights_and_streams_are_those_of_a_sweep(case: Case) -> None:
    found = told(case, {"inputs"})
    stage = next(each for each in found.stages if each.name == "scoring")
    alive, most = list[weakref.ref[torch.Tensor]](), [0]

    class Seen(fxprune.Weights):
        """Weights that say how many bytes of them are in memory."""

        def read(self, traced: fxprune.Traced, name: str) -> torch.Tensor:
            tensor = super().read(traced, name).clone()
            alive.append(weakref.ref(tensor))
            there = [each() for each in alive]
            most[0] = max(most[0], sum(t.nbytes for t in there if t is not None))
            return tensor

    source = Seen(case.model)
    inputs = inputs_of(case.blank, source, [{"input_ids": IDS[:4]}, {"input_ids": IDS[4:]}])
    with holding() as held:
        sweep = Sweep(Loader(found.pieces, source), inputs, held)
        sweep.forward(len(found.pieces))
    assert sweep.weights.bytes == stage.sweeps * found.sweep
    assert 0.5 * stage.weights < most[0] <= stage.weights
    assert 0.5 * stage.stream <= held.peak <= stage.stream


def test_what_each_stage_adds(case: Case) -> None:
    forward, back = told(case, {"inputs"}), told(case, {"inputs", "gradient"})
    first, second = (
        next(each for each in found.stages if each.name == "scoring") for found in (forward, back)
    )
    assert (first.sweeps, second.sweeps) == (1, 2)
    assert second.stream == first.stream // 2 * (len(back.pieces) + 1)
    assert second.beside > first.beside == 0
    assert second.activations > first.activations > 0
    assert back.read == forward.read + forward.sweep
    alone = fxprune.PruneConfig(stream=True, verify=False, compensation=None)
    names = [each.name for each in told(case, {"inputs"}, config=alone).stages]
    assert names == ["scoring", "saving"]
    more = told(case, {"inputs"}, torch.cat([IDS, IDS]))
    assert more.stream == 2 * forward.stream


def test_a_limit(case: Case) -> None:
    found = told(case, {"gradient"})
    assert found.memory(None) is None
    assert found.memory(found.fixed + 5) == 5
    with pytest.raises(CalibrationError, match=f"max_memory={found.fixed - 1} is below what"):
        found.memory(found.fixed - 1)


def test_shapes_of_data() -> None:
    batch = {"input_ids": IDS, "attention_mask": IDS}
    assert shapes_of(None) == []
    assert shapes_of(IDS) == shapes_of([IDS]) == shapes_of(batch) == [(8, 13)]
