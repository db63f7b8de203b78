"""Stand-ins of symbolic sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune


class Cropping(nn.Module):
    """Half of a picture, made smaller and large again, and the picture cut to its size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 7, 3), nn.ConvTranspose2d(7, 5, 2, 2)
        self.again, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(9, 2, 1)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        top, left = rows // 2, columns // 2
        return torch.cat([skip[:, :, top : top + x.size(2), left : left + x.size(3)], x], 1)

    def forward(self, x: Tensor) -> Tensor:
        half = F.max_pool2d(x, 2)
        y = self.join(self.up(self.down(F.max_pool2d(half, 2)).relu()), half)
        return self.head(self.join(self.again(y).relu(), x))


def test_a_slice_that_torch_left_open_follows_from_the_other_sizes() -> None:
    """Else its size would be a number of its own, and no plan could be applied."""
    torch.manual_seed(0)
    model, x = Cropping().eval(), torch.randn(2, 3, 32, 36)
    traced = fxprune.trace(model, (x,))
    nodes = traced.graph_module.graph.nodes
    cuts = [n for n in nodes if n.target is torch.ops.aten.slice.Tensor]
    joined = [n for n in nodes if n.target is torch.ops.aten.cat.default]
    for cut, cat in zip(cuts[1::2], joined, strict=True):
        other = cat.args[0][1].meta["val"]
        assert traced.sizes.shape(cut.meta["val"])[2:] == traced.sizes.shape(other)[2:]
    result = fxprune.prune(
        model, (x,), pruning_ratio=0.2, kinds=("channel",), criterion=fxprune.Magnitude()
    )
    picture = torch.randn(3, 3, 44, 40)
    assert result.graph_module(picture).shape == model(picture).shape
