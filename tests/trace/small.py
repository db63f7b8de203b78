"""A model whose forward is any function of it and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Small(nn.Module):
    """Two linear layers, 8 -> 16 -> 4, and whatever parts are given."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | torch.Tensor) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, x, *args, **kwargs)
