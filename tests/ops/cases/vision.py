"""Shuffles between channels and pixels, windows as columns, sampling by position."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.ops.cases.convolution import conv


def _resampled(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    turn = torch.tensor([[0.8, -0.6, 0.1], [0.6, 0.8, 0.0]]).expand(x.shape[0], 2, 3)
    return F.grid_sample(x, F.affine_grid(turn, [x.shape[0], 12, 5, 4], False), align_corners=False)


CASES = [
    conv("pixel-shuffle", lambda m, x: F.pixel_shuffle(x, 2), "(3 x 4!)", out=3),
    conv("pixel-shuffle-module", lambda m, x: nn.PixelShuffle(2)(x).relu(), "(3 x 4!)", out=3),
    conv(
        "pixel-unshuffle",
        lambda m, x: F.pixel_unshuffle(x, 3),
        out=108,
        axes={"down.weight[1]": "(12 x 9!)"},
    ),
    conv("pixel-round-trip", lambda m, x: F.pixel_shuffle(F.pixel_unshuffle(x, 3), 3)),
    conv(
        "pixel-shuffle-by-view",
        lambda m, x: x.unflatten(1, (3, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(2, 3).flatten(3),
        "(3 x 2! x 2!)",
        out=3,
    ),
    conv("channel-shuffle-op", lambda m, x: F.channel_shuffle(x, 3), "(3 x 4)"),
    conv("channel-shuffle-module", lambda m, x: nn.ChannelShuffle(4)(x), "(4 x 3)"),
    conv(
        "channel-shuffle-op-grouped",
        lambda m, x: m.c(F.channel_shuffle(x, 3)),
        "(3 x 4)",
        extra=lambda: {"c": nn.Conv2d(12, 12, 3, groups=4)},
        axes={"c.weight[0]": "(4 x 3)", "c.weight[1]": "3"},
    ),
    conv(
        "im2col",
        lambda m, x: F.unfold(x, 3).unflatten(2, (7, 7)),
        out=108,
        axes={"down.weight[1]": "(12 x 9!)"},
    ),
    conv("im2col-round-trip", lambda m, x: F.fold(F.unfold(x, 3, padding=1), 9, 3, padding=1)),
    conv(
        "col2im",
        lambda m, x: F.fold(x.flatten(2), 18, 2, stride=2),
        "(3 x 4!)",
        out=3,
    ),
    conv(
        "involution",  # a kernel for each pixel, over the windows of the picture
        lambda m, x: (
            (F.unfold(x, 3, padding=1).unflatten(1, (12, 9)) * m.k(x).flatten(2)[:, None])
            .sum(2)
            .unflatten(2, (9, 9))
        ),
        extra=lambda: {"k": nn.Conv2d(12, 9, 1)},
        axes={"k.weight[1]": "12", "k.weight[0]": "9!"},
    ),
    conv("grid-sample", _resampled),
    conv(
        "grid-sample-learned",
        lambda m, x: F.grid_sample(x, m.flow(x).permute(0, 2, 3, 1), align_corners=True),
        extra=lambda: {"flow": nn.Conv2d(12, 2, 1)},
        axes={"flow.weight[1]": "12", "flow.weight[0]": "2!"},
    ),
    conv("rot90", lambda m, x: torch.rot90(x, 1, (2, 3))),
    conv(
        "rot90-channels",
        lambda m, x: torch.rot90(x, 2, (1, 2)),
        "12!",
        why={"up.weight[0]": "order of this axis"},
    ),
    conv("spectrum-of-pixels", lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x), s=(9, 9))),
    conv("spectral-gate", lambda m, x: torch.fft.ifft2(torch.fft.fft2(x).abs() + 1).real),
    conv(
        "spectrum-of-channels",
        lambda m, x: torch.fft.fft(x, dim=1).real,
        "12!",
        why={"up.weight[0]": "Fourier transform"},
    ),
    conv("fft-shift", lambda m, x: torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3)).abs()),
    conv("local-response-norm", lambda m, x: F.local_response_norm(x, 3), "12!"),
]
