"""Weights as before any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune.errors import RecoveryError
from fxprune.recover.methods import FullTraining
from fxprune.recover.own import own
from fxprune.recover.reinitialise import reinitialise
from tests.hf import tiny
from tests.recover.cases import IDS, case, pruned, run, state_of


def fresh(what: str) -> Any:
    """A shrunk model with all tensors its own: what is made new here shall be nobody else's."""
    small = pruned("shrunk", what)
    own(small)
    return small


def test_a_model_of_transformers_is_as_new() -> None:
    model, _ = case()
    small = fresh("both")
    before = state_of(small)
    reinitialise(small, seed=3)
    for name, tensor in small.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
    up = small.model.layers[0].mlp.up_proj.weight
    assert abs(float(up.detach().std()) - model.config.initializer_range) < 0.003
    again = fresh("both")
    reinitialise(again, seed=3)
    assert torch.equal(
        again.model.layers[1].mlp.up_proj.weight, small.model.layers[1].mlp.up_proj.weight
    )
    reinitialise(again, seed=4)
    assert not torch.equal(again.model.layers[0].mlp.up_proj.weight, up)


def test_tied_weights_stay_tied() -> None:
    model = tiny.llama()
    reinitialise(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_layers_of_torch() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[1].weight.data.fill_(7)
    module[1].running_mean.fill_(7)
    before = state_of(module)
    reinitialise(module, seed=5)
    assert torch.equal(module[1].weight, torch.ones(4))
    assert torch.equal(module[1].running_mean, torch.zeros(4))
    assert not torch.equal(module[0].weight, before["0.weight"])


def test_the_graph_of_a_transformers_model_is_refused_whole() -> None:
    graph = pruned("graph")
    before = state_of(graph)
    with pytest.raises(RecoveryError, match=r"no initialiser of its own.*fxprune\.shrink"):
        reinitialise(graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())


def test_training_from_scratch_forgets_the_weights_and_not_those_of_the_original() -> None:
    model, _ = case()
    before = state_of(model)
    done = run(pruned("shrunk"), FullTraining(reinitialise=True), IDS)
    other = run(pruned("shrunk"), FullTraining(), IDS)
    assert done.history.steps[0].loss != other.history.steps[0].loss
    new = fresh("width")
    reinitialise(new, seed=0)
    assert torch.equal(
        run(new, FullTraining(), IDS).module.lm_head.weight, done.module.lm_head.weight
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
