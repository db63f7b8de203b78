"""What comes into each expert, against the same model as a plain loop over experts."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.errors import CriterionError
from fxprune.importance.stacked import ExpertRecorder
from fxprune.importance.statistics import measure
from tests.classes import build
from tests.importance.test_experts import IDS, SIZES, llama4, mixtral, qwen, shaken
from tests.importance.test_obs import DAMPING

LAYER = "model.layers.1.mlp.experts"
UNITS = f"{LAYER}:units"


def qwen3() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SIZES, head_dim=6, intermediate_size=16, moe_intermediate_size=16, num_experts=5
    )
    return shaken(transformers.Qwen3MoeForCausalLM(config).eval())


def batched() -> Any:
    return mixtral(experts_implementation="batched_mm")


class Seen:
    """Inputs and outputs of the down projection of each expert of one layer."""

    def __init__(self, model: Any, name: str) -> None:
        self.x: dict[int, list[Tensor]] = {}
        self.y: dict[int, list[Tensor]] = {}
        module = model.get_submodule(name)
        transposed = isinstance(model, transformers.Llama4ForCausalLM)
        module.forward = MethodType(self.every if transposed else self.chosen, module)

    def one(self, expert: int, hidden: Tensor, down: Tensor) -> Tensor:
        y = hidden @ down.T
        y.retain_grad()
        self.x.setdefault(expert, []).append(hidden.detach())
        self.y.setdefault(expert, []).append(y)
        return y

    def chosen(self, module: Any, x: Tensor, index: Tensor, gates: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(5):
            tokens, places = torch.where(index == expert)
            if len(tokens):
                gate, up = (x[tokens] @ module.gate_up_proj[expert].T).chunk(2, -1)
                y = self.one(expert, module.act_fn(gate) * up, module.down_proj[expert])
                total = total.index_add(0, tokens, y * gates[tokens, places, None])
        return total

    def every(self, module: Any, x: Tensor) -> Tensor:
        found = []
        for expert, mine in enumerate(x.view(5, -1, x.shape[-1])):
            tokens = torch.where(mine.abs().sum(1) > 0)[0]
            gate, up = (mine[tokens] @ module.gate_up_proj[expert]).chunk(2, -1)
            y = torch.zeros_like(mine)
            if len(tokens):
                down = self.one(expert, module.act_fn(gate) * up, module.down_proj[expert].T)
                y = y.index_add(0, tokens, down)
            found.append(y)
        return torch.cat(found)


class Mixture(nn.Module):
    """A classifier with experts, which are run all at once or in a loop over all."""

    def __init__(self, loop: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loop = loop
        self.router = nn.Linear(6, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 6))
        self.down = nn.Parameter(torch.randn(4, 6, 8))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = self.router(x).softmax(-1).topk(2)
        if not self.loop:
            places = chosen.reshape(-1)
            rows = x.repeat_interleave(2, 0).unsqueeze(1)
            hidden = torch.bmm(rows, self.up[places].transpose(1, 2)).relu()
            y = torch.bmm(hidden, self.down[places].transpose(1, 2)).view(-1, 2, 6)
            return self.head(x + (y * gates.unsqueeze(-1)).sum(1))
        mask = functional.one_hot(chosen, 4).permute(2, 1, 0)
        added = torch.zeros_like(x)
        for expert in range(4):
            place, token = torch.where(mask[expert])
            hidden = functional.linear(x[token], self.up[expert]).relu()
            y = functional.linear(hidden, self.down[expert]) * gates[token, place, None]
            added.index_add_(0, token, y)
        return self.head(x + added)


ROWS = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 5, (120,), generator=torch.Generator().manual_seed(2))


def test_a_loop_over_experts_is_the_same() -> None:
    found = []
    for loop in (False, True):
        model = Mixture(loop)
        graph = fxprune.discover(fxprune.trace(model, (ROWS,)))
        (group,) = (group for group in graph.groups if group.kind == "mlp")
        criteria = [fxprune.OBS(), fxprune.WandaSP(), fxprune.FLAP()]
        options: dict[str, Any] = {"loss_fn": nn.CrossEntropyLoss(), "batch_size": 50}
        scores = fxprune.estimate(
            model, graph, criteria, [(ROWS, LABELS)], groups=[group], **options
        )
        found.append([each[group.name] for each in scores])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def by_hand(model: Any, name: str, ids: Tensor = IDS) -> tuple[dict[int, Tensor], dict[int, Any]]:
    """All inputs of each expert's down projection, and the gradients of the summed loss."""
    seen = Seen(model, name)
    logits = model(input_ids=ids).logits[:, :-1]
    functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    x = {e: torch.cat(each).double() for e, each in seen.x.items()}
    g = {e: torch.cat([y.grad for y in each]).double() for e, each in seen.y.items()}  # type: ignore[misc]
    del model.get_submodule(name).forward
    model.zero_grad()
    return x, g


