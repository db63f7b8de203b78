"""Programs to prune: small ones with everything that a signature can say."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fxprune.trace.state import preserved

ROWS = Dim("rows", min=2, max=64)


class Everything(nn.Module):
    """Tied and unread parameters, buffers of both kinds, constants, writes, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(6, 30), nn.BatchNorm1d(30)
        self.down, self.other = nn.Linear(30, 6), nn.Linear(6, 30)
        self.other.weight = self.up.weight
        self.unread = nn.Parameter(torch.randn(3))
        self.register_buffer("seen", torch.zeros(30))
        self.register_buffer("scale", torch.rand(30) + 0.5, persistent=False)
        self.shift = torch.arange(30.0)
        with torch.no_grad():
            for tensor in (self.norm.running_mean, self.norm.running_var, self.norm.weight):
                assert tensor is not None
                tensor.copy_(torch.rand(30) + 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        hidden = torch.relu(self.norm(self.up(x))) * self.scale + self.shift
        self.seen.add_(hidden.mean(0))
        z = self.down(hidden) + self.down(torch.tanh(self.other(x)))
        y.add_(1)
        return {"z": z, "more": (z.sum(1), 3)}, y * torch.tensor([1.0, 2, 3, 4, 5, 6])


def inputs(rows: int = 5) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, 6, generator=generator) for _ in range(2))
    return (x,), {"y": y}


def everything(*, decomposed: bool = False) -> ExportedProgram:
    torch.manual_seed(0)
    shapes = {"x": {0: ROWS}, "y": {0: ROWS}}
    args, kwargs = inputs()
    program = torch.export.export(Everything().eval(), args, kwargs, dynamic_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of copies of its own trees
        return program.run_decompositions() if decomposed else program


@torch.no_grad()
def run(program: ExportedProgram, rows: int = 5) -> Any:
    """What a program gives; its buffers stay as they are."""
    module = program.module()
    args, kwargs = inputs(rows)
    with preserved(module):
        return module(*args, **kwargs)


def exported(model: nn.Module, *args: Any, **options: Any) -> ExportedProgram:
    return torch.export.export(model.eval(), args, strict=False, **options)
