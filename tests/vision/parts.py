"""What several families are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Activation = Callable[[], nn.Module]


def in_place(kind: Callable[..., nn.Module]) -> Activation:
    """That activation, written over its input, as the published models have it."""
    return lambda: kind(inplace=True)


RELU, RELU6, SILU, HARDSWISH = map(in_place, (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish))


class Conv(nn.Sequential):
    """Convolution without bias, batch norm, activation (ReLU in place; None for a linear end)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: Activation | None = RELU,
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(dilation * (side // 2) for side in sides)
        convolution = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, groups, bias=False
        )
        super().__init__(convolution, nn.BatchNorm2d(outputs), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means say of each other."""

    def __init__(
        self,
        channels: int,
        squeezed: int,
        act: Activation = RELU,
        gate: Activation = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.fc2(self.act(self.fc1(self.avgpool(x))))) * x


class StochasticDepth(nn.Module):
    """While training, the branches of some rows are dropped."""

    def __init__(self, probability: float = 0.2) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        kept = torch.empty((x.shape[0], *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(1 - self.probability).div_(1 - self.probability)


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.order)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image, which stand first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
