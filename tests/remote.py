"""A language model whose code is not in transformers, as ``trust_remote_code=True`` brings one.

It is of the make of ChatGLM-6B: (length, batch, hidden) inside, positions in two dimensions, a mask
of shape (batch, 1, length, length), and two lines that read numbers out of tensors.
"""

from __future__ import annotations

import math
import types

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.models import plane_inputs

BEGIN = 100  # the token that what is written begins with


class RemoteConfig(PreTrainedConfig):
    model_type = "remote"
    vocab_size: int = 101
    hidden_size: int = 48
    num_layers: int = 2
    num_attention_heads: int = 6
    inner_hidden_size: int = 40
    max_sequence_length: int = 64


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        inverse = 10000.0 ** -(torch.arange(0, dim, 2).float() / dim)
        self.register_buffer("inv_freq", inverse, persistent=False)

    def table(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.outer(torch.arange(length, device=self.inv_freq.device), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, seq_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.table(int(seq_len))


class SelfAttention(nn.Module):
    def __init__(self, config: RemoteConfig, number: int) -> None:
        super().__init__()
        self.heads, self.coefficient = config.num_attention_heads, float(number + 1)
        self.head_dim = config.hidden_size // self.heads
        self.rotary_emb = RotaryEmbedding(self.head_dim // 2, config.max_sequence_length)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def masked(self, scores: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if not (attention_mask == 0).all():
            scores.masked_fill_(attention_mask, -10000.0)
        return scores

    def turned(self, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        cos, sin = self.rotary_emb(position_ids.max() + 1)
        halves = []
        for which, half in enumerate(x.chunk(2, dim=-1)):
            places = position_ids[:, which].transpose(0, 1)
            c, s = (F.embedding(places, table).unsqueeze(2) for table in (cos, sin))
            a, b = half.chunk(2, dim=-1)
            halves.append(half * c + torch.cat((-b, a), dim=-1) * s)
        return torch.cat(halves, dim=-1)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        length, batch, _ = x.shape
        fused = self.query_key_value(x).view(length, batch, self.heads, 3 * self.head_dim)
        query, key, value = fused.chunk(3, dim=-1)
        query, key = self.turned(query, position_ids), self.turned(key, position_ids)
        query = query / (math.sqrt(self.head_dim) * self.coefficient)
        query, key, value = (
            each.reshape(length, batch * self.heads, self.head_dim).transpose(0, 1)
            for each in (query, key, value)
        )
        zero = torch.zeros(1, 1, 1, dtype=query.dtype, device=query.device)
        scores = torch.baddbmm(zero, query, key.transpose(1, 2), beta=0.0, alpha=1.0)
        scores = self.masked(scores.view(batch, self.heads, length, length), attention_mask)
        weights = (scores.float() * self.coefficient).softmax(dim=-1).type(value.dtype)
        mixed = torch.bmm(weights.view(batch * self.heads, length, length), value)
        mixed = mixed.view(batch, self.heads, length, self.head_dim).permute(2, 0, 1, 3)
        return self.dense(mixed.contiguous().view(length, batch, self.heads * self.head_dim))


class Block(nn.Module):
    def __init__(self, config: RemoteConfig, number: int) -> None:
        super().__init__()
        self.alpha = math.sqrt(2 * config.num_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.attention = SelfAttention(config, number)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        x = self.input_layernorm(x)
        x = self.alpha * x + self.attention(x, position_ids, attention_mask)
        x = self.post_attention_layernorm(x)
        return self.alpha * x + self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x)))


class RemoteForConditionalGeneration(PreTrainedModel):
    config_class = RemoteConfig

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        if position_ids is None or attention_mask is None:
            position_ids, attention_mask = inputs_of(input_ids)
        x = self.word_embeddings(input_ids).transpose(0, 1)
        for layer in self.layers:
            x = layer(x, position_ids, attention_mask)
        return CausalLMOutput(logits=self.lm_head(self.final_layernorm(x)).transpose(0, 1))


def inputs_of(input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and mask of rows with one :data:`BEGIN` each."""
    rows = [plane_inputs(row[None], row.tolist().index(BEGIN)) for row in input_ids]
    positions, masks = zip(*rows, strict=True)
    return torch.cat(positions), torch.cat(masks)


def rows(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids, of which one in each row is :data:`BEGIN`, at another place in each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(BEGIN, (batch, length), generator=generator)
    ids[torch.arange(batch), 2 + torch.arange(batch) % (length - 3)] = BEGIN
    return ids


def original() -> RemoteForConditionalGeneration:
    """What ``from_pretrained(folder, trust_remote_code=True)`` gives."""
    torch.manual_seed(0)
    return RemoteForConditionalGeneration(RemoteConfig()).eval()


def build() -> RemoteForConditionalGeneration:
    """The same, without the two lines."""
    model = original()
    for layer in model.modules():
        if isinstance(layer, RotaryEmbedding):
            layer.forward = types.MethodType(lambda self, _: self.table(self.longest), layer)  # type: ignore[method-assign]
        if isinstance(layer, SelfAttention):
            layer.masked = types.MethodType(  # type: ignore[method-assign]
                lambda _, scores, mask: scores.masked_fill(mask, -10000.0), layer
            )
    return model
