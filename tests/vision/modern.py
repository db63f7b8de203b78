"""ConvNeXt and the vision transformers: ViT, Swin, MaxViT."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.vision.parts import ChannelNorm, Conv, Permute, StochasticDepth
from tests.vision.plain import CLASSES
from tests.vision.residual import SILU, InvertedResidual, SqueezeExcite


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm and MLP over channels that stand last, scaled and added."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, inner),
            nn.GELU(),
            nn.Linear(inner, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1) * 1e-6)
        self.drop = StochasticDepth()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.drop(self.layer_scale * self.block(x))
        result += x
        return result


def convnext() -> nn.Module:
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 14, 4, 4), ChannelNorm(14, eps=1e-6)),
        ConvNeXtBlock(14, 40),
        nn.Sequential(ChannelNorm(14, eps=1e-6), nn.Conv2d(14, 22, 2, 2)),
        ConvNeXtBlock(22, 46),
        ConvNeXtBlock(22, 46),
    )
    head = nn.Sequential(ChannelNorm(22, eps=1e-6), nn.Flatten(1), nn.Linear(22, CLASSES))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), head)


class Perceptron(nn.Sequential):
    """The MLP of a transformer, with dropout after both layers."""

    def __init__(self, channels: int, inner: int, inplace: bool | None = None) -> None:
        flag = {} if inplace is None else {"inplace": inplace}
        super().__init__(
            nn.Linear(channels, inner),
            nn.GELU(),
            nn.Dropout(0.1, **flag),
            nn.Linear(inner, channels),
            nn.Dropout(0.1, **flag),
        )


class EncoderBlock(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, channels: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(channels, heads, dropout=0.1, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.ln_2, self.mlp = nn.LayerNorm(channels, eps=1e-6), Perceptron(channels, inner)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x) + input
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Patches and a class token, with a position of their own each: one picture size only."""

    def __init__(self, size: int = 32, patch: int = 8, channels: int = 30, heads: int = 5) -> None:
        super().__init__()
        self.size = size
        self.conv_proj = nn.Conv2d(3, channels, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        tokens = (size // patch) ** 2 + 1
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, channels).normal_(std=0.02))
        self.layers = nn.Sequential(*(EncoderBlock(channels, heads, 44) for _ in range(2)))
        self.ln, self.head = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[2] == self.size, f"expected a height of {self.size}")
        torch._assert(x.shape[3] == self.size, f"expected a width of {self.size}")
        x = self.conv_proj(x)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.layers(x + self.pos_embedding)
        return self.head(self.ln(x)[:, 0])


