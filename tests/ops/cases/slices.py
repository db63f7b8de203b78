"""Slices, splits, concatenations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def interleaved(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def pieces(name: str, inner: Any, want: str, down: int, **options: Any) -> Case:
    return mid(name, lambda m, x: inner(x), want, down=down, **options)


def _gated(parts: tuple[Tensor, ...]) -> Tensor:
    return F.silu(parts[0]) * parts[1]


CASES = [
    pieces("slice", lambda x: x[..., :5], "(5 + 7)", 5),
    pieces("slice-negative", lambda x: x[..., -5:], "(7 + 5)", 5),
    pieces("slice-middle", lambda x: x[..., 2:-3], "(2 + 7 + 3)", 7),
    pieces("slice-beyond", lambda x: x[..., 2:99], "(2 + 10)", 10),
    pieces("slice-halves", lambda x: x[..., :7] * x[..., 5:], "(2 + 3 + 2 + 3 + 2)", 7),
    pieces(
        "slice-step",
        lambda x: x[..., ::2] + x[..., 1::2].sin(),
        "(6 x 2!)",
        6,
        why={"up.weight[0]": "n-th unit"},
    ),
    pieces(
        "slice-step-negative",
        lambda x: x[..., -12::3] + x[..., -11::3] * x[..., -10::3],
        "(4 x 3!)",
        4,
    ),
    pieces("slice-step-uneven", lambda x: x[..., 1:10:2], "12!", 5, why={"up.weight[0]": "slice"}),
    pieces(  # three rows of four, cut in the middle of the second
        "split-through-a-block",
        lambda x: _gated(x.unflatten(-1, (3, 4)).flatten(-2).split(6, -1)),
        "(2 + 2 + 2 + 2 + 2 + 2)",
        6,
    ),
    pieces("rotate-half", lambda x: x * 0.5 + rotate_half(x) * 2, "(6 + 6)", 12),
    pieces("interleaved-rotary", lambda x: x * 0.5 + interleaved(x) * 2, "(6 x 2!)", 12),
    pieces(
        "partial-rotary",
        lambda x: torch.cat((rotate_half(x[..., :4]), x[..., 4:]), -1) + x,
        "(2 + 2 + 8)",
        12,
    ),
    pieces("narrow", lambda x: x.narrow(-1, 3, 5), "(3 + 5 + 4)", 5),
    pieces("narrow-negative", lambda x: x.narrow(2, -5, 5), "(7 + 5)", 5),
    pieces("narrow-symbolic", lambda x: x.narrow(1, 1, x.shape[1] - 1), "12", 12),
    pieces("narrow-symbolic-start", lambda x: x.narrow(1, x.shape[1] - 2, 2), "12", 12),
    pieces("split", lambda x: _gated(x.split(6, -1)), "(6 + 6)", 6),
    pieces(
        "split-default-axis",
        lambda x: x.movedim(-1, 0).split(4)[1].movedim(0, -1),
        "(4 + 4 + 4)",
        4,
    ),
    pieces(
        "split-uneven",
        lambda x: torch.cat((x.split(5, 2)[2], x.split(5, 2)[0]), -1),
        "(5 + 5 + 2)",
        7,
    ),
    pieces("split-sizes", lambda x: x.split([3, 4, 5], -1)[1] * 2, "(3 + 4 + 5)", 4),
    pieces("unsafe-split", lambda x: _gated(torch.unsafe_chunk(x, 2, -1)), "(6 + 6)", 6),
    pieces("chunk", lambda x: _gated(x.chunk(2, dim=-1)), "(6 + 6)", 6),
    pieces("chunk-uneven", lambda x: torch.cat(x.chunk(5, -1)[1:], -1), "(3 + 3 + 3 + 3)", 9),
    pieces(
        "tensor-split", lambda x: torch.cat(x.tensor_split(5, -1)[:2], -1), "(3 + 3 + 2 + 2 + 2)", 6
    ),
    pieces("tensor-split-indices", lambda x: x.tensor_split((2, 5), -1)[1], "(2 + 3 + 7)", 3),
    pieces("glu", lambda x: F.glu(x, -1), "(6 + 6)", 6),
    pieces("list-run", lambda x: x[..., [3, 4, 5, 6]], "(3 + 4 + 5)", 4),
    pieces(
        "list-scattered",
        lambda x: x[..., [0, 3, 4]],
        "12!",
        3,
        why={"up.weight[0]": "looked up by index"},
    ),
    pieces(
        "cat", lambda x: torch.cat((x, x.sin()), -1), "12", 24, axes={"down.weight[1]": "(12 + 12)"}
    ),
    pieces("cat-of-parts", lambda x: torch.concat((x[..., 8:], x[..., :8]), dim=2), "(8 + 4)", 12),
    pieces("cat-sequence", lambda x: torch.cat((x, x.sin()), 1), "12", 12),
    pieces("cat-legacy-empty", lambda x: torch.cat((x.new_empty(0), x), -1), "12", 12),
    pieces("stack", lambda x: torch.stack((x, x.sin()), 1).sum(1), "12", 12),
    pieces(
        "stack-flat",
        lambda x: torch.stack((x, x.sin()), 2).flatten(2),
        "12",
        24,
        axes={"down.weight[1]": "(2! x 12)"},
    ),
    pieces(
        "select",
        lambda x: x.unflatten(-1, (3, 4))[..., 1, :],
        "(3! x 4)",
        4,
        why={"up.weight[0]": "one place"},
    ),
    pieces(
        "unbind",
        lambda x: _gated(x.unflatten(-1, (2, 6)).unbind(2)),
        "(2! x 6)",
        6,
        why={"up.weight[0]": "every place"},
    ),
    mid(
        "concatenated-branches",
        lambda m, x: torch.cat((x[..., :4], x[..., 4:].sin()), -1) * m.s,
        "(4 + 8)",
        extra=lambda: {"s": parameter(12)},
        axes={"s[0]": "(4 + 8)"},
    ),
    mid(
        "stack-parameter",
        lambda m, x: torch.stack((x[:, 0], m.s.expand(x.shape[0], -1)), 1).sum(1),
        extra=lambda: {"s": parameter(12)},
        axes={"s[0]": "12"},
    ),
    mid(
        "class-token",
        lambda m, x: torch.cat((m.s.expand(x.shape[0], -1, -1), x), 1),
        extra=lambda: {"s": parameter(1, 1, 12)},
        axes={"s[2]": "12"},
    ),
    mid(
        "sliced-parameter",
        lambda m, x: x * m.s[:12],
        extra=lambda: {"s": parameter(20)},
        axes={"s[0]": "(12 + 8)"},
    ),
    mid(
        "positions",
        lambda m, x: x + m.s[: x.shape[1]],
        extra=lambda: {"s": parameter(30, 12)},
        axes={"s[0]": "30!", "s[1]": "12"},
        why={"s[0]": "symbolic"},
    ),
    mid(
        "linear-on-slices",
        lambda m, x: F.linear(x, m.s[:4], m.t[2:]),
        down=4,
        extra=lambda: {"s": parameter(9, 12), "t": parameter(6)},
        axes={"s[0]": "(4 + 5)", "s[1]": "12", "t[0]": "(2 + 4)"},
    ),
    mid("padded", lambda m, x: F.pad(x, (2, 1)), down=15, axes={"down.weight[1]": "(2 + 12 + 1)"}),
    mid("padded-value", lambda m, x: F.pad(x, (0, 0, 2, 0), value=0.5)),
    mid(
        "padded-reflect",
        lambda m, x: F.pad(x, (2, 1), mode="reflect"),
        "12!",
        down=15,
        why={"up.weight[0]": "padded"},
    ),
    mid("shift", lambda m, x: F.pad(x, (0, 0, 1, -1)) + x),
    mid(
        "diagonal",
        lambda m, x: x.unflatten(-1, (4, 3)).diagonal(0, 2, 3),
        "(4! x 3!)",
        down=3,
        why={"up.weight[0]": "a diagonal of this axis"},
    ),
    mid(
        "unfold",
        lambda m, x: x.unfold(-1, 3, 3)[..., 0],
        "12!",
        down=4,
        why={"up.weight[0]": "a window slides"},
    ),
]
