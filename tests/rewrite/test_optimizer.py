"""An optimiser that goes on after pruning makes the step of one that was cut by hand."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxprune
from fxprune.errors import RewriteError
from fxprune.rewrite import optimizer as optimizers
from tests.llama import tiny_llama

IDS = torch.arange(48).view(4, 12) % 90
HEAD, REPEAT = 6, 2
OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=1e-3, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, centered=True, momentum=0.5),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "transformers": lambda groups: transformers.optimization.Adafactor(
        groups, lr=1e-3, relative_step=False, scale_parameter=False
    ),
}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights and the rest, with options of their own."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": others, "lr": 3e-3}]


def train(model: Any, optimizer: Any, steps: int, scheduler: Any = None) -> None:
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def by_hand(name: str, value: torch.Tensor, plan: fxprune.Plan) -> torch.Tensor:
    """The rows and columns of a Llama's tensor that stay, by its name; of size 1 all."""
    layer = name.rpartition(".layers.")[2].partition(".")[0]
    units = torch.tensor(plan.kept.get(f"model.layers.{layer}.mlp:units", range(40)))
    heads = torch.tensor(plan.kept.get(f"model.layers.{layer}.self_attn:heads", range(3)))
    part = name.split(".")[-2]
    wide = (heads[:, None] * HEAD * REPEAT + torch.arange(HEAD * REPEAT)).flatten()
    small = (heads[:, None] * HEAD + torch.arange(HEAD)).flatten()
    axis, kept = {
        "gate_proj": (0, units), "up_proj": (0, units), "down_proj": (1, units),
        "q_proj": (0, wide), "k_proj": (0, small), "v_proj": (0, small), "o_proj": (1, wide),
    }.get(part, (0, torch.arange(0)))  # fmt: skip
    if not len(kept):
        return value
    whole = {(0, 40), (1, 40), (0, 36), (1, 36), (0, 18)}
    if value.dim() == 1:  # rows or columns alone, of transformers' Adafactor
        return value[kept] if name.endswith(f"#{axis}") else value
    return value.index_select(axis, kept) if (axis, value.shape[axis]) in whole else value


def cut(model: nn.Module, small: nn.Module, made: Any, old: Any, plan: fxprune.Plan) -> None:
    """Give a new optimiser of the small model the state of the old one, by name."""
    names = {p: name for name, p in model.named_parameters()}
    there = dict(small.named_parameters())
    for parameter, state in old.items():
        name = names[parameter]
        given = {}
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                end = "#0" if "row" in key else "#1" if "col" in key else ""
                value = by_hand(name + end if parameter.dim() > 1 else name, value, plan)
            given[key] = copy.deepcopy(value)
        made.state[there[name]] = given


@pytest.fixture(scope="module")
def plan() -> fxprune.Plan:
    model = tiny_llama(tie_word_embeddings=True)
    scores = {g.name: torch.arange(g.size).remainder(7).float() for g in graph_of(model).groups}
    found = fxprune.select(graph_of(model), scores, budget=fxprune.Budget(units=0.4))
    assert len(found.kept) == 4
    return found


