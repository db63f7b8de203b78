"""What pruning gives has tensors of its own, unless they are asked to be shared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune import PruneConfig
from fxprune.passes import ApplyPlan, Prune
from fxprune.rewrite.apart import set_apart
from fxprune.trace.attributes import get_attribute

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


class Net(nn.Module):
    """Tied tables, running statistics, a frozen layer, a constant and one layer to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.randn(6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.shift
        x = x + self.down(self.up(x).relu())
        x = self.norm(x.flatten(0, 1)).unflatten(0, ids.shape)
        return self.head(self.frozen(x) * torch.tensor([1.0, 2, 3, 4, 5, 6]))


IDS = torch.arange(24).remainder(9).view(4, 6)


def tensors(module: nn.Module) -> Iterator[Tensor]:
    for each in module.modules():
        for slot in (each._parameters, each._buffers, vars(each)):
            yield from (t for t in slot.values() if isinstance(t, Tensor))
    for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
        if node.op == "get_attr":
            yield get_attribute(module, str(node.target))


def memories(module: nn.Module) -> set[int]:
    return {t.untyped_storage()._cdata for t in tensors(module)}


def train(module: nn.Module, *args: Tensor) -> None:
    """As a user would, running statistics included."""
    module.train()
    steps = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        steps.zero_grad()
        output = module(*args)
        (output if isinstance(output, Tensor) else output.logits).square().sum().backward()
        steps.step()
    for buffer in module.buffers():
        buffer.zero_()


@pytest.mark.parametrize(
    "options",
    [{"pruning_ratio": 0.2}, {"pruning_ratio": 0.0}, {"pruning_ratio": 0.2, "steps": 2}],
    ids=str,
)
def test_training_the_result_leaves_the_original(options: dict[str, Any]) -> None:
    model = Net().eval()
    before, output = copy.deepcopy(model.state_dict()), model(IDS)
    result = fxprune.prune(model, (IDS,), criterion=fxprune.Magnitude(), kinds=("mlp",), **options)
    small = result.graph_module
    assert memories(small).isdisjoint(memories(model))
    assert small.head.weight is small.table.weight  # tied among themselves
    assert not small.frozen.weight.requires_grad
    train(small, IDS)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(IDS), output)


def test_sharing_is_to_be_had() -> None:
    model = Net().eval()
    options: dict[str, Any] = {"pruning_ratio": 0.2, "criterion": fxprune.Magnitude()}
    shared = fxprune.prune(model, (IDS,), kinds=("mlp",), share=True, **options).graph_module
    assert shared.table.weight is model.table.weight
    traced = fxprune.trace(model, (IDS,))
    plan = fxprune.Plan.of(fxprune.discover(traced), {})
    assert fxprune.rewrite(traced, plan).table.weight is model.table.weight
    assert memories(fxprune.rewrite(traced, plan, share=False)).isdisjoint(memories(model))


def test_passes() -> None:
    model = Net().eval()
    module = fxprune.trace(model, (IDS,)).graph_module
    there = memories(module)
    prune = Prune(PruneConfig(pruning_ratio=0.2, criterion="magnitude", kinds="mlp"), args=(IDS,))
    small = prune(module).graph_module
    assert memories(small).isdisjoint(there)
    plan = small.meta["fxprune"]
    assert memories(ApplyPlan((IDS,), plan=plan)(module).graph_module).isdisjoint(there)
    sharing = ApplyPlan((IDS,), plan=plan, share=True)
    assert memories(sharing(module).graph_module) & there


def test_shrunk_models() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    before = copy.deepcopy(model.state_dict())
    graph = fxprune.discover(fxprune.trace(model))
    kept = {g.name: range(g.size - 4) for g in graph.groups if g.kind == "mlp"}
    plan, nothing = fxprune.Plan.of(graph, kept), fxprune.Plan.of(graph, {})
    given = fxprune.rewrite(graph.traced, plan, share=False)
    ids = torch.arange(3, 17).view(2, 7)
    for small, others in (
        (fxprune.shrink(model, plan, traced=graph.traced), [model]),
        (fxprune.shrink(model, plan, given), [model, given]),
        (fxprune.shrink(model, nothing), [model]),
    ):
        assert all(memories(small).isdisjoint(memories(other)) for other in others)
        assert small.lm_head.weight is small.model.embed_tokens.weight
        train(small, ids)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    shared = fxprune.shrink(model, plan, traced=graph.traced, share=True)
    assert shared.lm_head.weight is model.lm_head.weight
    assert fxprune.shrink(model, nothing, share=True) is model


def test_removed_blocks() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    depth = fxprune.Depth(remove=1, keep_first=0, keep_last=0)
    result = fxprune.prune(model, depth=depth, depth_criterion=fxprune.Magnitude())
    assert result.plan.removed
    assert memories(result.graph_module).isdisjoint(memories(model))


def test_views_and_attributes() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            slab = torch.arange(12.0)
            self.one = nn.Parameter(slab[:6].view(2, 3), requires_grad=False)
            self.other = nn.Parameter(slab[3:].view(3, 3))
            self.other.note = "kept"  # type: ignore[attr-defined]
            self.plain = torch.ones(2)

    model = Odd()
    mine = copy.copy(model)
    mine.__dict__.update(_parameters=dict(model._parameters), plain=model.plain)
    set_apart(mine, model)
    assert memories(mine).isdisjoint(memories(model))
    assert torch.equal(mine.one, model.one)
    assert torch.equal(mine.other, model.other)
    assert (mine.one.requires_grad, mine.other.note) == (False, "kept")
    with torch.no_grad():
        mine.one[1] = -1
    assert torch.equal(mine.other[0], torch.full((3,), -1.0))  # still one memory
    assert model.one.min() >= 0


def test_on_meta() -> None:
    with torch.device("meta"):
        model = Net().eval()
    traced = fxprune.trace(model, (IDS.to("meta"),))
    graph = fxprune.discover(traced)
    small = fxprune.rewrite(traced, fxprune.Plan.of(graph, {}), share=False)
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}
    assert small.head.weight is small.table.weight
