"""Networks of residual blocks: ResNet, RegNet and the mobile ones."""

from __future__ import annotations

import torch
from torch import nn

from tests.vision.parts import (
    HARDSWISH,
    RELU,
    RELU6,
    SILU,
    Activation,
    Conv,
    SqueezeExcite,
    StochasticDepth,
)
from tests.vision.plain import CLASSES


class Classifier(nn.Module):
    """Features, their means, a head."""

    def __init__(self, features: nn.Module, head: nn.Module, mean: bool = False) -> None:
        super().__init__()
        self.features, self.head, self.mean = features, head, mean
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = x.mean([2, 3]) if self.mean else torch.flatten(self.avgpool(x), 1)
        return self.head(x)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (grouped in ResNeXt, dilated in segmentation), 1 x 1, and the input added."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(
            inner, inner, 3, stride, dilation, dilation, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        changes = stride > 1 or inputs != outputs
        self.downsample = Conv(inputs, outputs, 1, stride, act=None) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


def resnet_stages(inner: tuple[int, int], groups: int, dilation: int = 1) -> list[nn.Module]:
    """Stem and two stages of two blocks, 16 and 20 channels wide."""
    first, second = inner
    stride = 2 if dilation == 1 else 1
    return [
        nn.Sequential(Conv(3, 12, 7, 2), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(
            Bottleneck(12, first, 16, groups=groups), Bottleneck(16, first, 16, groups=groups)
        ),
        nn.Sequential(
            Bottleneck(16, second, 20, stride, groups, dilation),
            Bottleneck(20, second, 20, 1, groups, dilation),
        ),
    ]


def resnet(inner: tuple[int, int] = (10, 14), groups: int = 1) -> nn.Module:
    """ResNet; ResNeXt with groups; Wide ResNet with wide inner layers."""
    return Classifier(nn.Sequential(*resnet_stages(inner, groups)), nn.Linear(20, CLASSES))


class RegNetBlock(nn.Module):
    """Grouped 3 x 3 with a squeeze behind it."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, act: Activation):
        super().__init__()
        changes = stride > 1 or inputs != outputs
        self.proj = Conv(inputs, outputs, 1, stride, act=None) if changes else None
        self.f = nn.Sequential(
            Conv(inputs, outputs, 1, act=act),
            Conv(outputs, outputs, 3, stride, groups, act=act),
            SqueezeExcite(outputs, 5, act),
            Conv(outputs, outputs, 1, act=None),
        )
        self.activation = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.proj is None else self.proj(x)
        return self.activation(skip + self.f(x))


def regnet() -> nn.Module:
    """RegNet Y: group width 6."""
    blocks = [
        RegNetBlock(10, 18, 2, 3, RELU),
        RegNetBlock(18, 18, 1, 3, RELU),
        RegNetBlock(18, 24, 2, 4, RELU),
    ]
    return Classifier(nn.Sequential(Conv(3, 10, 3, 2), *blocks), nn.Linear(24, CLASSES))


class InvertedResidual(nn.Module):
    """Wide inside: 1 x 1, depthwise, squeeze, linear 1 x 1; the input added where it fits."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int = 1,
        kernel: int = 3,
        act: Activation = RELU6,
        squeeze: nn.Module | None = None,
        drop: bool = False,
    ) -> None:
        super().__init__()
        layers = [] if inner == inputs else [Conv(inputs, inner, 1, act=act)]
        layers.append(Conv(inner, inner, kernel, stride, inner, act=act))
        layers += [] if squeeze is None else [squeeze]
        layers.append(Conv(inner, outputs, 1, act=None))
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs
        self.drop = StochasticDepth() if drop else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv(x)
        return x + self.drop(out) if self.adds else out


def mobilenet_v2() -> nn.Module:
    features = nn.Sequential(
        Conv(3, 12, 3, 2, act=RELU6),
        InvertedResidual(12, 12, 10),
        InvertedResidual(10, 30, 14, 2),
        InvertedResidual(14, 34, 14),
        Conv(14, 38, 1, act=RELU6),
    )
    return Classifier(features, nn.Sequential(nn.Dropout(0.2), nn.Linear(38, CLASSES)))


def mobilenet_v3() -> nn.Module:
    def squeeze(inner: int) -> nn.Module:
        return SqueezeExcite(inner, inner // 4, RELU, nn.Hardsigmoid)

    features = nn.Sequential(
        Conv(3, 12, 3, 2, act=HARDSWISH),
        InvertedResidual(12, 12, 12, act=RELU, squeeze=squeeze(12)),
        InvertedResidual(12, 28, 16, 2, act=RELU),
        InvertedResidual(16, 32, 16, 1, 5, HARDSWISH, squeeze(32)),
        Conv(16, 36, 1, act=HARDSWISH),
    )
    head = nn.Sequential(
        nn.Linear(36, 44),
        nn.Hardswish(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(44, CLASSES),
    )
    return Classifier(features, head)


def mnasnet() -> nn.Module:
    features = nn.Sequential(
        Conv(3, 12, 3, 2),
        Conv(12, 12, 3, groups=12),
        Conv(12, 10, 1, act=None),
        InvertedResidual(10, 30, 14, 2, act=RELU),
        InvertedResidual(14, 42, 14, 1, 5, act=RELU),
        Conv(14, 38, 1),
    )
    head = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(38, CLASSES))
    return Classifier(features, head, mean=True)


class FusedInvertedResidual(nn.Module):
    """The expansion and the depthwise convolution as one, in EfficientNet V2."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv(channels, inner, 3, act=SILU), Conv(inner, channels, 1, act=None)
        )
        self.drop = StochasticDepth()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.drop(self.block(x))
        result += x
        return result


def efficientnet(fused: bool = False) -> nn.Module:
    """EfficientNet, or V2 with its fused blocks."""

    def squeeze(inner: int, squeezed: int) -> nn.Module:
        return SqueezeExcite(inner, squeezed, SILU)

    features = nn.Sequential(
        Conv(3, 14, 3, 2, act=SILU),
        FusedInvertedResidual(14, 22)
        if fused
        else InvertedResidual(14, 14, 14, act=SILU, squeeze=squeeze(14, 4), drop=True),
        InvertedResidual(14, 30, 18, 2, 5, SILU, squeeze(30, 5)),
        InvertedResidual(18, 40, 18, 1, 3, SILU, squeeze(40, 6), drop=True),
        Conv(18, 44, 1, act=SILU),
    )
    head = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(44, CLASSES))
    return Classifier(features, head)


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channels dealt out over the groups."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half is computed; then they are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = (
            nn.Sequential(Conv(inputs, inputs, 3, 2, inputs, act=None), Conv(inputs, half, 1))
            if stride > 1
            else None
        )
        self.branch2 = nn.Sequential(
            Conv(inputs if stride > 1 else half, half, 1),
            Conv(half, half, 3, stride, half, act=None),
            Conv(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch1 is None:
            passed, computed = x.chunk(2, dim=1)
            out = torch.cat((passed, self.branch2(computed)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


def shufflenet_v2() -> nn.Module:
    features = nn.Sequential(
        Conv(3, 12, 3, 2),
        nn.MaxPool2d(3, 2, 1),
        ShuffleUnit(12, 20, 2),
        ShuffleUnit(20, 20, 1),
        ShuffleUnit(20, 20, 1),
        Conv(20, 38, 1),
    )
    return Classifier(features, nn.Linear(38, CLASSES), mean=True)
