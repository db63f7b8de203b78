"""Training one module changes no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.recover.methods import FullTraining, LoRA, Method
from fxprune.recover.own import as_found, cast_back, own, own_buffers, own_flags, own_weights
from tests.recover.cases import pruned, run


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x)
        return found


def test_tensors_are_copies_and_tied_ones_stay_tied() -> None:
    module = Tied()
    before = dict(module.state_dict(keep_vars=True))
    assert own(module) == {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert tensor is not before[name], name
        assert tensor.data_ptr() != before[name].data_ptr(), name
        assert torch.equal(tensor, before[name]), name
    assert module.head.weight is module.table.weight


def test_frozen_parameters_can_be_trained_then() -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    own(module)
    assert all(p.requires_grad for p in module.parameters())


def test_half_precision_is_trained_in_full_and_comes_back() -> None:
    module = Tied().to(torch.bfloat16)
    values = {name: p.clone() for name, p in module.named_parameters()}
    dtypes = own(module)
    assert dtypes.keys() == values.keys()
    assert all(p.dtype == torch.float32 for p in module.parameters())
    cast_back(module, dtypes)
    assert all(torch.equal(p, values[name]) for name, p in module.named_parameters())
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())
    assert module.head.weight is module.table.weight


def test_weights_of_single_layers() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False).requires_grad_(False)
    before = [first.weight, first.bias, second.weight]
    own_weights([first, second])
    for old, new in zip(before, (first.weight, first.bias, second.weight), strict=True):
        assert old is not new
        assert torch.equal(old, new)
        assert old.requires_grad == new.requires_grad


def test_buffers_of_its_own() -> None:
    module = Tied()
    before = dict(module.named_buffers())
    own_buffers(module)
    module.train()(torch.randn(4, 3))
    assert all(not torch.equal(b, before[name]) for name, b in module.named_buffers())
    assert torch.equal(before["norm.running_var"], torch.ones(3))


def test_flags_of_its_own() -> None:
    """The values stay shared: freezing copies nothing."""
    module = Tied()
    module.norm.bias.requires_grad_(False)
    before = dict(module.named_parameters())
    own_flags(module)
    assert module.head.weight is module.table.weight
    assert not module.norm.bias.requires_grad
    module.requires_grad_(False)
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == before[name].data_ptr()
        assert before[name].requires_grad == (name != "norm.bias")


@pytest.mark.parametrize("method", [LoRA(rank=1), FullTraining()], ids=["lora", "full"])
def test_a_trained_model_still_generates_with_a_cache(method: Method) -> None:
    small = pruned("shrunk")
    assert small.config.use_cache
    assert run(small, method, steps=1).module.config.use_cache


def test_flags_and_mode_are_put_back() -> None:
    module = Tied().eval()
    module.norm.requires_grad_(False)
    with as_found(module):
        module.train().requires_grad_(True)
        module.table.weight.grad = torch.ones(5, 3)
    assert not module.training
    assert not module.norm.training
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == [
        "norm.weight",
        "norm.bias",
    ]
    assert module.table.weight.grad is None


def test_modes_may_be_mixed() -> None:
    module = Tied().train()
    module.norm.eval()
    with as_found(module):
        module.train()
    assert module.training
    assert module.head.training
    assert not module.norm.training


def test_adapters_that_stay_keep_all_else_frozen() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with as_found(module):
        module.requires_grad_(False)
        module.append(nn.Linear(2, 2))
    assert [p.requires_grad for p in module.parameters()] == [False] * 4 + [True] * 2
