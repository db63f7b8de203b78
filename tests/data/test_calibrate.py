"""Calibration data in every accepted form, and the refusals."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.data.calibrate import batches, held_out
from fxprune.errors import CalibrationError
from tests.toys import ToyLM

IDS = torch.arange(12).reshape(3, 4) % 11


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "data",
    [
        IDS,
        {"input_ids": IDS},
        UserDict(input_ids=IDS),
        [{"input_ids": IDS}],
        ({"input_ids": ids} for ids in [IDS]),
        [IDS],
    ],
    ids=["tensor", "dict", "mapping", "list", "generator", "tensors"],
)
def test_every_form_is_one_batch(data: Any) -> None:
    (batch,) = batches(ToyLM(), data)
    assert batch.keys() == {"input_ids"}
    assert torch.equal(batch["input_ids"], IDS)


def test_micro_batches() -> None:
    data = {"input_ids": IDS, "position_ids": torch.arange(4)[None], "flag": True}
    first, second = batches(ToyLM(), data, 2)
    assert torch.equal(first["input_ids"], IDS[:2])
    assert torch.equal(second["input_ids"], IDS[2:])
    for part in (first, second):
        assert part["position_ids"].shape == (1, 4)
        assert part["flag"] is True


def test_a_plain_module_reads_its_first_input() -> None:
    (batch,) = batches(Image(), torch.ones(2, 4))
    assert batch.keys() == {"x"}
    (batch,) = batches(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4))
    assert batch.keys() == {"input"}


@pytest.mark.parametrize("data", [[], {}, IDS[:0], [{}], iter(()), {"input_ids": IDS[:0]}])
def test_empty(data: Any) -> None:
    with pytest.raises(CalibrationError, match="the calibration data is empty"):
        batches(ToyLM(), data)


def test_too_short() -> None:
    with pytest.raises(CalibrationError, match="sequences of 1 tokens are too short: at least 2"):
        batches(ToyLM(), IDS[:, :1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IDS.float(), r"must be integers \(token ids\), not torch.float32"),
        (IDS[0], r"must have the shape \(N, L\), not \(4,\)"),
        ("some text", "calibration data cannot be str"),
        (3, "calibration data cannot be int"),
        (["some text"], "calibration data cannot be str"),
        ([{1, 2}], "calibration data cannot be set"),
        ([(IDS, IDS, IDS)], "a batch of 3 values, and ToyLM takes 1 inputs"),
    ],
)
def test_other_things(data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        batches(ToyLM(), data)


def test_batch_size_is_positive() -> None:
    with pytest.raises(CalibrationError, match="at least 1"):
        batches(ToyLM(), IDS, 0)


def test_the_last_examples_of_each_shape_are_held_out() -> None:
    short = torch.arange(3, 3 + 20 * 4).view(20, 4)
    data = batches(ToyLM(), [short[:8], torch.ones(9, 6).long(), short[8:]], batch_size=8)
    left, held = held_out(data, 8)
    assert [tuple(each["input_ids"].shape) for each in left] == [(8, 4), (8, 4), (2, 4), (8, 6)]
    assert [tuple(each["input_ids"].shape) for each in held] == [(2, 4), (1, 6)]
    assert torch.equal(held[0]["input_ids"], short[-2:])
    assert torch.equal(torch.cat([each["input_ids"] for each in left[:3]]), short[:-2])


def test_of_few_examples_one_or_none_is_held_out() -> None:
    data = batches(ToyLM(), [torch.ones(4, 6).long(), torch.ones(3, 5).long()])
    left, held = held_out(data, 8)
    assert [len(each["input_ids"]) for each in left] == [3, 3]
    assert [tuple(each["input_ids"].shape) for each in held] == [(1, 6)]


class Head(nn.Module):
    """Takes features by name, as the head of a detector does."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Linear(4, 8), nn.Linear(6, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, features: dict[str, Any]) -> torch.Tensor:
        hidden = self.near(features["near"]) + self.far(features["others"][0])
        return self.down(torch.relu(hidden))


def test_nested_inputs_are_split_and_held_out() -> None:
    given = ({"near": torch.arange(20.0).view(5, 4), "others": [torch.ones(5, 6)]}, torch.arange(5))
    found = batches(Head(), [given], batch_size=2)
    assert [each["labels"].tolist() for each in found] == [[0, 1], [2, 3], [4]]
    assert [each["features"]["near"][:, 0].tolist() for each in found] == [[0, 4], [8, 12], [16]]
    assert found[2]["features"]["others"][0].shape == (1, 6)
    left, held = held_out(batches(Head(), [given]), 4)
    assert [len(each[0]["features"]["near"]) for each in (left, held)] == [4, 1]
    with pytest.raises(CalibrationError, match="empty"):
        batches(Head(), [({"near": torch.zeros(0, 4), "others": [torch.zeros(0, 6)]},)])


def test_scores_on_nested_inputs_by_micro_batches() -> None:
    torch.manual_seed(0)
    model = Head().eval()
    data = [({"near": torch.randn(4, 4), "others": [torch.randn(4, 6)]}, torch.arange(4) % 3)]
    graph = fxprune.discover(fxprune.trace(model, data[0][:1]))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    for criterion in (fxprune.WandaSP(), fxprune.Taylor()):
        whole, micro = (
            fxprune.estimate(
                model, graph, criterion, data, loss_fn=loss, kinds=("channel",), batch_size=size
            )
            for size in (None, 2)
        )
        (name,) = whole
        assert torch.allclose(whole[name], micro[name], rtol=1e-5)
        assert whole[name].min() < whole[name].max()