def down(model: Any, name: str, expert: int) -> Tensor:
    """The matrix of an expert, (outputs, inputs)."""
    weight: Tensor = model.get_submodule(name).down_proj[expert].detach().double()
    return weight.T if isinstance(model, transformers.Llama4ForCausalLM) else weight


MODELS = {
    "grouped": (mixtral, LAYER), "batched": (batched, LAYER), "qwen3": (qwen3, LAYER),
    "shared": (qwen, LAYER), "every": (llama4, "model.layers.1.feed_forward.experts"),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request: Any) -> tuple[Any, Any, str]:
    make, name = MODELS[request.param]
    model = make()
    return model, fxprune.discover(fxprune.trace(model)), name


def test_statistics_of_each_expert(case: tuple[Any, Any, str]) -> None:
    model, graph, name = case
    x, _ = by_hand(model, name)
    consumers = fxprune.groups.consumers.consumers(graph, graph[f"{name}:units"])
    recorder = ExpertRecorder(traced=graph.traced, consumers=consumers)
    with torch.no_grad():
        for ids in IDS.split(4):
            recorder.module()(input_ids=ids)
    found = recorder.experts[f"{name}.down_proj"].statistics
    assert sorted(found) == sorted(x)
    for expert, statistics in found.items():
        expected = measure(x[expert])
        assert statistics.count == expected.count
        for attribute in ("mean", "squares", "absolute"):
            torch.testing.assert_close(
                getattr(statistics, attribute), getattr(expected, attribute), rtol=1e-4, atol=1e-4
            )


def scores(case: tuple[Any, Any, str], criterion: Any, **options: Any) -> Tensor:
    model, graph, name = case
    groups = [graph[f"{name}:units"]]
    found = fxprune.estimate(model, graph, criterion, IDS, groups=groups, **options)
    return found[groups[0].name].double()


def test_criteria_of_inputs(case: tuple[Any, Any, str]) -> None:
    model, _, name = case
    x, _ = by_hand(model, name)
    weights = {e: down(model, name, e) for e in x}
    every = torch.cat(list(x.values()))
    wanda = sum(weights[e].abs().mean(0) * (x[e].square().sum(0) / len(IDS)).sqrt() for e in x)
    shares = {e: len(each) / len(every) for e, each in x.items()}
    moves = sum(shares[e] * x[e].var(0) * weights[e].square().sum(0) for e in x if len(x[e]) > 1)
    assert isinstance(moves, Tensor)
    expected = {
        fxprune.WandaSP(): wanda,
        fxprune.FLAP(): (moves - moves.mean()) / moves.std(),
        fxprune.ActivationNorm(): every.square().sum(0).sqrt(),
        fxprune.ActivationNorm(p=1): every.abs().mean(0),
    }
    for criterion, value in expected.items():
        found = scores(case, criterion, batch_size=4)
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


def one_by_one(parts: list[tuple[Tensor, Tensor, Tensor]], units: int) -> Tensor:
    """Least squares by definition: each expert refits what stays; the errors add up."""
    left, costs, total, highest = list(range(units)), torch.zeros(units).double(), 0.0, 0.0
    while left:
        errors = []
        for unit in left:
            stay = [u for u in left if u != unit]
            error = 0.0
            for a, g, weight in parts:
                damped = a + DAMPING * torch.diag(a.diagonal())
                refit = torch.zeros_like(weight)
                if stay:
                    normal = damped[stay][:, stay]
                    refit[:, stay] = torch.linalg.solve(normal, (weight @ damped)[:, stay].T).T
                lost = weight - refit
                error += 0.5 * float(torch.trace(g @ lost @ damped @ lost.T))
            errors.append(error)
        place = min(range(len(left)), key=errors.__getitem__)
        highest = max(highest, errors[place] - total)
        costs[left.pop(place)] = highest
        total = errors[place]
    return costs


def test_obs_by_definition(case: tuple[Any, Any, str]) -> None:
    model, _, name = case
    x, g = by_hand(model, name)
    both = torch.cat(list(g.values()))
    tokens = IDS.numel()
    total = both.T @ both / tokens
    parts = []
    for expert in x:
        share = float(g[expert].square().sum() / both.square().sum())
        a = x[expert].T @ x[expert] / len(x[expert])
        parts.append((a, share * total, down(model, name, expert)))
    expected = one_by_one(parts, 16)
    found = scores(case, fxprune.OBS(damping=DAMPING))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3 * float(expected.max()))
    parted = scores(case, fxprune.OBS(damping=DAMPING), batch_size=4)
    torch.testing.assert_close(parted, found, rtol=1e-3, atol=1e-8)


def test_beside_other_criteria_and_groups(case: tuple[Any, Any, str]) -> None:
    model, graph, _ = case
    kinds = ("mlp", "attention")
    alone = fxprune.estimate(model, graph, fxprune.OBS(), IDS, kinds=kinds)
    assert {group.name for group in graph.groups if group.kind in kinds} == set(alone)
    beside = fxprune.estimate(
        model, graph, [fxprune.Taylor(), fxprune.OBS(), fxprune.WandaSP()], IDS, kinds=kinds
    )[1]
    for group, each in alone.items():
        torch.testing.assert_close(beside[group], each, rtol=1e-3, atol=1e-9)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("criterion", [fxprune.OBS(), fxprune.WandaSP()])
