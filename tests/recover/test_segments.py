"""Gradient checkpointing of graphs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks

import fxprune
from fxprune.errors import RecoveryError
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.own import own
from fxprune.recover.segments import Segmented
from tests.recover.cases import IDS, curve, pruned, run


def kept(module: nn.Module, ids: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, other than parameters."""
    own = {p.data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        module(input_ids=ids).logits.sum()
    return sum(found.values())


@pytest.mark.parametrize("what", ["width", "both"])
def test_the_same_numbers_for_less_memory(what: str) -> None:
    graph = pruned("graph", what)
    own(graph)  # or the original would have the gradients too
    segmented = Segmented(graph, graph)
    for module in (graph, segmented):
        module.zero_grad()
        module(input_ids=IDS).logits.square().mean().backward()
        grads = [p.grad.clone() for p in graph.parameters()]
        if module is graph:
            expected = grads
    torch.testing.assert_close(grads, expected)
    assert kept(segmented, IDS) < 0.5 * kept(graph, IDS)


def test_every_layer_is_computed_twice() -> None:
    graph = pruned("graph")
    own(graph)
    calls: Counter[str] = Counter()
    for name, module in graph.named_modules():
        if name.endswith("up_proj"):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    Segmented(graph, graph)(input_ids=IDS).logits.sum().backward()
    assert len(calls) == 3
    assert set(calls.values()) == {2}


@pytest.mark.parametrize("kind", ["graph", "shrunk"])
@pytest.mark.parametrize("method", [LoRA(dropout=0.2), FullTraining()], ids=["lora", "full"])
def test_the_same_course(kind: str, method: Any) -> None:
    plain = run(pruned(kind), method, IDS)
    checkpointed = run(pruned(kind), method, IDS, gradient_checkpointing=True)
    torch.testing.assert_close(curve(plain), curve(checkpointed), rtol=1e-5, atol=0)
    assert isinstance(checkpointed.module, fx.GraphModule) == (kind == "graph")
    assert checkpointed.module.state_dict().keys() == plain.module.state_dict().keys()


def test_a_graph_without_layers_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(input_ids))

    ids = torch.arange(8).view(2, 4)
    traced = fxprune.trace(Flat(), kwargs={"input_ids": ids})
    assert isinstance(traced.graph_module, fx.GraphModule)
    with pytest.raises(RecoveryError, match="no layers in a list"):
        Segmented(traced.graph_module, traced.graph_module)
