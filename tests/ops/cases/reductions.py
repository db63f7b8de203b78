"""Norms, reductions, order."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter


def norm(name: str, layer: Any, want: str = "12", axes: Any = None, **options: Any) -> Case:
    """``norm`` between two linear layers; with channels on axis 1 where ``channels``."""
    first = options.pop("channels", False)
    inner = (lambda m, x: m.norm(x.mT).mT) if first else (lambda m, x: m.norm(x))
    return mid(name, inner, want, extra=lambda: {"norm": layer()}, axes=axes, **options)


def over(name: str, inner: Any, want: str = "12", **options: Any) -> Case:
    """A reduction that leaves one number, by which x is scaled."""
    return mid(name, lambda m, x: x * inner(x), want, **{"exact": False, **options})


def frozen(name: str, inner: Any, word: str, want: str = "12!", **options: Any) -> Case:
    return mid(name, lambda m, x: inner(x), want, why={"up.weight[0]": word}, **options)


SCALE = {"norm.weight[0]": "12"}
SHIFT = {**SCALE, "norm.bias[0]": "12"}
STATISTICS = {**SHIFT, "norm.running_mean[0]": "12", "norm.running_var[0]": "12"}
GROUPED = {"norm.weight[0]": "(3 x 4)", "norm.bias[0]": "(3 x 4)"}

CASES = [
    norm("layer-norm", lambda: nn.LayerNorm(12), axes=SHIFT, exact=False),
    norm("layer-norm-no-bias", lambda: nn.LayerNorm(12, bias=False), axes=SCALE, exact=False),
    norm("layer-norm-plain", lambda: nn.LayerNorm(12, elementwise_affine=False), exact=False),
    norm("rms-norm", lambda: nn.RMSNorm(12), axes=SCALE, exact=False),
    norm("batch-norm", lambda: nn.BatchNorm1d(12), axes=STATISTICS, channels=True),
    norm(
        "batch-norm-plain",
        lambda: nn.BatchNorm1d(12, affine=False),
        channels=True,
        axes={"norm.running_mean[0]": "12"},
    ),
    norm(
        "batch-norm-batch-statistics",
        lambda: nn.BatchNorm1d(12, track_running_stats=False),
        axes=SHIFT,
        channels=True,
    ),
    norm("group-norm", lambda: nn.GroupNorm(3, 12), "(3 x 4)", GROUPED, channels=True, exact=False),
    norm("group-norm-each", lambda: nn.GroupNorm(12, 12), axes=SHIFT, channels=True),
    norm("group-norm-one", lambda: nn.GroupNorm(1, 12), axes=SHIFT, channels=True, exact=False),
    norm("instance-norm", lambda: nn.InstanceNorm1d(12, affine=True), axes=SHIFT, channels=True),
    norm(
        "instance-norm-statistics",
        lambda: nn.InstanceNorm1d(12, track_running_stats=True),
        axes={"norm.running_mean[0]": "12"},
        channels=True,
    ),
    norm(
        "instance-norm-over-features",
        lambda: nn.InstanceNorm1d(7),
        exact=False,
        least=3,
        alone=True,
    ),
    norm(
        "group-norm-over-features",
        lambda: nn.GroupNorm(7, 7),
        exact=False,
        least=3,
        axes={"norm.weight[0]": "7!"},
        alone=True,
    ),
    mid(
        "layer-norm-two-axes",
        lambda m, x: m.norm(x.unflatten(-1, (3, 4))).flatten(2),
        "(3 x 4)",
        extra=lambda: {"norm": nn.LayerNorm((3, 4))},
        axes={"norm.weight[0]": "3", "norm.weight[1]": "4"},
        exact=False,
    ),
    mid(
        "layer-norm-per-head",
        lambda m, x: m.norm(x.unflatten(-1, (3, 4))).flatten(2),
        "(3 x 4)",
        extra=lambda: {"norm": nn.LayerNorm(4)},
        axes={"norm.weight[0]": "4"},
        exact=False,
    ),
    mid(
        "rms-by-hand",
        lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * m.s,
        extra=lambda: {"s": parameter(12)},
        axes={"s[0]": "12"},
        exact=False,
    ),
    mid(
        "layer-norm-by-hand",
        lambda m, x: (x - x.mean(-1, True)) / (x.var(-1, False, True) + 1e-5).sqrt(),
        exact=False,
    ),
    mid(
        "var-mean",
        lambda m, x: (lambda v, u: (x - u) / (v + 0.1))(
            *torch.var_mean(x, -1, correction=0, keepdim=True)
        ),
        exact=False,
    ),
    mid(
        "local-response",
        lambda m, x: F.local_response_norm(x.mT, 3).mT,
        "12!",
        why={"up.weight[0]": "pooling"},
    ),
    over("mean", lambda x: x.mean(-1, keepdim=True)),
    over("mean-all", lambda x: x.sigmoid().mean()),
    over("mean-two", lambda x: x.sigmoid().mean((1, 2), keepdim=True)),
    over("sum", lambda x: x.sigmoid().sum(-1, keepdim=True)),
    over("sum-all", lambda x: x.sigmoid().sum() / 50),
    over("sum-other-axis", lambda x: x.sum(1, keepdim=True), exact=True),
    over("sum-bool", lambda x: (x > 0.2).sum(-1, True)),
    over("var", lambda x: x.var(-1, keepdim=True), least=3),
    over("var-all", lambda x: x.var(), least=3),
    over("var-all-biased", lambda x: x.var(False) + torch.var(x, correction=0)),
    over("std", lambda x: x.std(-1, keepdim=True), least=3),
    over("norm", lambda x: x.sigmoid().norm(dim=-1, keepdim=True)),
    over("norm-all", lambda x: x.sigmoid().norm()),
    over("norm-one", lambda x: torch.norm(x.sigmoid(), p=1, dim=-1, keepdim=True)),
    over(
        "norm-dtype", lambda x: x.sigmoid().norm(dim=-1, keepdim=True, dtype=torch.float64).float()
    ),
    over("norm-linalg", lambda x: torch.linalg.norm(x.sigmoid(), dim=-1, keepdim=True)),
    over("norm-vector", lambda x: torch.linalg.vector_norm(x.sigmoid(), dim=-1, keepdim=True)),
    over(
        "norm-matrix",
        lambda x: torch.linalg.norm(x.sigmoid(), ord=1, dim=(-2, -1), keepdim=True),
        "12!",
        why={"up.weight[0]": "aten.linalg_norm"},
        normalised=False,
        batches=False,
    ),
    over("normalize", lambda x: F.normalize(x.sigmoid(), dim=-1)),
    frozen("pool-over-features", lambda x: F.avg_pool1d(x, 2), "pooling window", down=6),
    mid("pooled-sequence", lambda m, x: x.mean(1)),
    mid(
        "squeeze-and-excite",
        lambda m, x: x * m.b(m.a(x.mean(1)).relu()).sigmoid()[:, None],
        extra=lambda: {"a": nn.Linear(12, 4), "b": nn.Linear(4, 12)},
        axes={"a.weight[0]": "4", "b.weight[0]": "12", "a.weight[1]": "12"},
    ),
    frozen("amax", lambda x: x * x.amax(-1, keepdim=True), "amax"),
    frozen("amin-all", lambda x: x * x.amin(), "amin"),
    frozen("max", lambda x: x * x.max(-1, keepdim=True).values, "max"),
    frozen("max-all", lambda x: x * x.max(), "every unit"),
    frozen("argmax", lambda x: x * x.argmax(-1, keepdim=True), "positions are reckoned"),
    frozen("argmax-all", lambda x: x * x.argmax(), "argmax"),
    frozen("median", lambda x: x * x.median(-1, keepdim=True).values, "median"),
    frozen("prod", lambda x: x * x.prod(-1, keepdim=True), "prod"),
    frozen("logsumexp", lambda x: x - x.logsumexp(-1, keepdim=True), "logsumexp"),
    frozen("softmax", lambda x: x.softmax(-1), "softmax"),
    frozen("log-softmax", lambda x: F.log_softmax(x, dim=2), "softmax"),
    frozen("cumsum", lambda x: x.cumsum(-1), "cumsum"),
    frozen("cumprod", lambda x: x.cumprod(2), "cumprod"),
    frozen("flip", lambda x: x.flip(-1), "flip"),
    frozen(
        "flip-one-of-two",
        lambda x: x.unflatten(-1, (3, 4)).flip((1, 3)).flatten(2),
        "flip",
        "(3 x 4!)",
    ),
    frozen("roll", lambda x: x.roll(1, -1), "roll"),
    frozen("roll-flat", lambda x: x.roll(2), "roll"),
    frozen("sort", lambda x: x.sort(-1).values, "sort"),
    frozen("sort-descending", lambda x: x.sort(dim=2, descending=True)[0], "sort"),
    frozen("sort-stable", lambda x: x.sort(stable=True, dim=-1)[0], "sort"),
    frozen("argsort", lambda x: x * x.argsort(-1), "argsort"),
    mid("topk", lambda m, x: x.topk(4).values, down=4, exact=False, least=4),
    mid(
        "topk-other-axis",
        lambda m, x: x.unflatten(-1, (3, 4)).topk(2, 2).values.flatten(2),
        "(3 x 4)",
        down=8,
        exact=False,
        least=2,
    ),
    frozen("diff", lambda x: x.diff(), "diff", down=11),
    frozen("tril", lambda x: x.tril(), "triangular"),
    frozen("kthvalue", lambda x: x * x.kthvalue(2, -1, True).values, "every unit"),
    mid("sequence-order", lambda m, x: x.cumsum(1) + x.flip(1) + x.softmax(1) + x.roll(1, 1)),
    mid("sequence-extremes", lambda m, x: x.amax(1) + x.sort(1)[0][:, 0] + x.max(1)[0]),
]
