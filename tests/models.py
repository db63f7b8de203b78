"""Small models in plain PyTorch: what the zoo needs beyond transformers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    """A plain stack of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 7)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ConvUnit(nn.Sequential):
    """Convolution, batch norm and, unless it ends a branch, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, last: bool = False, **options: int
    ) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
        super().__init__(convolution, nn.BatchNorm2d(outputs), *(() if last else (nn.ReLU(),)))


class ResidualBranch(nn.Module):
    """``relu(shortcut(x) + branch(x))``."""

    def __init__(self, *units: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*units)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


class ResidualConvNet(nn.Module):
    """A ResNet in small: plain, depthwise, grouped and downsampling blocks, flatten into linear.

    Images of shape (batch, 3, 16, 16) to 7 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 12, 3)
        self.plain = ResidualBranch(ConvUnit(12, 10, 3), ConvUnit(10, 12, 3, last=True))
        self.depthwise = ResidualBranch(
            ConvUnit(12, 14, 1), ConvUnit(14, 14, 3, groups=14), ConvUnit(14, 12, 1, last=True)
        )
        self.grouped = ResidualBranch(
            ConvUnit(12, 22, 1), ConvUnit(22, 26, 3, groups=2), ConvUnit(26, 12, 1, last=True)
        )
        self.down = ResidualBranch(
            ConvUnit(12, 18, 3, stride=2),
            ConvUnit(18, 16, 3, last=True),
            shortcut=ConvUnit(12, 16, 1, last=True, stride=2),
        )
        self.hidden = nn.Linear(16 * 2 * 2, 21)
        self.head = nn.Linear(21, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.stem(image), 2)
        x = self.down(self.grouped(self.depthwise(self.plain(x))))
        x = torch.flatten(F.avg_pool2d(x, 2), 1)
        return self.head(F.relu(self.hidden(x)))


class PlaneRotary(nn.Module):
    """2-D rotary embedding: each half of a head turns with positions of its own."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        inverse = 10000.0 ** -(torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
        self.register_buffer("inv_freq", inverse, persistent=False)

    def turn(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = positions[:, None, :, None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        first = self.turn(first, position_ids[:, 0])
        return torch.cat((first, self.turn(second, position_ids[:, 1])), dim=-1)


class PlaneAttention(nn.Module):
    """Attention over a fused projection that holds query, key and value head by head."""

    def __init__(self, hidden: int, heads: int, head_dim: int, attention: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.attention = heads, head_dim, attention
        self.query_key_value = nn.Linear(hidden, heads * 3 * head_dim)
        self.dense = nn.Linear(heads * head_dim, hidden)

    def forward(
        self,
        x: torch.Tensor,
        rotary: PlaneRotary,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        fused = self.query_key_value(x).view(batch, length, self.heads, 3 * self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in fused.chunk(3, dim=-1))
        query, key = rotary(query, position_ids), rotary(key, position_ids)
        if self.attention == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=~attention_mask)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(self.head_dim)
            mixed = self.masked(scores, attention_mask).softmax(dim=-1) @ value
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))

    def masked(self, scores: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(attention_mask, -10000.0)


class PlaneBlock(nn.Module):
    """A block whose residual is the scaled, normalised input: ``alpha * x + f(x)``."""

    def __init__(
        self, hidden: int, heads: int, head_dim: int, inner: int, alpha: float, attention: str
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.input_layernorm = nn.LayerNorm(hidden)
        self.attention = PlaneAttention(hidden, heads, head_dim, attention)
        self.post_attention_layernorm = nn.LayerNorm(hidden)
        self.dense_h_to_4h = nn.Linear(hidden, inner)
        self.dense_4h_to_h = nn.Linear(inner, hidden)

    def forward(
        self,
        x: torch.Tensor,
        rotary: PlaneRotary,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        x = self.input_layernorm(x)
        x = self.alpha * x + self.attention(x, rotary, position_ids, attention_mask)
        x = self.post_attention_layernorm(x)
        return self.alpha * x + self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class PlaneModel(nn.Module):
    """A language model of the ChatGLM-6B make.

    It reads token ids of shape (batch, length); two positions of each, (batch, 2, length): in the
    text, and in what is written at one place of it; and what a token must not see, True in a mask
    of shape (batch, 1, length, length). Left out, these are such as for a text that goes on.
    """

    def __init__(self, attention: str = "eager", layers: int = 2) -> None:
        super().__init__()
        hidden, heads, head_dim, inner, vocabulary = 36, 6, 8, 40, 101
        self.word_embeddings = nn.Embedding(vocabulary, hidden)
        self.rotary = PlaneRotary(head_dim)
        alpha = math.sqrt(2 * layers)
        self.layers = nn.ModuleList(
            PlaneBlock(hidden, heads, head_dim, inner, alpha, attention) for _ in range(layers)
        )
        self.final_layernorm = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if position_ids is None or attention_mask is None:
            position_ids, attention_mask = plane_inputs(input_ids, 3)
        x = self.word_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, self.rotary, position_ids, attention_mask)
        return self.lm_head(self.final_layernorm(x))


def plane_inputs(input_ids: torch.Tensor, given: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and mask of rows whose first tokens are given, which see one another."""
    batch, length = input_ids.shape
    places = torch.arange(length, device=input_ids.device)
    positions = torch.stack((places.clamp(max=given - 1), (places - given + 1).clamp(min=0)))
    hidden = places[:, None] < places
    hidden = hidden & (places >= given)
    return positions.expand(batch, 2, length), hidden.expand(batch, 1, length, length)
