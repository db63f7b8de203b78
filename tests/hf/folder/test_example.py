"""Example inputs survive JSON: names, shapes, dtypes, structure."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fxprune.errors import CheckpointError
from fxprune.hf.folder.example import describe, make


def test_round_trip() -> None:
    args = (torch.ones(2, 3), [torch.ones(4, dtype=torch.int32), None], (1, 2.5, "x", True))
    kwargs = {"a": {"b": torch.ones(2, dtype=torch.bool)}}
    described = json.loads(json.dumps(describe(args, kwargs)))
    again, named = make(described, nn.Linear(1, 1))
    assert again[0].shape == (2, 3)
    assert isinstance(again[1], list)
    assert again[1][0].dtype == torch.int32
    assert again[1][1] is None
    assert again[2] == (1, 2.5, "x", True)
    assert named["a"]["b"].dtype == torch.bool


def test_made_where_the_model_is() -> None:
    described = describe((torch.ones(2),), {})
    (tensor,), _ = make(described, nn.Linear(1, 1, device="meta"))
    assert tensor.is_meta
    (tensor,), _ = make(described, nn.ReLU())
    assert tensor.device.type == "cpu"


def test_what_json_cannot_hold() -> None:
    with pytest.raises(CheckpointError, match=r"example input args\[1\] is a slice"):
        describe((1, slice(3)), {})


@pytest.mark.parametrize(
    "damaged", [{}, {"args": [{"shape": [1], "dtype": "float99"}], "kwargs": {}}]
)
def test_damage(damaged: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="example inputs"):
        make(damaged, nn.ReLU())
