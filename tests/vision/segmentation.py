"""A class, or a colour, for each pixel."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from tests.vision.parts import Conv
from tests.vision.plain import CLASSES
from tests.vision.residual import mobilenet_v3, resnet_stages


class Stages(nn.ModuleDict):
    """Named stages that give what some of them made, by another name."""

    def __init__(self, stages: list[nn.Module], returned: dict[str, str]) -> None:
        super().__init__({f"stage{i}": stage for i, stage in enumerate(stages)})
        self.returned = returned

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = OrderedDict()
        for name, stage in self.items():
            x = stage(x)
            if name in self.returned:
                out[self.returned[name]] = x
        return out


class FCNHead(nn.Sequential):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__(Conv(inputs, inner), nn.Dropout(0.1), nn.Conv2d(inner, CLASSES, 1))


class Pooled(nn.Sequential):
    """The branch of ASPP that sees the whole picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), Conv(inputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-2:]
        for layer in self:
            x = layer(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """ASPP: one dilation beside another, and the pooled branch, side by side and projected."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                Conv(inputs, outputs, 1),
                Conv(inputs, outputs, 3, dilation=2),
                Conv(inputs, outputs + 2, 3, dilation=3),
                Pooled(inputs, outputs),
            ]
        )
        self.project = nn.Sequential(Conv(4 * outputs + 2, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(torch.cat([convolution(x) for convolution in self.convs], dim=1))


class Segmenter(nn.Module):
    """A backbone and its heads, whose outputs get the size of the picture."""

    def __init__(self, backbone: Stages, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        size = x.shape[-2:]
        features = self.backbone(x)
        result: dict[str, torch.Tensor] = OrderedDict()
        for name, head in self.heads.items():
            y = head(features[name])
            result[name] = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
        return result


def _dilated() -> Stages:
    return Stages(resnet_stages((10, 14), 1, dilation=2), {"stage1": "aux", "stage2": "out"})


def fcn() -> nn.Module:
    """FCN with its auxiliary head."""
    return Segmenter(_dilated(), {"out": FCNHead(20, 11), "aux": FCNHead(16, 9)})


def deeplab() -> nn.Module:
    """DeepLab V3."""
    head = nn.Sequential(PyramidPooling(20, 13), Conv(13, 15), nn.Conv2d(15, CLASSES, 1))
    return Segmenter(_dilated(), {"out": head})


class LRASPP(nn.Module):
    """A fine and a coarse level of a MobileNetV3; the coarse one is gated by its mean."""

    def __init__(self) -> None:
        super().__init__()
        features = mobilenet_v3().features
        assert isinstance(features, nn.Sequential)
        self.backbone = Stages([features[:2], features[2:]], {"stage0": "low", "stage1": "high"})
        self.cbr = Conv(36, 17, 1)
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(36, 17, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier, self.high_classifier = nn.Conv2d(12, 7, 1), nn.Conv2d(17, 7, 1)

    def forward(self, input: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.backbone(input)
        low, high = features["low"], features["high"]
        x = self.cbr(high) * self.scale(high)
        x = F.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        x = self.low_classifier(low) + self.high_classifier(x)
        x = F.interpolate(x, size=input.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": x}


class UNet(nn.Module):
    """Down and up again, with what was seen on the way down beside it.

    ``up``: ``transposed`` convolution, ``bilinear`` resizing with padding to fit, or ``crop``:
    convolutions without padding, and the skipped pictures cut to fit.
    """

    def __init__(self, up: str) -> None:
        super().__init__()
        self.up = up
        self.inc, self.down1, self.down2 = (
            self.double(3, 10),
            self.double(10, 14),
            self.double(14, 18),
        )
        if up == "bilinear":
            resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.up1, self.up2, wide = resize, resize, (18, 12)
        else:
            self.up1, self.up2 = nn.ConvTranspose2d(18, 14, 2, 2), nn.ConvTranspose2d(12, 10, 2, 2)
            wide = (14, 10)
        self.conv1, self.conv2 = self.double(14 + wide[0], 12), self.double(10 + wide[1], 11)
        self.outc = nn.Conv2d(11, CLASSES, 1)

    def double(self, inputs: int, outputs: int) -> nn.Module:
        padding = 0 if self.up == "crop" else 1
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers.append(nn.Conv2d(width, outputs, 3, padding=padding, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def join(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        rows, columns = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        top, left = rows // 2, columns // 2
        if self.up == "crop":
            skip = skip[:, :, top : top + x.size(2), left : left + x.size(3)]
        else:
            x = F.pad(x, [left, columns - left, top, rows - top])
        return torch.cat([skip, x], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.inc(x)
        second = self.down1(F.max_pool2d(first, 2))
        x = self.up1(self.down2(F.max_pool2d(second, 2)))
        x = self.conv1(self.join(x, second))
        return self.outc(self.conv2(self.join(self.up2(x), first)))


class ReducedAttention(nn.Module):
    """Attention whose keys and values come from a smaller picture (Segformer)."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.sr, self.norm = nn.Conv2d(channels, channels, ratio, ratio), nn.LayerNorm(channels)
        self.dense = nn.Linear(channels, channels)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        batch, _, channels = x.shape
        small = self.sr(x.permute(0, 2, 1).reshape(batch, channels, height, width))
        small = self.norm(small.reshape(batch, channels, -1).permute(0, 2, 1))
        q, k, v = (
            self.split(self.query(x)),
            self.split(self.key(small)),
            self.split(self.value(small)),
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.dense(mixed.transpose(1, 2).reshape(batch, -1, channels))


class MixBlock(nn.Module):
    """Attention and an MLP with a depthwise convolution inside."""

    def __init__(self, channels: int, heads: int, inner: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = ReducedAttention(channels, heads, ratio)
        self.dense1, self.dense2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), height, width)
        y = self.dense1(self.norm2(x)).transpose(1, 2)
        y = self.dwconv(y.view(y.shape[0], y.shape[1], height, width))
        return x + self.dense2(F.gelu(y.flatten(2).transpose(1, 2)))


class Segformer(nn.Module):
    """Two stages of overlapping patches, and an MLP that joins them at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.ModuleList([nn.Conv2d(3, 15, 7, 4, 3), nn.Conv2d(15, 20, 3, 2, 1)])
        self.norm = nn.ModuleList([nn.LayerNorm(15), nn.LayerNorm(20)])
        self.block = nn.ModuleList([MixBlock(15, 3, 34, 2), MixBlock(20, 4, 38, 1)])
        self.after = nn.ModuleList([nn.LayerNorm(15), nn.LayerNorm(20)])
        self.linear_c = nn.ModuleList([nn.Linear(15, 22), nn.Linear(20, 22)])
        self.fuse, self.classifier = Conv(44, 22, 1), nn.Conv2d(22, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: list[torch.Tensor] = []
        for patch, norm, block, after in zip(
            self.patch, self.norm, self.block, self.after, strict=True
        ):
            x = patch(x)
            _, channels, height, width = x.shape
            y = after(block(norm(x.flatten(2).transpose(1, 2)), height, width))
            x = y.transpose(1, 2).reshape(-1, channels, height, width).contiguous()
            states.append(x)
        size = states[0].shape[2:]
        levels = []
        for state, linear in zip(states, self.linear_c, strict=True):
            _, _, height, width = state.shape
            y = linear(state.flatten(2).transpose(1, 2)).permute(0, 2, 1)
            y = y.reshape(state.shape[0], -1, height, width)
            levels.append(F.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return self.classifier(self.fuse(torch.cat(levels[::-1], dim=1)))


class SuperResolution(nn.Module):
    """EDSR: residual blocks between two convolutions, then pixels out of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 14, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(14, inner, 3, padding=1),
                nn.ReLU(True),
                nn.Conv2d(inner, 14, 3, padding=1),
            )
            for inner in (16, 18)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(14, 40, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(10, 3, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x = self.head(x)
        for block in self.body:
            x = x + block(x).mul(0.1)
        return self.tail(first + x)
