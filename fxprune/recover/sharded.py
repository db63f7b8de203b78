"""Training that FSDP2 divides among processes, by accelerate's configuration.

A copy of the module is sharded and trained, because sharding changes a module for good; its weights
come back whole.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import RecoveryError


def is_sharded() -> bool:
    """Whether accelerate is to shard what it trains.

    Raises:
        RecoveryError: by the first version of FSDP, which has no parameters of their own shapes.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecoveryError(
            "FSDP 1 makes flat vectors of all parameters: launch with --fsdp_version 2, or "
            "fsdp_version: 2 in accelerate's configuration"
        )
    # Every process has the weights; accelerate would deal them out, and stumble over buffers.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return True


def to_shard(module: nn.Module, hidden: bool) -> nn.Module:
    """The copy that is sharded, with the adapters in it.

    Raises:
        RecoveryError: the teacher teaches ``hidden`` states, which are seen in the module itself.
    """
    if hidden:
        raise RecoveryError(
            "hidden states cannot be taught in a module that FSDP shards: leave out hidden="
        )
    return copy.deepcopy(module)


def reshard(module: nn.Module) -> None:
    """Let a module's parameters be shards: a forward pass without a backward leaves them whole."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process asks for it at once."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full().detach()


@torch.no_grad()
def put(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        mesh, value = tensor.device_mesh, value.to(tensor.device, tensor.dtype)
        tensor.copy_(distribute_tensor(value, mesh, tensor.placements))
    else:
        tensor.copy_(value)


def bring_back(trained: nn.Module, module: nn.Module) -> None:
    """Copy what was trained into the module that the copy was made of."""
    reshard(trained)
    # All names, for of tied tensors another may come first.
    found: dict[str, Tensor] = dict(trained.named_parameters(remove_duplicate=False))
    found |= dict(trained.named_buffers(remove_duplicate=False))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        put(tensor, whole(found[name]))
