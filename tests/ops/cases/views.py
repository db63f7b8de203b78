"""Reshapes, reordering, repeats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.ops.single import mid, parameter


def _merged_symbol(m: Any, x: Tensor) -> Tensor:
    """Sizes that are read off a reshaped tensor, whose symbolic axis holds a prunable factor."""
    y = x.view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2).reshape(-1, x.shape[1], 4)
    y = y.view(y.shape[0], y.shape[1], 2, 2).reshape(y.shape[0], y.shape[1], 4)
    return y.view(x.shape[0], y.shape[0] // x.shape[0], -1, 4).transpose(1, 2).flatten(-2)


def _merged_product(m: Any, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    y = x.view(batch, length, 3, 4).transpose(1, 2).reshape(batch * 3, length, 4)
    z = y.sin().expand(batch * 3, length, 4)
    return z.view(batch, 3, length, 4).transpose(1, 2).reshape(batch, length, 12)


def _merged_sequence(m: Any, x: Tensor) -> Tensor:
    """Heads merged with batch as in nn.MultiheadAttention: length first."""
    batch, length, _ = x.shape
    y = x.transpose(0, 1).contiguous().view(length, batch * 3, 4).transpose(0, 1)
    return y.transpose(0, 1).reshape(length, batch, 12).transpose(0, 1)


HEADS = {
    "view": lambda x: x.view(x.shape[0], x.shape[1], 3, 4).cos().view(x.shape),
    "view-minus-one": lambda x: x.view(*x.shape[:2], 3, -1).cos().view(*x.shape[:2], -1),
    "view-minus-one-outer": lambda x: x.view(*x.shape[:2], -1, 4).cos().reshape(*x.shape[:2], 12),
    "view-minus-one-batch": lambda x: x.reshape(-1, 3, 4).cos().view(x.shape[0], -1, 12),
    "unflatten": lambda x: x.unflatten(-1, (3, 4)).cos().flatten(2),
    "unflatten-minus-one": lambda x: x.unflatten(2, (-1, 4)).cos().flatten(-2, -1),
    "view-as": lambda x: x.unflatten(-1, (3, 4)).cos().view_as(x),
    "reshape-as": lambda x: x.unflatten(-1, (3, 4)).cos().reshape_as(x),
    "transpose": lambda x: x.unflatten(-1, (3, 4)).transpose(-1, -2).transpose(2, 3).flatten(2),
    "permute": lambda x: (
        x.unflatten(-1, (3, 4)).permute(0, 2, 3, 1).permute(0, -1, 1, 2).flatten(2)
    ),
    "movedim": lambda x: x.unflatten(-1, (3, 4)).movedim(2, -1).movedim((-1, 1), (2, 1)).flatten(2),
    "moveaxis": lambda x: x.unflatten(-1, (3, 4)).moveaxis(2, -1).swapaxes(-1, 2).flatten(2),
    "swapdims": lambda x: x.unflatten(-1, (3, 4)).swapdims(2, 3).adjoint().flatten(2),
    "shuffle": lambda x: x.unflatten(-1, (3, 4)).mT.flatten(2).unflatten(-1, (4, 3)).mT.flatten(2),
    "unsqueeze": lambda x: (
        x.unsqueeze(1).unsqueeze(-1).squeeze(-1).squeeze(1).unflatten(-1, (3, 4)).flatten(2)
    ),
    "squeeze-none": lambda x: (
        x.unflatten(-1, (3, 4)).squeeze(2).squeeze(-1).squeeze((2, 3)).flatten(2)
    ),
    "squeeze-all": lambda x: x.unflatten(-1, (3, 4)).unsqueeze(1).squeeze().flatten(-2),
    "contiguous": lambda x: x.unflatten(-1, (3, 4)).mT.contiguous().mT.clone().flatten(2),
    "three-ways": lambda x: (
        x.view(*x.shape[:2], 3, 2, 2).flatten(-2).view(*x.shape[:2], 3, 4).flatten(2)
    ),
}


LAYOUTS = {"three-ways": "(3 x 2 x 2)"}


def _kv(repeat: Any) -> Any:
    """Three heads of four, each repeated twice by ``repeat`` along axis 2."""
    return lambda m, x: repeat(x.unflatten(-1, (3, 4))).flatten(2)


GROUPS_OF_TWO = {
    "repeat-interleave": lambda x: x.repeat_interleave(2, 2),
    "repeat-interleave-negative": lambda x: torch.repeat_interleave(x, 2, dim=-2),
    "repeat-kv": lambda x: x.unsqueeze(3).expand(-1, -1, 3, 2, 4).reshape(*x.shape[:2], 6, 4),
    "repeat-kv-minus-one": lambda x: x[:, :, :, None].expand(-1, -1, -1, 2, -1).flatten(2, 3),
    "repeat-kv-broadcast": lambda x: x.unsqueeze(3).broadcast_to(*x.shape[:3], 2, 4).flatten(2, 3),
    "repeat-kv-stack": lambda x: torch.stack([x, x], 3).flatten(2, 3),
}

CASES = [
    *(
        mid(f"heads-{name}", lambda m, x, f=f: f(x), LAYOUTS.get(name, "(3 x 4)"))
        for name, f in HEADS.items()
    ),
    *(mid(name, _kv(f), "(3 x 4)", down=24) for name, f in GROUPS_OF_TWO.items()),
    mid("merged-batch-heads", _merged_product, "(3 x 4)"),
    mid("merged-sequence-first", _merged_sequence, "(3 x 4)"),
    mid("merged-batch-read-back", _merged_symbol, "(3 x 2 x 2)"),
    mid(
        "view-as-alone",
        lambda m, x: x * m.s.view_as(m.t).flatten(),
        "(3 x 4)",
        extra=lambda: {"s": parameter(12), "t": parameter(3, 4)},
        axes={"s[0]": "(3 x 4)", "t[0]": "3", "t[1]": "4"},
    ),
    mid(
        "tile",
        lambda m, x: x.tile(2) * m.s,
        "12",
        down=24,
        extra=lambda: {"s": parameter(24)},
        axes={"s[0]": "(2 x 12)"},
    ),
    mid(
        "repeat",
        lambda m, x: x.repeat(1, 1, 2) * m.s,
        "12",
        down=24,
        extra=lambda: {"s": parameter(24)},
        axes={"s[0]": "(2 x 12)", "down.weight[1]": "(2 x 12)"},
    ),
    mid("repeat-new-axis", lambda m, x: x.repeat(3, 1, 1, 1).mean(0)),
    mid(
        "repeat-vector",
        lambda m, x: x * m.s.repeat(x.shape[0], 1, 2),
        "(2 x 6)",
        extra=lambda: {"s": parameter(6)},
        axes={"s[0]": "6"},
    ),
    mid(
        "repeat-interleave-vector",
        lambda m, x: x * m.s.repeat_interleave(2),
        "(6 x 2)",
        extra=lambda: {"s": parameter(6)},
        axes={"s[0]": "6"},
    ),
    mid(
        "expand-vector",
        lambda m, x: (
            x.unflatten(-1, (3, 4)).mul(m.s.view(1, 1, 1, 4).expand(1, 1, 3, 4)).flatten(2)
        ),
        "(3 x 4)",
        extra=lambda: {"s": parameter(4)},
        axes={"s[0]": "4"},
    ),
    mid("expand-one", lambda m, x: x + m.s.expand(12), extra=lambda: {"s": parameter(1)}),
    mid(
        "expand-scalar-axis",
        lambda m, x: x.mean(-1, keepdim=True).expand(-1, -1, 12) + x,
        exact=False,
    ),
    mid(
        "as-complex",
        lambda m, x: torch.view_as_real(
            torch.view_as_complex(x.view(*x.shape[:2], 3, 2, 2)) * 1j
        ).flatten(2),
        "(3 x 2 x 2!)",
        why={"up.weight[0]": "complex"},
    ),
    mid(
        "as-another-dtype",
        lambda m, x: x.view(torch.int32).float(),
        "12!",
        why={"up.weight[0]": "another dtype"},
    ),
    mid(
        "transposed-residual",
        lambda m, x: x.unflatten(-1, (3, 4)).mT.flatten(2) + x,
        "(3! x 4!)",
        why={"up.weight[0]": "align"},
    ),
]
