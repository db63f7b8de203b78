"""Convolutions, pooling, resampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.ops.single import Case, parameter

IMAGE = ((2, 3, 9, 9),)


def conv(
    name: str, inner: Any, want: str = "12", *, out: int = 12, axes: Any = None, **options: Any
) -> Case:
    """``down(inner(m, up(x)))`` with 1x1 convolutions, x having 3 channels and 9 x 9 pixels."""
    extra = options.pop("extra", dict)
    return Case(
        name,
        lambda: {"up": nn.Conv2d(3, 12, 1), "down": nn.Conv2d(out, 5, 1), **extra()},
        lambda m, x: m.down(inner(m, m.up(x))),
        {"up.weight[0]": want, "up.bias[0]": want, **(axes or {})},
        **{"inputs": IMAGE, **options},
    )


def layer(
    name: str, make: Any, axes: dict[str, str], want: str = "12", out: int = 8, **options: Any
) -> Case:
    return conv(
        name,
        lambda m, x: m.c(x).relu(),
        want,
        out=out,
        extra=lambda: {"c": make()},
        axes={f"c.{site}": text for site, text in axes.items()},
        **options,
    )


def flat(name: str, inner: Any, pixels: int, want: str = "12", **options: Any) -> Case:
    """Into a linear layer after ``inner``."""
    return Case(
        name,
        lambda: {"up": nn.Conv2d(3, 12, 3), "down": nn.Linear(12 * pixels, 5)},
        lambda m, x: m.down(inner(m.up(x))),
        {"up.weight[0]": want, "up.weight[2]": "3!"},
        **{"inputs": IMAGE, **options},
    )


POOLS = {
    "max-pool": lambda x: F.max_pool2d(x, 2),
    "max-pool-indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "avg-pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "lp-pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive-avg": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive-avg-one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive-max": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    "global-mean": lambda x: x.mean((2, 3), keepdim=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, (5, 7), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic"),
    "pad": lambda x: F.pad(x, (1, 2, 3, 0)),
    "pad-reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "pad-circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "pad-module": nn.ReplicationPad2d(2),
    "crop": lambda x: x[:, :, 1:-1, ::2],
    "pixels-as-tokens": lambda x: x.flatten(2).mT.softmax(1).mT.unflatten(2, (9, 9)),
    "instance-norm": lambda x: F.instance_norm(x),
    "bilinear-antialias": lambda x: F.interpolate(x, (5, 7), mode="bilinear", antialias=True),
    "area": lambda x: F.interpolate(x, (3, 3), mode="area"),
    "fractional-pool": lambda x: F.fractional_max_pool2d(
        x, 2, output_size=4, _random_samples=torch.full((x.shape[0], 12, 2), 0.5)
    ),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, return_indices=True), 3),
    "dropout": nn.Dropout2d(0.1).eval(),
    "dropout-in-place": nn.Dropout2d(0.1, inplace=True).eval(),
}

CASES = [
    *(conv(f"conv-{name}", lambda m, x, f=f: f(x)) for name, f in POOLS.items()),
    layer("conv2d", lambda: nn.Conv2d(12, 8, 3, padding=1), {"weight[0]": "8", "weight[1]": "12"}),
    layer(
        "conv2d-same", lambda: nn.Conv2d(12, 8, 3, padding="same", bias=False), {"weight[0]": "8"}
    ),
    layer(
        "conv2d-reflect",
        lambda: nn.Conv2d(12, 8, 3, padding=1, padding_mode="reflect"),
        {"weight[0]": "8"},
    ),
    layer(
        "conv-grouped",
        lambda: nn.Conv2d(12, 8, 3, groups=4),
        {"weight[0]": "(4 x 2)", "weight[1]": "3", "bias[0]": "(4 x 2)"},
        "(4 x 3)",
    ),
    layer(
        "conv-grouped-same",
        lambda: nn.Conv2d(12, 8, 3, groups=2, padding="same"),
        {"weight[0]": "(2 x 4)", "weight[1]": "6"},
        "(2 x 6)",
    ),
    layer("conv-depthwise", lambda: nn.Conv2d(12, 12, 3, groups=12), {"weight[0]": "12"}, out=12),
    layer(
        "conv-depthwise-multiplier",
        lambda: nn.Conv2d(12, 24, 3, groups=12),
        {"weight[0]": "(12 x 2)"},
        out=24,
    ),
    layer(
        "conv-transposed",
        lambda: nn.ConvTranspose2d(12, 8, 3, 2, 1, 1),
        {"weight[0]": "12", "weight[1]": "8", "bias[0]": "8", "weight[2]": "3!"},
    ),
    layer(
        "conv-transposed-grouped",
        lambda: nn.ConvTranspose2d(12, 8, 3, groups=4),
        {"weight[0]": "(4 x 3)", "weight[1]": "2", "bias[0]": "(4 x 2)"},
        "(4 x 3)",
    ),
    layer(
        "conv-transposed-depthwise",
        lambda: nn.ConvTranspose2d(12, 12, 3, groups=12, bias=False),
        {"weight[0]": "12"},
        out=12,
    ),
    layer(
        "conv-transposed-depthwise-multiplier",
        lambda: nn.ConvTranspose2d(12, 24, 3, groups=12),
        {"weight[0]": "12", "weight[1]": "2", "bias[0]": "(12 x 2)"},
        out=24,
    ),
    conv(
        "convolution",
        lambda m, x: torch.convolution(x, m.w, m.b, [1, 1], [1, 1], [1, 1], False, [0, 0], 3),
        "(3 x 4)",
        out=6,
        extra=lambda: {"w": parameter(6, 4, 3, 3), "b": parameter(6)},
        axes={"w[0]": "(3 x 2)", "w[1]": "4", "b[0]": "(3 x 2)"},
    ),
    conv(
        "convolution-transposed",
        lambda m, x: torch.convolution(x, m.w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        out=6,
        extra=lambda: {"w": parameter(12, 6, 3, 3)},
        axes={"w[0]": "12", "w[1]": "6"},
    ),
    layer(
        "conv-batch-norm",
        lambda: nn.Sequential(nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8)),
        {"0.weight[0]": "8", "1.running_var[0]": "8", "1.weight[0]": "8"},
    ),
    layer(
        "conv-group-norm",
        lambda: nn.Sequential(nn.Conv2d(12, 8, 3), nn.GroupNorm(2, 8)),
        {"0.weight[0]": "(2 x 4)", "1.weight[0]": "(2 x 4)"},
        exact=False,
    ),
    layer(
        "conv-prelu", lambda: nn.Sequential(nn.Conv2d(12, 8, 3), nn.PReLU(8)), {"1.weight[0]": "8"}
    ),
    conv(
        "conv-functional-groups",
        lambda m, x: F.conv2d(x, m.w, groups=3),
        "(3 x 4)",
        out=6,
        extra=lambda: {"w": nn.Parameter(torch.empty(6, 4, 3, 3))},
        axes={"w[0]": "(3 x 2)", "w[1]": "4"},
    ),
    conv(
        "channel-shuffle",
        lambda m, x: x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2),
        "(3 x 4)",
    ),
    conv(
        "channel-shuffle-grouped",
        lambda m, x: m.c(x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)),
        "(3 x 4)",
        extra=lambda: {"c": nn.Conv2d(12, 12, 3, groups=4)},
        axes={"c.weight[0]": "(4 x 3)", "c.weight[1]": "3"},
    ),
    conv(
        "dense-concatenation",
        lambda m, x: torch.cat((x, m.c(x)), 1),
        out=19,
        extra=lambda: {"c": nn.Conv2d(12, 7, 1)},
        axes={"down.weight[1]": "(12 + 7)"},
    ),
    conv(
        "residual",
        lambda m, x: x + m.c(x.relu()),
        extra=lambda: {"c": nn.Conv2d(12, 12, 3, padding=1)},
        axes={"c.weight[0]": "12", "c.weight[1]": "12"},
    ),
    conv(
        "zero-padded-shortcut",
        lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 3)) + m.c(x),
        out=17,
        extra=lambda: {"c": nn.Conv2d(12, 17, 1)},
        axes={"c.weight[0]": "(2 + 12 + 3)"},
    ),
    conv(
        "excite",
        lambda m, x: x * m.b(m.a(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid(),
        extra=lambda: {"a": nn.Conv2d(12, 4, 1), "b": nn.Conv2d(4, 12, 1)},
        axes={"a.weight[0]": "4", "b.weight[0]": "12"},
    ),
    conv(
        "channels-last-norm",
        lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        extra=lambda: {"n": nn.LayerNorm(12)},
        axes={"n.weight[0]": "12"},
        exact=False,
    ),
    flat("flatten", lambda x: x.flatten(1), 49),
    flat("flatten-view", lambda x: F.max_pool2d(x, 2).view(x.shape[0], -1), 9),
    flat("flatten-one-pixel", lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 1),
    flat("flatten-squeeze", lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), 1),
    flat("flatten-squeeze-all", lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(), 1),
    Case(
        "conv1d",
        lambda: {
            "up": nn.Conv1d(6, 12, 3, padding=2),
            "mid": nn.Conv1d(12, 8, 3, groups=2),
            "down": nn.Linear(8, 5),
        },
        lambda m, x: m.down(F.max_pool1d(F.avg_pool1d(m.mid(m.up(x.mT).relu()), 2), 2).mT),
        {"up.weight[0]": "(2 x 6)", "mid.weight[0]": "(2 x 4)", "mid.weight[1]": "6"},
        inputs=((2, 15, 6),),
    ),
    Case(
        "conv1d-resampling",
        lambda: {"up": nn.Conv1d(6, 12, 1), "down": nn.Conv1d(12, 5, 1)},
        lambda m, x: m.down(
            F.interpolate(
                F.adaptive_max_pool1d(
                    F.adaptive_avg_pool1d(
                        F.interpolate(m.up(x), scale_factor=2.0, mode="linear"), 9
                    ),
                    4,
                ),
                scale_factor=3,
            )
        ),
        {"up.weight[0]": "12"},
        inputs=((2, 6, 8),),
        alone=True,
    ),
    Case(
        "conv3d",
        lambda: {
            "up": nn.Conv3d(3, 12, 2),
            "norm": nn.BatchNorm3d(12),
            "down": nn.Conv3d(12, 5, 1),
        },
        lambda m, x: m.down(
            F.interpolate(
                F.adaptive_avg_pool3d(F.max_pool3d(F.avg_pool3d(m.norm(m.up(x)), 2, 1), 2, 1), 2),
                scale_factor=2,
                mode="trilinear",
            )
        ),
        {"up.weight[0]": "12", "norm.running_mean[0]": "12"},
        inputs=((2, 3, 5, 5, 5),),
    ),
    Case(
        "conv1d-transposed",
        lambda: {
            "up": nn.Conv1d(6, 12, 1),
            "mid": nn.ConvTranspose1d(12, 8, 3, 2, groups=2),
            "down": nn.ConvTranspose1d(8, 5, 2),
        },
        lambda m, x: m.down(m.mid(m.up(x)).relu()),
        {"up.weight[0]": "(2 x 6)", "mid.weight[0]": "(2 x 6)", "mid.weight[1]": "4"},
        inputs=((2, 6, 8),),
        alone=True,
    ),
    Case(
        "conv3d-transposed",
        lambda: {
            "up": nn.ConvTranspose3d(3, 12, 2, 2),
            "norm": nn.BatchNorm3d(12),
            "down": nn.ConvTranspose3d(12, 5, 1, bias=False),
        },
        lambda m, x: m.down(m.norm(m.up(x)).relu()),
        {"up.weight[0]": "3!", "up.weight[1]": "12", "down.weight[0]": "12"},
        inputs=((2, 3, 3, 3, 3),),
    ),
    Case(
        "conv-tbc",
        lambda: {
            "up": nn.Linear(6, 12),
            "w": parameter(3, 12, 8),
            "b": parameter(8),
            "down": nn.Linear(8, 5),
        },
        lambda m, x: m.down(torch.conv_tbc(m.up(x), m.w, m.b, 1).relu()),
        {"up.weight[0]": "12", "w[1]": "12", "w[2]": "8", "b[0]": "8", "w[0]": "3!"},
        inputs=((7, 2, 6),),
        batches=False,
    ),
    Case(
        "conv1d-over-features",  # features are the pixels here
        lambda: {"up": nn.Linear(6, 12), "c": nn.Conv1d(7, 9, 3), "down": nn.Linear(10, 5)},
        lambda m, x: m.down(m.c(m.up(x))),
        {"up.weight[0]": "12!", "c.weight[0]": "9!", "down.weight[1]": "10!"},
        {"up.weight[0]": "window"},
        alone=True,
    ),
]