def graph_of(model: Any) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stock", [True, False])
def test_a_step_is_that_of_one_cut_by_hand(name: str, stock: bool, plan: fxprune.Plan) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    optimizer = OPTIMIZERS[name](groups(model))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer, 3, scheduler)
    before = copy.deepcopy(model.state_dict())
    state = {p: dict(s) for p, s in optimizer.state.items()}
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    small: Any
    if stock:
        small = fxprune.shrink(model, plan, optimizer=optimizer)
    else:
        traced = fxprune.trace(model)
        graph = fxprune.rewrite(traced, plan, share=False)
        optimizers.carry(optimizer, model, graph, traced, plan)
        small = fxprune.shrink(model, plan, graph, traced=traced, share=True)
    own = {id(p) for p in small.parameters()}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == own
    assert set(map(id, optimizer.state)) <= own
    assert options == [
        {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
    ]
    twin = copy.deepcopy(small)
    made = OPTIMIZERS[name](groups(twin))
    for group, said in zip(made.param_groups, options, strict=True):
        group.update(said)
    cut(model, twin, made, state, plan)
    train(small, optimizer, 2, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(options[0]["initial_lr"] / 6)
    for step in (4, 5):  # the twin has no scheduler
        for group in made.param_groups:
            group["lr"] = group["initial_lr"] / step
        train(twin, made, 1)
    for (where, ours), theirs in zip(small.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6), where
    for key, value in model.state_dict().items():  # the original is no longer trained
        assert torch.equal(value, before[key])


def test_prune_carries_it_along_with_what_is_tied_and_compensated() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    named = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    train(model, named, 2)
    result = fxprune.prune(
        model, calibration=IDS, compensation="bias", optimizer=named, kinds="mlp"
    )
    small: Any = result.graph_module
    assert result.plan.biases
    group = named.param_groups[0]
    there = dict(small.named_parameters(remove_duplicate=False))
    assert set(group["param_names"]) >= set(result.plan.biases)
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        assert there[name] is parameter
        if name not in result.plan.biases:
            assert named.state[parameter]["exp_avg"].shape == parameter.shape
    logits = small(IDS).logits if hasattr(small(IDS), "logits") else small(IDS)[0]
    logits.square().mean().backward()
    named.step()
    assert all(torch.isfinite(p).all() for p in group["params"])


def test_blocks_that_go_leave_their_groups() -> None:
    model = tiny_llama(num_hidden_layers=3)
    layers = [{"params": list(layer.parameters())} for layer in model.model.layers]
    optimizer = torch.optim.AdamW(layers, lr=1e-3)
    train(model, optimizer, 2)
    third = optimizer.state[model.model.layers[2].mlp.up_proj.weight]["exp_avg"].clone()
    plan = fxprune.select(graph_of(model), {}, depth=fxprune.Depth(schedule="alternate"))
    assert plan.removed == ("model.layers.1:block",)
    small: Any = fxprune.shrink(model, plan, optimizer=optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == [9, 0, 9]
    up = small.model.layers[1].mlp.up_proj.weight
    assert any(p is up for p in optimizer.param_groups[2]["params"])
    assert torch.equal(optimizer.state[up]["exp_avg"], third)
    train(small, optimizer, 1)


def test_gradients_that_are_there_are_cut_too(plan: fxprune.Plan) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradient = model.model.layers[1].mlp.down_proj.weight.grad
    assert gradient is not None
    small: Any = fxprune.shrink(model, plan, optimizer=optimizer)
    kept = list(plan.kept["model.layers.1.mlp:units"])
    assert torch.equal(small.model.layers[1].mlp.down_proj.weight.grad, gradient[:, kept])


def test_an_optimizer_of_the_graph_goes_to_the_model(plan: fxprune.Plan) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    traced = fxprune.trace(model)
    graph = fxprune.rewrite(traced, plan, share=False)
    optimizer = torch.optim.AdamW(graph.parameters(), lr=1e-3)
    graph(IDS).logits.square().mean().backward()
    optimizer.step()
    up = graph.get_parameter("model.layers.0.mlp.up_proj.weight")
    moment = optimizer.state[up]["exp_avg"].clone()  # type: ignore[index]
    small: Any = fxprune.shrink(model, plan, graph, traced=traced, optimizer=optimizer)
    there = small.model.layers[0].mlp.up_proj.weight
    assert there is not up
    assert torch.equal(optimizer.state[there]["exp_avg"], moment)


class _Odd(torch.optim.SGD):
    """State of other kinds."""

    def __init__(self, parameters: Any, state: Any) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"odd": state(parameter)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda p: torch.zeros(7), r"'odd' of model.embed_tokens.weight is torch.float32 of shape"),
        (lambda p: torch.zeros(p.shape, dtype=torch.uint8), "is torch.uint8 of shape"),
        (lambda p: [torch.zeros_like(p)], "is a list, and how to cut it is not known: prune bef"),
        (lambda p: torch.zeros(p.shape[:-1]), "how to cut it is not known"),
    ],
)
def test_state_that_cannot_be_cut_is_refused_before_anything_is_done(
    state: Any, message: str, monkeypatch: Any
) -> None:
    model = tiny_llama()
    optimizer = _Odd(model.parameters(), state)
    held = [list(group["params"]) for group in optimizer.param_groups]
    monkeypatch.setattr(sys.modules["fxprune.prune"], "trace", None)
    with pytest.raises(RewriteError, match=message):
        fxprune.prune(model, criterion="magnitude", optimizer=optimizer)
    assert [list(map(id, g["params"])) for g in optimizer.param_groups] == [
        list(map(id, each)) for each in held
    ]


def test_what_is_no_optimizer_of_the_model() -> None:
    with pytest.raises(RewriteError, match="no parameter of LlamaForCausalLM"):
        fxprune.prune(
            tiny_llama(),
            criterion="magnitude",
            optimizer=torch.optim.SGD([nn.Parameter(IDS * 1.0)]),
        )
    with pytest.raises(RewriteError, match="takes an optimizer of torch, not type"):
        fxprune.prune(tiny_llama(), criterion="magnitude", optimizer=torch.optim.SGD)


def test_a_convolutional_network_and_one_wrapped_by_accelerate() -> None:
    from accelerate import Accelerator

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
    )
    inner = torch.optim.Adam(model.parameters(), lr=0.01)
    image = torch.randn(2, 3, 6, 6)
    model(image).square().mean().backward()
    inner.step()
    inner.zero_grad()
    moment = inner.state[model[3].weight]["exp_avg_sq"].clone()
    result = fxprune.prune(
        model, image, kinds="channel", criterion="magnitude", pruning_ratio=0.3,
        optimizer=Accelerator(cpu=True).prepare(inner), share=True,
    )  # fmt: skip
    (kept,) = result.plan.kept.values()
    small = result.graph_module.get_parameter("3.weight")
    assert torch.equal(inner.state[small]["exp_avg_sq"], moment[:, list(kept)])
    result.graph_module(image).square().mean().backward()
    inner.step()