def relative_positions(side: int) -> torch.Tensor:
    """For each pair of places in a window the number of their offset, shape (side^2 * side^2,)."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offsets = places[:, None] - places[None, :] + side - 1
    return (offsets[..., 0] * (2 * side - 1) + offsets[..., 1]).flatten()


class WindowAttention(nn.Module):
    """Attention inside windows that are shifted, with a bias by relative position.

    Channels stand last. ``cosine`` is the attention of Swin V2: cosines with a learned scale, and a
    bias that a small MLP computes from the offsets.
    """

    def __init__(
        self, channels: int, heads: int, side: int, shift: int, cosine: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.side, self.shift, self.cosine = heads, side, shift, cosine
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.register_buffer("index", relative_positions(side))
        if cosine:
            self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, 26), nn.ReLU(inplace=True), nn.Linear(26, heads, bias=False)
            )
            span = torch.arange(1 - side, side).float()
            self.register_buffer("offsets", torch.cartesian_prod(span, span) / side)
        else:
            self.table = nn.Parameter(0.1 * torch.randn((2 * side - 1) ** 2, heads))

    def bias(self) -> torch.Tensor:
        places = self.side * self.side
        table = 16 * torch.sigmoid(self.cpb_mlp(self.offsets)) if self.cosine else self.table
        bias = table[self.index].view(places, places, -1)
        return bias.permute(2, 0, 1).contiguous().unsqueeze(0)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = input.shape
        side = self.side
        right, below = (side - width % side) % side, (side - height % side) % side
        x = F.pad(input, (0, 0, 0, right, 0, below))
        _, padded_height, padded_width, _ = x.shape
        shifts = [self.shift, self.shift]
        if side >= padded_height:
            shifts[0] = 0
        if side >= padded_width:
            shifts[1] = 0
        if sum(shifts) > 0:
            x = torch.roll(x, shifts=(-shifts[0], -shifts[1]), dims=(1, 2))
        rows, columns = padded_height // side, padded_width // side
        x = x.view(batch, rows, side, columns, side, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch * rows * columns, side * side, channels)
        x = self.attend(x, self.mask(x, padded_height, padded_width, shifts))
        x = x.view(batch, rows, columns, side, side, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, padded_height, padded_width, channels)
        if sum(shifts) > 0:
            x = torch.roll(x, shifts=(shifts[0], shifts[1]), dims=(1, 2))
        return x[:, :height, :width, :].contiguous()

    def attend(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        windows, places, channels = x.shape
        qkv = self.qkv(x).reshape(windows, places, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.cosine:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * torch.clamp(self.logit_scale, max=4.6).exp()
        else:
            scores = (q * (channels // self.heads) ** -0.5).matmul(k.transpose(-2, -1))
        scores = scores + self.bias()
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(windows // count, count, self.heads, places, places)
            scores = scores + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, places, places)
        x = F.softmax(scores, dim=-1).matmul(v).transpose(1, 2).reshape(windows, places, channels)
        return self.proj(x)

    def mask(
        self, x: torch.Tensor, height: int, width: int, shifts: list[int]
    ) -> torch.Tensor | None:
        """Keeps apart what the shift brought into one window."""
        if sum(shifts) == 0:
            return None
        side, region = self.side, x.new_zeros((height, width))
        number = 0
        for top, bottom in ((0, -side), (-side, -shifts[0]), (-shifts[0], None)):
            for left, right in ((0, -side), (-side, -shifts[1]), (-shifts[1], None)):
                region[top:bottom, left:right] = number
                number += 1
        region = region.view(height // side, side, width // side, side).permute(0, 2, 1, 3)
        region = region.reshape(-1, side * side)
        apart = region.unsqueeze(1) - region.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)


class SwinBlock(nn.Module):
    """Window attention and MLP; V2 has its norms behind them."""

    def __init__(
        self, channels: int, heads: int, inner: int, shift: int, cosine: bool = False
    ) -> None:
        super().__init__()
        self.cosine = cosine
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, 4, shift, cosine)
        self.mlp, self.drop = Perceptron(channels, inner), StochasticDepth()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cosine:
            x = x + self.drop(self.norm1(self.attn(x)))
            return x + self.drop(self.norm2(self.mlp(x)))
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Each 2 x 2 places become one, four times as wide, and are projected."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width, _ = x.shape[-3:]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def swin(cosine: bool = False) -> nn.Module:
    """A stage of Swin and what merges its patches, or a stage of Swin V2: cosine attention."""
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 18, 4, 4), Permute(0, 2, 3, 1), nn.LayerNorm(18)),
        SwinBlock(18, 3, 40, 0, cosine),
        SwinBlock(18, 3, 40, 2, cosine),
        nn.Linear(18, 28) if cosine else PatchMerging(18, 28),
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(28, CLASSES))
    return nn.Sequential(features, nn.LayerNorm(28), Permute(0, 3, 1, 2), head)


class PartitionAttention(nn.Module):
    """Attention in windows of ``side``, or over a grid of as many places: one picture size only."""

    def __init__(self, channels: int, heads: int, side: int, size: int, grid: bool) -> None:
        super().__init__()
        self.heads, self.side, self.grid = heads, size // side if grid else side, grid
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.to_qkv, self.merge = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.register_buffer("index", relative_positions(side))
        self.table = nn.Parameter(0.1 * torch.randn((2 * side - 1) ** 2, heads))
        self.mlp, self.drop = Perceptron(channels, 38), StochasticDepth()

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, windows, places, channels = x.shape
        width = channels // self.heads
        q, k, v = torch.chunk(self.to_qkv(x), 3, dim=-1)
        q, k, v = (
            part.reshape(batch, windows, places, self.heads, width).permute(0, 1, 3, 2, 4)
            for part in (q, k, v)
        )
        scores = torch.einsum("bghid,bghjd->bghij", q, k * channels**-0.5)
        bias = self.table[self.index].view(places, places, -1).permute(2, 0, 1).contiguous()
        mixed = torch.einsum("bghij,bghjd->bghid", F.softmax(scores + bias, dim=-1), v)
        return self.merge(mixed.permute(0, 1, 3, 2, 4).reshape(batch, windows, places, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        side = self.side
        x = x.reshape(batch, channels, height // side, side, width // side, side)
        x = x.permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(batch, (height // side) * (width // side), side * side, channels)
        if self.grid:
            x = torch.swapaxes(x, -2, -3)
        x = x + self.drop(self.attend(self.norm1(x)))
        x = x + self.drop(self.mlp(self.norm2(x)))
        if self.grid:
            x = torch.swapaxes(x, -2, -3)
        x = x.reshape(batch, height // side, width // side, side, side, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def maxvit() -> nn.Module:
    """MaxViT: a mobile block, attention in windows, attention over a grid."""
    return nn.Sequential(
        Conv(3, 16, 3, 2, act=nn.GELU),
        InvertedResidual(16, 34, 20, 2, act=nn.GELU, squeeze=SqueezeExcite(34, 5, SILU)),
        PartitionAttention(20, 4, 4, 8, grid=False),
        PartitionAttention(20, 4, 4, 8, grid=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(20),
        nn.Linear(20, 32),
        nn.Tanh(),
        nn.Linear(32, CLASSES, bias=False),
    )
