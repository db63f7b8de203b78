"""The table of vision families: parametrises tests/test_vision.py, generates part of a page.

torchvision cannot be installed beside every build of torch, so the families are written here,
small, with what makes each of them hard to prune: see the modules beside this one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import fxprune
from tests.vision import detection, modern, plain, residual, segmentation
from tests.zoo import disturb

RATIO = 0.3
KINDS = ("channel", "mlp", "attention")
ENDS = ("graph input", "graph output")
ALONE = "single units side by side"  # an axis without a dim of more than one unit


@dataclass(frozen=True)
class Family:
    """One family, small.

    Attributes:
        name: of the family, also its test id.
        make: the model, weights as initialised.
        size: height and width of the pictures it is traced with.
        other: another size.
        fixed: what the refusal of another size says (a pattern); empty if the model takes it.
        like: the nearest one that runs by default. The tests of this one, which run no line of
            ``fxprune/`` that others do not, are slow.
    """

    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, int] = (32, 32)
    other: tuple[int, int] = (40, 48)
    fixed: str = ""
    like: str = ""

    def pictures(self, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Noise of shape (batch, 3, height, width); the size it is traced with if left out."""
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, 3, *(size or self.size), generator=generator)


FAMILIES = (
    Family("alexnet", plain.AlexNet),
    Family("vgg", lambda: plain.VGG(norm=False), like="vgg_bn"),
    Family("vgg_bn", lambda: plain.VGG(norm=True)),
    Family("squeezenet", plain.SqueezeNet, like="densenet"),
    Family("googlenet", lambda: plain.InceptionNet(long=False), like="inception_v3"),
    Family("inception_v3", lambda: plain.InceptionNet(long=True)),
    Family("densenet", plain.DenseNet),
    Family("resnet", residual.resnet),
    Family("resnext", lambda: residual.resnet((12, 20), groups=4), like="regnet"),
    Family("wide_resnet", lambda: residual.resnet((30, 34)), like="resnet"),
    Family("regnet", residual.regnet),
    Family("mobilenet_v2", residual.mobilenet_v2, like="mobilenet_v3"),
    Family("mobilenet_v3", residual.mobilenet_v3),
    Family("mnasnet", residual.mnasnet, like="mobilenet_v3"),
    Family("efficientnet", residual.efficientnet, like="mobilenet_v3"),
    Family("efficientnet_v2", lambda: residual.efficientnet(fused=True), like="mobilenet_v3"),
    Family("shufflenet_v2", residual.shufflenet_v2),
    Family("convnext", modern.convnext),
    Family(
        "vit",
        modern.VisionTransformer,
        fixed="axis 2 .* has size 40, and the graph was captured for 32",
    ),
    Family("swin", modern.swin, (64, 64), (96, 64)),
    Family("swin_v2", lambda: modern.swin(cosine=True), other=(48, 64), like="swin"),
    Family(
        "maxvit",
        modern.maxvit,
        fixed="axis 2 .* has size 40, and the graph was captured for 32",
        like="swin",
    ),
    Family("fcn", segmentation.fcn, like="lraspp"),
    Family("deeplab_v3", segmentation.deeplab, like="lraspp"),
    Family("lraspp", segmentation.LRASPP),
    Family("unet", lambda: segmentation.UNet("transposed"), (18, 22), (26, 31)),
    Family("unet_bilinear", lambda: segmentation.UNet("bilinear"), (18, 22), (26, 31), like="unet"),
    Family("unet_crop", lambda: segmentation.UNet("crop"), (48, 48), (52, 60), like="unet"),
    Family("segformer", segmentation.Segformer, like="vit"),
    Family("yolo_v5", lambda: detection.Yolo(split=False), like="yolo_v8"),
    Family("yolo_v8", lambda: detection.Yolo(split=True)),
    Family("retinanet", detection.RetinaNet, like="yolo_v8"),
    Family("detr", detection.DETR),
    Family("super_resolution", segmentation.SuperResolution, (10, 12), (14, 16)),
)
BY_NAME = {family.name: family for family in FAMILIES}


@functools.cache
def built(name: str) -> nn.Module:
    """The model in evaluation mode, its values disturbed. Do not change it."""
    torch.manual_seed(0)
    model = BY_NAME[name].make().eval()
    disturb(model)
    return model


@functools.cache
def pruned(name: str) -> tuple[fxprune.PruneResult, tuple[str, ...]]:
    """The model without 30 % of its parameters, traced once per process; and what it warned of."""
    family, model = BY_NAME[name], built(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fxprune.prune(
            model,
            (family.pictures(),),
            pruning_ratio=RATIO,
            kinds=KINDS,
            criterion=fxprune.Magnitude(),
            ranking="local",
        )
    return result, tuple(str(warning.message) for warning in caught)


def frozen_axes(name: str) -> tuple[int, dict[str, list[str]]]:
    """Of the weights of convolutions and linear layers the axes that must stay whole.

    Axes 0 and 1 are looked at, channels in and out, unless they are of size 1 (depthwise).

    Returns:
        How many axes there are, and of those that cannot lose a unit: reason to axes.
    """
    model, graph = built(name), pruned(name)[0].graph
    weights = [
        f"{path}.{parameter}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
        for parameter in ("weight", "in_proj_weight")
        if getattr(module, parameter, None) is not None
    ]
    free = {(site.tensor, site.axis) for group in graph.groups for site in group.sites}
    why: dict[tuple[str, int], str] = {}
    # Of several reasons for one axis the plainest is told: it is the picture's or the output's.
    for group in sorted(graph.frozen, key=lambda group: not str(group.reason).startswith(ENDS)):
        for site in group.sites:
            why.setdefault((site.tensor, site.axis), str(group.reason).partition(" at ")[0])
    read = graph.traced.tensors
    axes = [(w, axis) for w in weights for axis in (0, 1) if w in read and read[w].shape[axis] > 1]
    reasons: dict[str, list[str]] = {}
    for weight, axis in axes:
        if (weight, axis) not in free:
            reasons.setdefault(why.get((weight, axis), ALONE), []).append(f"{weight}[{axis}]")
    return len(axes), reasons
