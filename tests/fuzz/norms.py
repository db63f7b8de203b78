"""Sums, averages and norms over alive entries only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.alive import Alive, Rule, UnknownOpError, name_of

Function = Callable[..., Any]
NORMS: dict[str, Rule] = {}


def _norm(names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        NORMS.update(dict.fromkeys(names.split(), function))
        return function

    return add


def _argument(args: Any, kwargs: Any, place: int, names: str, default: Any = None) -> Any:
    for name in names.split():
        if name in kwargs:
            return kwargs[name]
    return args[place] if len(args) > place else default


def _dims(x: Tensor, args: Any, kwargs: Any) -> tuple[int, ...]:
    dims = _argument(args, kwargs, 1, "dim axis")
    if dims is None or dims == ():
        return tuple(range(x.dim()))
    return (dims,) if isinstance(dims, int) else tuple(dims)


# What stands for a dead entry, so that it changes nothing.
_NEUTRAL = {"sum": 0.0, "nansum": 0.0, "norm": 0.0, "vector_norm": 0.0, "prod": 1.0, "any": 0.0,
            "linalg_vector_norm": 0.0, "count_nonzero": 0.0, "logsumexp": -torch.inf,
            "amax": -torch.inf, "max": -torch.inf, "argmax": -torch.inf,
            "amin": torch.inf, "min": torch.inf, "argmin": torch.inf, "all": 1.0}  # fmt: skip


@_norm(" ".join(_NEUTRAL))
def _reduced(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, name = args[0], name_of(func)
    if any(isinstance(a, Tensor) for a in args[1:]):
        raise UnknownOpError(f"{name} of two tensors")
    result = func(alive.zeroed(x, _NEUTRAL[name]), *args[1:], **kwargs)
    if name in ("norm", "vector_norm", "linalg_vector_norm"):
        dims, keep = _argument(args, kwargs, 2, "dim"), _argument(args, kwargs, 3, "keepdim", False)
        dims = tuple(range(x.dim())) if dims is None else dims
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
    else:
        dims, keep = _dims(x, args, kwargs), _argument(args, kwargs, 2, "keepdim", False)
    values = result if isinstance(result, Tensor) else result[0]
    alive.mark(values, alive.whole(x).sum(dims, keepdim=keep) > 0)
    return result


@_norm("mean var std")
def _average(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, name = args[0], name_of(func)
    mask = alive.whole(x)
    dims = _dims(x, args, kwargs)
    keep = kwargs.get("keepdim", False)
    if name == "mean":
        keep = _argument(args, kwargs, 2, "keepdim", False)
    correction = 1
    if name != "mean":
        free = kwargs.get("unbiased", args[2] if len(args) > 2 else kwargs.get("correction", 1))
        correction = int(free)
        keep = args[3] if len(args) > 3 else keep
    count = mask.sum(dims, keepdim=True)
    safe = count.clamp(min=1)
    dtype = kwargs.get("dtype") or x.dtype
    clean = alive.zeroed(x).to(dtype)
    average = clean.sum(dims, keepdim=True) / safe
    if name == "mean":
        result = average.to(dtype)
    else:
        spread = ((clean - average) * mask).square().sum(dims, keepdim=True)
        result = spread / (count - correction).clamp(min=0)
        result = result.sqrt() if name == "std" else result
    seen = count > 0
    if not keep:
        axes = sorted(d % x.dim() for d in dims)
        for axis in reversed(axes):
            result, seen = result.squeeze(axis), seen.squeeze(axis)
    return alive.mark(result, seen)


@_norm("softmax log_softmax softmin")
def _softmax(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, mask = args[0], alive.whole(args[0])
    fill = torch.inf if name_of(func) == "softmin" else -torch.inf
    result = func(x.masked_fill(~mask, fill), *args[1:], **kwargs)
    return alive.mark(result.masked_fill(~mask, 0.0), mask)


@_norm("topk")
def _chosen(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, mask = args[0], alive.whole(args[0])
    largest = bool(_argument(args, kwargs, 3, "largest", True))
    return func(x.masked_fill(~mask, -torch.inf if largest else torch.inf), *args[1:], **kwargs)


@_norm("cumsum")
def _running(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    result = func(alive.zeroed(args[0]), *args[1:], **kwargs)
    return alive.mark(result, alive.whole(args[0]))


@_norm("cosine_similarity")
def _similarity(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    first, second = args[:2]
    axis = _argument(args, kwargs, 2, "dim", 1)
    mask = (alive.whole(first) & alive.whole(second)).any(axis)
    return alive.mark(func(alive.zeroed(first), alive.zeroed(second), *args[2:], **kwargs), mask)


def _scaled(
    alive: Alive, x: Tensor, mask: Tensor, weight: Any, bias: Any, shape: tuple[int, ...]
) -> Tensor:
    """A normalised tensor by its weight, plus its bias."""
    for each, apply in ((weight, torch.mul), (bias, torch.add)):
        if each is not None:
            x = apply(x, each.view(shape))
            mask = mask & alive.whole(each).view(shape)
    return alive.mark(x, mask)


def _centred(
    x: Tensor, mask: Tensor, dims: tuple[int, ...], eps: float, centre: bool = True
) -> Tensor:
    count = mask.sum(dims, keepdim=True).clamp(min=1)
    clean = x.masked_fill(~mask, 0.0)
    if centre:
        clean = (clean - clean.sum(dims, keepdim=True) / count) * mask
    return clean * torch.rsqrt(clean.square().sum(dims, keepdim=True) / count + eps)


@_norm("layer_norm")
def _layer_norm(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, shape, weight, bias, eps, *_ = (*args, *(None, None, 1e-5)[len(args) - 2 :])
    mask = alive.whole(x)
    if weight is not None:  # of units that no parameter made, it knows alone which are gone
        mask = mask & alive.whole(weight)
    if mask.all():
        result = func(*args, **kwargs)
        return _only_weights(alive, result, (weight, bias))
    dims = tuple(range(-len(shape), 0))
    result = _centred(x.float(), mask, dims, eps).to(x.dtype)
    return _scaled(alive, result, mask, weight, bias, tuple(shape))


@_norm("rms_norm")
def _rms_norm(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, shape, weight, eps = (*args, *(None, None)[len(args) - 2 :])
    mask = alive.whole(x)
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    result = _centred(x.float(), mask, dims, eps, centre=False).to(x.dtype)
    return _scaled(alive, result, mask, weight, None, tuple(shape))


def _only_weights(alive: Alive, result: Tensor, weights: tuple[Any, ...]) -> Tensor:
    mask = torch.ones(result.shape, dtype=torch.bool)
    for each in weights:
        if each is not None:
            mask = mask & alive.whole(each)
    return alive.mark(result, mask)


@_norm("group_norm")
def _group_norm(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, groups, weight, bias, eps, *_ = (*args, *(None, None, 1e-5)[len(args) - 2 :])
    mask = alive.whole(x)
    blocks = _centred(
        x.float().reshape(x.shape[0], groups, -1), mask.reshape(x.shape[0], groups, -1), (-1,), eps
    )
    shape = (-1, *[1] * (x.dim() - 2))
    return _scaled(alive, blocks.reshape(x.shape).to(x.dtype), mask, weight, bias, shape)


@_norm("batch_norm instance_norm")
def _channel_norm(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    """Each channel by itself, so a dead one disturbs no other."""
    x, *rest = args
    vectors = [each for each in rest if isinstance(each, Tensor)]
    training = bool(rest[4])
    if name_of(func) == "batch_norm" and training and not alive.whole(x).all():
        raise UnknownOpError("batch_norm in training")
    mask = alive.whole(x)
    for each in vectors:
        mask = mask & alive.whole(each).view(-1, *[1] * (x.dim() - 2))
    return alive.mark(func(*args, **kwargs), mask)
