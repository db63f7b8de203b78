"""Boxes: one-stage detectors, a feature pyramid, DETR."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.vision.parts import SILU, Conv
from tests.vision.plain import CLASSES
from tests.vision.residual import resnet_stages


class YoloBottleneck(nn.Module):
    """Two convolutions, and the input added."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, inner, 3, act=SILU), Conv(inner, channels, 3, act=SILU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.cv2(self.cv1(x))


class SplitStage(nn.Module):
    """Half of the channels pass; of the other half every step is kept (C2f of YOLOv8)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, inner: int, count: int = 2) -> None:
        super().__init__()
        self.cv1 = Conv(inputs, 2 * hidden, 1, act=SILU)
        self.cv2 = Conv((2 + count) * hidden, outputs, 1, act=SILU)
        self.m = nn.ModuleList(YoloBottleneck(hidden, inner) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class CrossStage(nn.Module):
    """Two convolutions of one input, one with steps behind it, side by side (C3 of YOLOv5)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs, hidden, 1, act=SILU), Conv(inputs, hidden, 1, act=SILU)
        self.cv3 = Conv(2 * hidden, outputs, 1, act=SILU)
        self.m = nn.Sequential(YoloBottleneck(hidden, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class PooledPyramid(nn.Module):
    """One pooling after the other, each kept (SPPF)."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = (
            Conv(inputs, hidden, 1, act=SILU),
            Conv(4 * hidden, outputs, 1, act=SILU),
        )
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cv1(x)
        first = self.m(x)
        second = self.m(first)
        return self.cv2(torch.cat((x, first, second, self.m(second)), 1))


class AnchorHead(nn.Module):
    """Per level a convolution to anchors x (box, object, classes), anchors on an axis of their own.

    While training it gives that; else it gives boxes in pixels too, on a grid made from the size.
    """

    def __init__(self, widths: tuple[int, ...], anchors: int = 3) -> None:
        super().__init__()
        self.anchors, self.outputs = anchors, 5 + CLASSES
        self.m = nn.ModuleList(nn.Conv2d(width, anchors * self.outputs, 1) for width in widths)
        self.register_buffer("sizes", 4 + torch.rand(len(widths), anchors, 2))

    def forward(self, levels: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        boxes, raw = [], []
        for i, (level, convolution) in enumerate(zip(levels, self.m, strict=True)):
            x = convolution(level)
            batch, _, rows, columns = x.shape
            x = x.view(batch, self.anchors, self.outputs, rows, columns)
            x = x.permute(0, 1, 3, 4, 2).contiguous()
            raw.append(x)
            ys, xs = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
            y, column = torch.meshgrid(ys, xs, indexing="ij")
            grid = torch.stack((column, y), 2).expand(1, self.anchors, rows, columns, 2).float()
            size = self.sizes[i].view(1, self.anchors, 1, 1, 2)
            place, extent, rest = x.sigmoid().split((2, 2, self.outputs - 4), 4)
            place = (place * 2 + grid - 0.5) * 2.0 ** (i + 2)
            decoded = torch.cat((place, (extent * 2) ** 2 * size, rest), 4)
            boxes.append(decoded.view(batch, self.anchors * rows * columns, self.outputs))
        return torch.cat(boxes, 1), raw


class DecoupledHead(nn.Module):
    """Per level one branch for boxes and one for classes, side by side (YOLOv8)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.cv2 = nn.ModuleList(self.branch(width, 9, 8) for width in widths)
        self.cv3 = nn.ModuleList(self.branch(width, 11, CLASSES) for width in widths)

    def branch(self, inputs: int, inner: int, outputs: int) -> nn.Module:
        return nn.Sequential(Conv(inputs, inner, 3, act=SILU), nn.Conv2d(inner, outputs, 1))

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            torch.cat((box(x), classes(x)), 1)
            for x, box, classes in zip(levels, self.cv2, self.cv3, strict=True)
        ]


class Yolo(nn.Module):
    """Down with split stages, pooled pyramid, up by ``nn.Upsample``, and down again."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 10, 3, 2, act=SILU), Conv(10, 14, 3, 2, act=SILU))

        def stage(inputs: int, outputs: int) -> nn.Module:
            kind = SplitStage if split else CrossStage
            return kind(inputs, outputs, 8, 9)

        self.fine = stage(14, 16)
        self.coarse = nn.Sequential(
            Conv(16, 20, 3, 2, act=SILU), stage(20, 20), PooledPyramid(20, 18, 7)
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = stage(18 + 16, 17)
        self.down, self.last = Conv(17, 12, 3, 2, act=SILU), stage(12 + 18, 19)
        self.detect = DecoupledHead((17, 19)) if split else AnchorHead((17, 19))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor] | tuple[torch.Tensor, list]:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        up = self.up(torch.cat([self.upsample(coarse), fine], 1))
        return self.detect([up, self.last(torch.cat([self.down(up), coarse], 1))])


class RetinaNet(nn.Module):
    """A feature pyramid and one head that reads every level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = resnet_stages((10, 14), 1)
        self.inner = nn.ModuleList([nn.Conv2d(16, 13, 1), nn.Conv2d(20, 13, 1)])
        self.layer = nn.ModuleList([nn.Conv2d(13, 13, 3, padding=1) for _ in range(2)])
        self.extra = nn.Conv2d(13, 13, 3, 2, 1)
        self.tower = nn.Sequential(nn.Conv2d(13, 15, 3, padding=1), nn.GroupNorm(5, 15), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(15, 2 * CLASSES, 1), nn.Conv2d(15, 2 * 4, 1)

    def flat(self, x: torch.Tensor, outputs: int) -> torch.Tensor:
        batch, _, height, width = x.shape
        x = x.view(batch, -1, outputs, height, width).permute(0, 3, 4, 1, 2)
        return x.reshape(batch, -1, outputs)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.first(self.stem(x))
        top = self.inner[1](self.second(fine))
        lateral = self.inner[0](fine)
        lower = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        levels = [self.layer[0](lower), self.layer[1](top)]
        levels.append(self.extra(F.relu(levels[-1])))
        towers = [self.tower(level) for level in levels]
        return {
            "cls_logits": torch.cat([self.flat(self.classes(t), CLASSES) for t in towers], 1),
            "bbox_regression": torch.cat([self.flat(self.boxes(t), 4) for t in towers], 1),
        }


class DETR(nn.Module):
    """A convolutional backbone, ``nn.Transformer`` over its places, boxes from queries."""

    def __init__(self, channels: int = 24, queries: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*resnet_stages((10, 14), 1))
        self.conv = nn.Conv2d(20, channels, 1)
        self.transformer = nn.Transformer(channels, 4, 1, 1, 38, batch_first=True)
        self.query_embed = nn.Embedding(queries, channels)
        self.linear_class = nn.Linear(channels, CLASSES + 1)
        self.linear_bbox = nn.Sequential(
            nn.Linear(channels, 28), nn.ReLU(), nn.Linear(28, 26), nn.ReLU(), nn.Linear(26, 4)
        )

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of row and column, (1, height * width, channels)."""
        _, channels, height, width = x.shape
        count = channels // 4
        frequency = 100.0 ** (-torch.arange(count, device=x.device).float() / count)
        y = torch.arange(1, height + 1, device=x.device).float() / height
        column = torch.arange(1, width + 1, device=x.device).float() / width
        rows, columns = 6.28 * y[:, None] * frequency, 6.28 * column[:, None] * frequency
        waves = [
            rows.sin()[:, None].expand(-1, width, -1),
            rows.cos()[:, None].expand(-1, width, -1),
            columns.sin()[None].expand(height, -1, -1),
            columns.cos()[None].expand(height, -1, -1),
        ]
        return torch.cat(waves, -1).flatten(0, 1).unsqueeze(0)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.conv(self.backbone(x))
        source = h.flatten(2).permute(0, 2, 1) + self.positions(h)
        queries = self.query_embed.weight.unsqueeze(0).expand(x.shape[0], -1, -1)
        h = self.transformer(source, queries)
        return {
            "pred_logits": self.linear_class(h),
            "pred_boxes": self.linear_bbox(h).sigmoid(),
        }
