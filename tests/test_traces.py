"""Copies of traces: as good as traces, and only of what was traced before."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import FxpruneWarning, TraceError
from tests.hf import tiny
from tests.marks import but_slow
from tests.models import ResidualConvNet
from tests.traces import Memory
from tests.zoo import BY_NAME

X = torch.randn(3, 6)


class Scaled(nn.Module):
    """Two layers, an input that is not a tensor, and a buffer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8, bias=bias), nn.Linear(8, 4)
        self.power = 1
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: torch.Tensor, plus: int = 0) -> torch.Tensor:
        return self.down(self.up(x).relu() * self.scale**self.power) + plus


class Long(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < 5:
            raise ValueError("short")
        return x.relu()


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(3, 2, 3)


@pytest.fixture
def memory() -> Memory:
    """One that counts what it traces."""

    def trace(model: nn.Module, args: Any, kwargs: Any, **options: Any) -> fxprune.Traced:
        made.count += 1  # type: ignore[attr-defined]
        return found(model, args, kwargs, **options)

    from tests.traces import MEMORY

    found, made = MEMORY.trace, Memory(trace)
    made.count = 0  # type: ignore[attr-defined]
    return made


def traced(memory: Any, model: nn.Module, args: Any = (X,), kwargs: Any = None) -> fxprune.Traced:
    result: fxprune.Traced = memory(model, args, {} if kwargs is None else kwargs, widen=True)
    return result


def first_input(found: fxprune.Traced) -> torch.Tensor:
    value: torch.Tensor = next(iter(found.graph_module.graph.nodes)).meta["val"]
    return value


def results(module: Any, inputs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = module(*inputs[0], **inputs[1])
    return [found if isinstance(found, torch.Tensor) else found.logits]


@pytest.mark.parametrize("name", but_slow(["llama", "t5", "resnet", "perceptron"], "t5", "resnet"))
def test_a_copy_is_a_trace_of_the_other_model(memory: Any, name: str) -> None:
    entry = BY_NAME[name]
    first, second = entry.build(entry.backends[-1]), entry.build(entry.backends[-1])
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    inputs, other = entry.example(), entry.example(3, 17)
    one, copied = (traced(memory, model, *inputs) for model in (first, second))
    assert memory.count == 1
    moved = traced(memory, second, *other)
    assert memory.count == 1
    fresh, there = (memory.trace(second, *each, widen=True) for each in (inputs, other))
    assert moved.graph_module.code == there.graph_module.code
    assert moved.guards == there.guards
    assert moved.sizes.shape(first_input(moved)) == there.sizes.shape(first_input(there))
    assert copied.graph_module.code == fresh.graph_module.code == one.graph_module.code
    assert copied.module is second
    assert copied.args is inputs[0]
    assert copied.kwargs is inputs[1]
    assert copied.guards == fresh.guards
    assert copied.aliases == fresh.aliases
    assert list(copied.tensors) == list(fresh.tensors)
    for fqn, tensor in fresh.tensors.items():
        assert torch.equal(copied.tensors[fqn], tensor)
        own = dict(second.named_parameters(remove_duplicate=False)).get(fqn)
        assert own is None or copied.tensors[fqn] is tensor is own
    for sizes in (inputs, other):
        assert all(
            torch.equal(*pair)
            for pair in zip(
                results(copied.graph_module, sizes), results(second, sizes), strict=True
            )
        )
    one_way, another = (
        [(g.name, g.size, *map(str, g.sites)) for g in fxprune.discover(each).groups]
        for each in (copied, fresh)
    )
    assert one_way == another


def test_copies_share_nothing(memory: Any) -> None:
    model = ResidualConvNet().eval()
    example = (torch.randn(2, 3, 16, 16),)
    one = traced(memory, model, example)
    two = traced(memory, copy.deepcopy(model), example)
    before = two.graph_module.code
    for traced_ in (one, two):
        assert {id(t) for t in traced_.tensors.values()} <= {
            id(t) for t in (*traced_.module.parameters(), *traced_.module.buffers())
        }
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    list(one.graph_module.graph.nodes)[-1].args = (None,)
    one.graph_module.recompile()
    three = traced(memory, copy.deepcopy(two.module), example)
    assert memory.count == 1
    assert two.graph_module.code == three.graph_module.code == before
    assert all(torch.equal(t, two.tensors[name]) for name, t in three.tensors.items())


def changed(change: Callable[[Any], Any]) -> nn.Module:
    model = Scaled().eval()
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (Scaled(bias=False).eval(), (X,)),
        (Scaled(), (X,)),
        (Scaled().eval().double(), (X.double(),)),
        (changed(lambda m: setattr(m, "power", 2)), (X,)),
        (changed(lambda m: m.scale.mul_(2)), (X,)),
        (changed(lambda m: m.up.weight.requires_grad_(False)), (X,)),
        (changed(lambda m: setattr(m.up, "bias", m.down.bias)), (X,)),
        (changed(lambda m: m.up.register_forward_hook(lambda *given: None)), (X,)),
        (Scaled().eval(), (X[:, None],)),
        (Scaled().eval(), (X, 2)),
        (Scaled().eval().to("meta"), (X.to("meta"),)),
        (torch.fx.symbolic_trace(Scaled().eval()), (X,)),
    ],
    ids=[
        "parameters", "mode", "dtype", "attribute", "buffer", "flag", "tied", "hook", "shape",
        "number", "device", "graph",
    ],
)  # fmt: skip
def test_what_differs_is_traced(memory: Any, model: nn.Module, args: Any) -> None:
    traced(memory, Scaled().eval())
    with contextlib.suppress(fxprune.FxpruneError):  # a bias of four units for eight
        traced(memory, model, args)
    assert memory.count == 2


def test_sizes_that_the_graph_refuses_are_traced(memory: Any) -> None:
    for rows in (5, 7):
        found = traced(memory, Long(), (torch.ones(rows, 6),))
        assert list(found.guards.example.values()) == [rows, 6]
    assert memory.count == 1
    with pytest.raises(TraceError, match="short"):
        traced(memory, Long(), (torch.ones(4, 6),))
    assert memory.count == 2


def test_where_a_model_comes_from_makes_no_difference(memory: Any, tmp_path: Path) -> None:
    model, example = tiny.llama(), BY_NAME["llama"].example()
    model.save_pretrained(tmp_path)
    other: Any = type(model).from_pretrained(tmp_path).eval()
    for each in (model, other):
        traced(memory, each, *example)
    assert memory.count == 1
    other.config._attn_implementation = "eager"
    traced(memory, other, *example)
    assert memory.count == 2


def test_values_of_inputs_are_looked_at_again(memory: Any) -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    traced(memory, model, (ids,))
    with pytest.raises(fxprune.FxpruneError, match="holds the token 7"):
        traced(memory, model, (ids + 1,))


def test_warnings_come_again(memory: Any) -> None:
    for _ in range(2):
        with pytest.warns(FxpruneWarning, match="is fixed at"):
            traced(memory, Fixed())
    assert memory.count == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", FxpruneWarning)
        with pytest.raises(FxpruneWarning, match="is fixed at"):
            traced(memory, Fixed())


def test_nothing_is_remembered_when_off(memory: Any) -> None:
    memory.on = False
    traced(memory, Scaled().eval())
    traced(memory, Scaled().eval())
    assert memory.count == 2
