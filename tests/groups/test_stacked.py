"""Products with stacked weights, and which token each of their rows is of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.groups.consumers import every_consumer, origin_in

EXPERTS, WIDTH, UNITS = 3, 6, 8
X = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


class Toy(nn.Module):
    """Experts of one matrix, run in one way or another; tells rows, experts and tokens itself."""

    def __init__(self, run: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.into = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(shape))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        gates, chosen = self.router(x).topk(2)
        y: Tensor = self.run(self, x, gates, chosen)
        return y


OUT_IN, IN_OUT = (EXPERTS, UNITS, WIDTH), (EXPERTS, WIDTH, UNITS)


def taken(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    rows = x.repeat_interleave(2, 0).unsqueeze(-1)
    return torch.bmm(self.weight[chosen.reshape(-1)], rows).squeeze(-1).relu()


def taken_and_turned(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    rows = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 1, WIDTH)
    return (rows @ self.weight[chosen.reshape(-1)].transpose(1, 2)).squeeze(1).relu()


def taken_by_columns(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    rows = x.repeat(2, 1).unsqueeze(1)
    weight = self.weight.permute(0, 2, 1)[chosen.t().reshape(-1)]
    return torch.matmul(rows, weight).squeeze(1).relu()


def every(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    sent = torch.zeros_like(self.router(x)).scatter(1, chosen, 1.0)
    rows = x.expand(EXPERTS, -1, -1) * sent.t().unsqueeze(-1)
    return torch.bmm(rows, self.weight).relu()


def broadcast(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    return torch.matmul(x, self.weight).relu()


CASES = {
    "taken": (taken, OUT_IN), "turned": (taken_and_turned, OUT_IN),
    "columns": (taken_by_columns, OUT_IN), "every": (every, IN_OUT),
    "broadcast": (broadcast, IN_OUT),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rows_experts_and_tokens(name: str) -> None:
    """``x[token] W[expert]`` of each row is what the product gives."""
    torch.manual_seed(0)
    model = Toy(*CASES[name])
    traced = fxprune.trace(model, (X,))
    (stack,) = [c.stack for c in every_consumer(fxprune.discover(traced)) if c.stack is not None]
    origin = origin_in(traced, stack)
    assert origin is not None

    values: dict[fx.Node, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    with torch.no_grad():
        Keep(traced.graph_module).run(X)
        rows = stack.rows(values[stack.source])
        experts = stack.experts(rows, values)
        tokens = origin.tokens(len(rows), values, rows.device)
        y = stack.results(values[stack.node])
        x = model.into(X)
        chosen = model.router(x).topk(2)[1]
        assert len(experts) == len(tokens) == len(y)
        for place in range(len(rows)):
            expert, token = int(experts[place]), int(tokens[place])
            if expert == EXPERTS:  # it was not sent there
                assert not y[place].any()
                continue
            torch.testing.assert_close(rows[place], x[token])
            matrix = stack.matrix(model.weight, expert)
            assert matrix.shape == (UNITS, WIDTH)
            torch.testing.assert_close(y[place], matrix @ x[token])
        met = [(int(e), int(t)) for e, t in zip(experts, tokens, strict=True) if e < EXPERTS]
        each = range(EXPERTS) if name == "broadcast" else None
        expected = [(e, t) for t in range(len(X)) for e in (each or chosen[t].tolist())]
        assert sorted(met) == sorted(expected)


def scaled(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    return torch.matmul(x, self.weight * 2).relu()


def swapped(self: Any, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
    rows = x.repeat_interleave(2, 0).reshape(2, -1, WIDTH).transpose(0, 1).reshape(-1, WIDTH)
    return torch.bmm(self.weight[chosen.reshape(-1)], rows.unsqueeze(-1)).squeeze(-1).relu()


def test_what_is_not_known_is_not_guessed() -> None:
    traced = fxprune.trace(Toy(scaled, IN_OUT), (X,))
    assert all(c.stack is None for c in every_consumer(fxprune.discover(traced)))
    traced = fxprune.trace(Toy(swapped, OUT_IN), (X,))
    (stack,) = [c.stack for c in every_consumer(fxprune.discover(traced)) if c.stack is not None]
    assert origin_in(traced, stack) is None
