"""Chains of convolutions, and those that concatenate: AlexNet to DenseNet."""

from __future__ import annotations

from collections import namedtuple

import torch
from torch import nn
from torch.nn import functional as F

from tests.vision.parts import RELU, Conv

CLASSES = 7
WithAux = namedtuple("WithAux", ["logits", "aux"])


class AlexNet(nn.Module):
    """Convolutions, a grid of fixed size, and a classifier with dropout before each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 14, 5, 2, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(14, 18, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(18, 16, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(16 * 36, 40),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(40, 34),
            nn.ReLU(inplace=True),
            nn.Linear(34, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VGG(nn.Module):
    """Pairs of convolutions, with batch norm after each or without, and three linear layers."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (10, 12, 0, 18, 20, 0):
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(inputs, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, 36),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(36, 30),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(30, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Fire(nn.Module):
    """A narrow convolution read by two, whose outputs stand side by side."""

    def __init__(self, inputs: int, squeezed: int, one: int, three: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, one, 1)
        self.expand3x3 = nn.Conv2d(squeezed, three, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules, pooling that rounds up, and a convolution that gives the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(16, 6, 14, 12),
            Fire(26, 8, 10, 14),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(24, 9, 12, 16),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(28, CLASSES, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )
        nn.init.ones_(self.classifier[1].bias)  # so that the last ReLU lets every class through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class AuxiliaryHead(nn.Module):
    """A second classifier, which only training uses."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv, self.fc = Conv(inputs, 10, 1), nn.Linear(10 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.conv(x), (2, 2)), 1))


class Inception(nn.Module):
    """Four branches side by side, the last behind a pooling."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int], long: bool = False) -> None:
        super().__init__()
        one, three, five, pool = widths
        self.branch1 = Conv(inputs, one, 1)
        self.branch2 = nn.Sequential(Conv(inputs, 8, 1), Conv(8, three, 3))
        if long:  # the asymmetric kernels of Inception v3
            self.branch3 = nn.Sequential(
                Conv(inputs, 7, 1), Conv(7, 9, (1, 7)), Conv(9, five, (7, 1))
            )
            before: nn.Module = nn.AvgPool2d(3, 1, 1)
        else:
            self.branch3 = nn.Sequential(Conv(inputs, 7, 1), Conv(7, five, 3))
            before = nn.MaxPool2d(3, 1, 1, ceil_mode=True)
        self.branch4 = nn.Sequential(before, Conv(inputs, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


class Reduction(nn.Module):
    """Two strided convolutions and a pooling side by side, as Inception v3 halves its grid."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch1 = Conv(inputs, 14, 3, 2)
        self.branch2 = nn.Sequential(Conv(inputs, 8, 1), Conv(8, 10, 3), Conv(10, 12, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.max_pool2d(x, 3, 2, 1)
        return torch.cat([self.branch1(x), self.branch2(x), pooled], 1)


class InceptionNet(nn.Module):
    """GoogLeNet, or Inception v3 where ``long``; the picture's planes are scaled one by one."""

    def __init__(self, long: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(3, 12, 3, 2), Conv(12, 16, 3)
        self.first = Inception(16, (10, 12, 8, 6), long)
        self.down = Reduction(36) if long else nn.MaxPool2d(3, 2, ceil_mode=True)
        width = 62 if long else 36
        self.second = Inception(width, (8, 10, 14, 6), long)
        self.aux = AuxiliaryHead(width)
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(38, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor | WithAux:
        planes = [
            torch.unsqueeze(x[:, plane], 1) * scale + shift
            for plane, (scale, shift) in enumerate(((0.46, -0.03), (0.45, -0.09), (0.45, -0.19)))
        ]
        x = self.down(self.first(self.conv2(self.conv1(torch.cat(planes, 1)))))
        aux = self.aux(x) if self.training else None
        x = F.adaptive_avg_pool2d(self.second(x), (1, 1))
        x = self.fc(self.dropout(torch.flatten(x, 1)))
        return x if aux is None else WithAux(x, aux)


class DenseLayer(nn.Module):
    """Norm, activation, convolution, twice; it reads everything that came before it."""

    def __init__(self, inputs: int, growth: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """Layers by name; what each gives joins what the next reads."""

    def __init__(self, inputs: int, growth: int, inner: int, count: int) -> None:
        super().__init__(
            {f"layer{i}": DenseLayer(inputs + i * growth, growth, inner) for i in range(count)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Conv(3, 12, 3, 2),
            nn.MaxPool2d(3, 2, 1),
            DenseBlock(12, 6, 14, 3),
            nn.BatchNorm2d(30),
            RELU(),
            nn.Conv2d(30, 16, 1, bias=False),
            nn.AvgPool2d(2, 2),
            DenseBlock(16, 5, 11, 2),
            nn.BatchNorm2d(26),
        )
        self.classifier = nn.Linear(26, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))