@pytest.mark.parametrize("make", [mixtral, batched, llama4])
def test_padding_does_not_count(make: Any, criterion: Any) -> None:
    model = make()
    kwargs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    graph = fxprune.discover(fxprune.trace(model, kwargs=kwargs))
    padded = torch.cat([IDS, IDS.new_full((len(IDS), 4), 7)], 1)
    mask = torch.ones_like(padded)
    mask[:, -4:] = 0
    data = {"input_ids": padded, "attention_mask": mask}
    kinds = ("mlp",)
    alone = fxprune.estimate(model, graph, criterion, IDS, kinds=kinds)
    beside = fxprune.estimate(model, graph, criterion, data, kinds=kinds)
    for name, each in alone.items():
        torch.testing.assert_close(beside[name], each, rtol=1e-2, atol=1e-8)


def test_propagated_scores(case: tuple[Any, Any, str]) -> None:
    """Of the first layer they are those of the whole model."""
    model, graph, name = case
    name = name.replace("layers.1", "layers.0")
    found, plan = fxprune.propagate(
        graph, fxprune.WandaSP(), IDS, budget=fxprune.Budget(units=0.5), by="group",
        groups=[f"{each}:units" for each in (name, name.replace("layers.0", "layers.1"))],
    )  # fmt: skip
    whole = scores((model, graph, name), fxprune.WandaSP())
    torch.testing.assert_close(found[f"{name}:units"].double(), whole, rtol=1e-4, atol=1e-6)
    assert all(len(kept) == 8 for kept in plan.kept.values())
    later = scores((model, graph, name.replace("layers.0", "layers.1")), fxprune.WandaSP())
    assert not torch.allclose(found[f"{name.replace('layers.0', 'layers.1')}:units"], later.float())


def test_an_expert_without_tokens_costs_nothing() -> None:
    model = mixtral()
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[:2] = -20 * model.model.layers[1].mlp.gate.weight[2:4]
    graph = fxprune.discover(fxprune.trace(model))
    x, _ = by_hand(model, LAYER)
    ids = IDS[:1, :3]
    assert len(by_hand(model, LAYER, ids)[0]) < 5 == len(x)
    found = fxprune.estimate(model, graph, fxprune.OBS(), ids, groups=[graph[UNITS]])
    assert found[UNITS].isfinite().all()


def test_a_model_that_was_not_the_traced_one() -> None:
    model = mixtral()
    graph = fxprune.discover(fxprune.trace(model))
    other = mixtral()
    same = fxprune.estimate(other, graph, fxprune.WandaSP(), IDS, kinds=("mlp",))
    assert same[UNITS].equal(
        fxprune.estimate(model, graph, fxprune.WandaSP(), IDS, kinds=("mlp",))[UNITS]
    )
    with torch.no_grad():
        other.get_parameter(f"{LAYER}.down_proj").mul_(2)
    with pytest.raises(CriterionError, match=r"down_proj' are seen in the traced model, which has"):
        fxprune.estimate(other, graph, fxprune.WandaSP(), IDS, kinds=("mlp",))


def test_what_cannot_be_told_is_refused_before_anything_runs() -> None:
    """Rows that are split by data: their sizes are known as it runs, and their tokens are not."""
    model = build.build("jetmoe")
    inputs = build.inputs(model)
    graph = fxprune.discover(fxprune.trace(model, kwargs=inputs))
    with pytest.raises(CriterionError, match=r"which token each row of .* is of cannot be told"):
        fxprune.estimate(model, graph, fxprune.OBS(), inputs["input_ids"], kinds=("mlp",))
    found = fxprune.estimate(model, graph, fxprune.WandaSP(), inputs["input_ids"], kinds=("mlp",))
    assert all((each > 0).all() for each in found.values())


def test_a_loss_of_the_users_own() -> None:
    model = mixtral()
    graph = fxprune.discover(fxprune.trace(model))
    batch = [(IDS[:, :-1], IDS[:, 1:])]

    def shifted(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    found = fxprune.estimate(
        model, graph, fxprune.OBS(), batch, loss_fn=shifted, groups=[graph[UNITS]]
    )
    assert (found[UNITS] > 0).all()


def test_experts_themselves_are_refused_with_what_scores_them() -> None:
    model = mixtral()
    graph = fxprune.discover(fxprune.trace(model))
    for criterion in (fxprune.OBS(), fxprune.FLAP(), fxprune.WandaSP()):
        with pytest.raises(CriterionError, match=r"\(expert\).*REAP\(\) and Frequency\(\) score"):
            fxprune.estimate(model, graph, criterion, IDS, kinds=("expert",))
