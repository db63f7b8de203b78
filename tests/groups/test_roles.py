"""What stands in the place of attention, ranks, and additions that make no stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from fxprune.plan import Plan

HIDDEN, LENGTH = 12, 6
X = torch.randn(3, LENGTH, 5, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Two residual branches: one of a test, and an MLP."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.stem, self.mixer = nn.Linear(5, HIDDEN), mixer
        self.up, self.down = nn.Linear(HIDDEN, 17), nn.Linear(17, HIDDEN)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.mixer(x)
        x = x + self.down(self.up(x).relu())
        return self.head(x)


class Window(nn.Module):
    """A gated convolution along the sequence, each unit by itself."""

    def __init__(self, groups: int = 10) -> None:
        super().__init__()
        self.into, self.gate = nn.Linear(HIDDEN, 10), nn.Linear(HIDDEN, 10)
        self.conv = nn.Conv1d(10, 10, 3, padding=2, groups=groups)
        self.out = nn.Linear(10, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.into(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.out(y * self.gate(x).sigmoid())


class Recurrence(nn.Module):
    """A decaying sum, one step after the other, and a decay of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(HIDDEN, 10), nn.Linear(10, HIDDEN)
        self.rank, self.decay = nn.Linear(10, 4), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x)
        decay, state, found = self.decay(self.rank(y)).sigmoid(), torch.zeros_like(y[:, 0]), []
        for place in range(LENGTH):
            state = state * decay[:, place] + y[:, place]
            found.append(state)
        return self.out(torch.stack(found, 1))


class Heads(nn.Module):
    """Attention, or what is there without a softmax: of keys by values, or of scores."""

    def __init__(self, how: str, rank: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.how, self.shared = how, shared
        self.q = nn.Sequential(nn.Linear(HIDDEN, 7), nn.Linear(7, 20)) if rank else None
        self.query, self.key = nn.Linear(HIDDEN, 20), nn.Linear(HIDDEN, 20)
        self.value, self.out = nn.Linear(HIDDEN, 12), nn.Linear(12, HIDDEN)
        self.one = nn.Linear(HIDDEN, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (4, -1)).transpose(1, 2)
            for y in ((self.q or self.query)(x), self.key(x), self.value(x))
        )
        if self.shared:  # half of every key is the same for all heads
            k = k + self.one(x).unsqueeze(1).expand(-1, 4, -1, -1)
        if self.how == "state":
            y = q @ (k.transpose(-1, -2) @ v)
        else:
            scores = q @ k.transpose(-1, -2)
            y = (scores.softmax(-1) if self.how == "softmax" else scores.sigmoid()) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Adapted(nn.Module):
    """An MLP with an adapter of low rank beside its first matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 14), nn.Linear(14, HIDDEN)
        self.a, self.b = nn.Linear(HIDDEN, 3), nn.Linear(3, 14)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down((self.up(x) + self.b(self.a(x))).relu())


class ByHand(nn.Module):
    """An MLP with ``logsigmoid`` written out: what is added comes from one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 14), nn.Linear(14, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        return self.down(torch.minimum(torch.zeros(14), y) - (-y.abs()).exp().log1p())


class Narrower(nn.Module):
    """A stream within a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(HIDDEN, 8), nn.Linear(8, HIDDEN)
        self.up, self.down = nn.Linear(8, 15), nn.Linear(15, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x)
        return self.out(y + self.down(self.up(y).relu()))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "window": (Window, {"mixer:conv_channels": "conv"}),
    "window of all units": (lambda: Window(1), {"mixer:channels": "channel"}),
    "recurrence": (Recurrence, {"mixer:states": "state", "mixer:ranks": "latent"}),
    "softmax": (lambda: Heads("softmax"), {"mixer:heads": "attention"}),
    "sigmoid": (lambda: Heads("sigmoid"), {"mixer:heads": "attention"}),
    "state": (lambda: Heads("state"), {"mixer:states": "state"}),
    "rank of queries": (
        lambda: Heads("softmax", rank=True),
        {"mixer:heads": "attention", "mixer.q:ranks": "latent"},
    ),
    "keys in part shared": (lambda: Heads("softmax", shared=True), {"mixer:heads": "attention"}),
    "adapter": (Adapted, {"mixer:units": "mlp"}),
    "activation by hand": (ByHand, {"mixer:units": "mlp"}),
    "stream within": (Narrower, {"mixer:channels": "channel", "mixer:units": "mlp"}),
}


@pytest.mark.filterwarnings("ignore:.*is fixed at:fxprune.FxpruneWarning")
@pytest.mark.parametrize("case", CASES)
def test_kinds_are_read_off_the_structure(case: str) -> None:
    torch.manual_seed(0)
    make, expected = CASES[case]
    traced = fxprune.trace(Layer(make()).eval(), (X,))
    graph = fxprune.discover(traced)
    found = {group.name: group.kind for group in graph.groups}
    assert expected.items() <= found.items()
    assert [g.kind for g in graph.groups if "up.weight" in g.parameters] == ["channel", "mlp"]
    for name in expected:
        size = graph[name].size
        plan = Plan.of(graph, {name: tuple(range(0, size, 2))})
        fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)
