"""Scores of a Llama's units as one writes them without a library: keep everything, then add up.

All gradients of a backward pass exist together, and all inputs of the consumers. Formulas are those
of :mod:`fxprune.importance`; OBS shares the surgery with it, and only its moments are taken here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.importance.obs import OBS
from fxprune.importance.surgery import Block, gradient_root, removal_costs

KINDS = ("mlp", "attention")
GRADIENT = ("taylor", "taylor2", "taylor-mixed", "taylor-vector")
INPUTS = ("wanda-sp", "flap", "flap-ifv", "flap-wifn", "activation-norm", "peak-to-peak")
WEIGHTS = ("magnitude", "magnitude-l1", "peak-to-peak-static")
CRITERIA = (*WEIGHTS, *INPUTS, *GRADIENT, "obs")
# Group, then the axis of the units in each of its weights.
Members = dict[str, dict[str, int]]


def by_sample(criterion: str) -> bool:
    """Whether gradients of single samples are needed."""
    return criterion in ("taylor2", "taylor-mixed")


def scores(model: Any, criterion: str, ids: Tensor) -> dict[str, Tensor]:
    """Scores of MLP units and KV heads by group.

    Args:
        model: a Llama of transformers.
        criterion: one of :data:`CRITERIA`.
        ids: calibration tokens (N, L).
    """
    if criterion in GRADIENT:
        return _by_gradient(model, criterion, ids)
    if criterion == "obs":
        return _obs(model, ids)
    seen = _inputs(model, ids) if criterion in INPUTS else {}
    with torch.no_grad():
        return _by_weight(model, criterion, seen, len(ids))


def members(model: Any) -> dict[str, tuple[int, dict[str, int]]]:
    """Units and weights of every group; consumers come last."""
    found = {}
    for number in range(model.config.num_hidden_layers):
        at = f"model.layers.{number}"
        mlp = {f"{at}.mlp.{name}_proj": int(name == "down") for name in ("gate", "up", "down")}
        heads = {f"{at}.self_attn.{name}_proj": int(name == "o") for name in "qkvo"}
        found[f"{at}.mlp:units"] = (model.config.intermediate_size, mlp)
        found[f"{at}.self_attn:heads"] = (model.config.num_key_value_heads, heads)
    return found


def _by_gradient(model: Any, criterion: str, ids: Tensor) -> dict[str, Tensor]:
    first: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    parts = ids.split(1) if by_sample(criterion) else [ids]
    for part in parts:
        model.zero_grad()
        model(input_ids=part, labels=part).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad / len(parts)
            first[name] = first[name] + gradient if name in first else gradient
            if by_sample(criterion):
                square = parameter.grad.square() / len(parts)
                squares[name] = squares[name] + square if name in squares else square
    model.zero_grad()
    found = {}
    for group, (units, weights) in members(model).items():
        total: Any = 0
        for name, axis in weights.items():
            weight = model.get_submodule(name).weight.detach()
            g, h = first[f"{name}.weight"], squares.get(f"{name}.weight")
            if criterion == "taylor2":
                element = weight * h * weight
            elif criterion == "taylor-mixed":
                element = (weight * g - 0.5 * weight * h * weight).abs()
            else:
                element = weight * g
            if criterion == "taylor":
                element = element.abs()
            channels = element.sum(1 - axis)
            if criterion == "taylor-vector":
                channels = channels.abs()
            total = total + channels.view(units, -1).sum(1)
        found[group] = total
    return found


def _inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """All that goes into each consumer, (tokens, channels)."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].flatten(0, 1))
        )
        for name in _consumers(model)
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _by_weight(
    model: Any, criterion: str, seen: dict[str, Tensor], samples: int
) -> dict[str, Tensor]:
    found = {}
    for group, (units, weights) in members(model).items():
        consumer = list(weights)[-1]
        if criterion.startswith("magnitude"):
            total: Any = 0
            for name, axis in weights.items():
                weight = model.get_submodule(name).weight
                element = weight.abs() if criterion == "magnitude-l1" else weight.square()
                total = total + element.sum(1 - axis).view(units, -1).sum(1)
            found[group] = total
        elif criterion.startswith("peak-to-peak"):
            found[group] = sum(
                _range(model.get_submodule(name).weight, axis, units)
                for name, axis in weights.items()
            )
            if consumer in seen:
                squares = seen[consumer].square().sum(0).view(units, -1).sum(1)
                found[group] = found[group] * squares.sqrt()
        else:
            weight = model.get_submodule(consumer).weight
            found[group] = _by_input(criterion, weight, seen[consumer], units, samples)
    return found


def _by_input(criterion: str, weight: Tensor, x: Tensor, units: int, samples: int) -> Tensor:
    squares = x.square().sum(0)
    if criterion == "activation-norm":
        return squares.view(units, -1).sum(1).sqrt()
    wanda = weight.abs().mean(0) * (squares / samples).sqrt()
    if criterion == "wanda-sp":
        return wanda.view(units, -1).sum(1)
    metric = {
        "flap": x.var(0) * weight.square().sum(0),
        "flap-ifv": x.var(0),
        "flap-wifn": wanda,
    }[criterion]
    return ((metric - metric.mean()) / metric.std()).view(units, -1).mean(1)


def _range(weight: Tensor, axis: int, units: int) -> Tensor:
    rows = weight.movedim(axis, 0).reshape(units, -1)
    size = rows.amax(1) + rows.amin(1).abs()
    return size / size.max()


def _obs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def see(name: str, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        inputs[name], outputs[name] = args[0].detach().flatten(0, 1), output

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: see(name, args, output)
        )
        for name in _consumers(model)
    ]
    model.zero_grad()
    # The summed loss: moments are of the gradients of single tokens.
    predicted = ids.numel() - len(ids)
    (model(input_ids=ids, labels=ids).loss * predicted).backward()
    for handle in handles:
        handle.remove()
    found = {}
    for group, (units, weights) in members(model).items():
        consumer = list(weights)[-1]
        x, g = inputs[consumer], outputs[consumer].grad
        assert g is not None
        g = g.flatten(0, 1)
        block = Block.of(
            (x.T @ x).double() / len(x),
            gradient_root((g.T @ g).double() / len(x)),
            model.get_submodule(consumer).weight.detach(),
            OBS().damping,
        )
        columns = torch.arange(x.shape[1]).view(units, -1)
        found[group] = removal_costs([block], columns, OBS().rounds)
    model.zero_grad()
    return found


def _consumers(model: nn.Module) -> list[str]:
    return [list(weights)[-1] for _, weights in members(model).values()]
