"""Biases that a plan adds to Linears that had none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import RewriteError
from fxprune.trace.traced import Traced


def check(traced: Traced, names: Iterable[str]) -> None:
    """Check that the original has a Linear without a bias behind every name.

    Raises:
        RewriteError: it has not; the message names it.
    """
    for name in names:
        path, _, leaf = name.rpartition(".")
        try:
            module = traced.module.get_submodule(path)
        except AttributeError:
            raise RewriteError(f"the plan adds {name!r} to a module that is not there") from None
        if leaf != "bias" or not isinstance(module, nn.Linear):
            raise RewriteError(
                f"the plan adds {name!r}: only an nn.Linear can gain a bias, "
                f"and {path!r} is a {type(module).__name__}"
            )
        if module.bias is not None:
            raise RewriteError(f"the plan adds {name!r}, but {path!r} has a bias of its own")
        if not _adds_its_bias(module):
            raise RewriteError(
                f"the plan adds {name!r}, but {type(module).__name__} does not add a bias as "
                "nn.Linear does: leave it out of the plan's biases"
            )


def add(modules: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    """Give restored Linears a bias of zeros, so that what they compute stays the same.

    Args:
        modules: those of a rewritten graph by path; changed in place.
        names: canonical FQNs of the biases.

    Raises:
        RewriteError: the module was not restored as a Linear; the message names it.
    """
    linears: dict[str, list[nn.Linear]] = {}
    for path, module in modules.items():
        if isinstance(module, nn.Linear):
            # The second call of a shared module stands under "path@1" and shares its tensors.
            linears.setdefault(path.partition("@")[0], []).append(module)
    for name in names:
        found = linears.get(name.rpartition(".")[0])
        if not found:
            raise RewriteError(
                f"the plan adds {name!r}, but that Linear did not come back as a module: "
                "leave it out of the plan's biases"
            )
        weight = found[0].weight
        zeros = weight.detach().new_zeros(weight.shape[0])
        bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        for linear in found:
            linear.bias = bias


def _adds_its_bias(module: nn.Linear) -> bool:
    """Whether the forward of a subclass adds ``bias``, tried on a small one of its kind."""
    if type(module).forward is nn.Linear.forward:
        return True
    probe: Any = nn.Linear(3, 2)
    probe.__class__ = type(module)
    probe.__dict__.update({k: v for k, v in vars(module).items() if k not in probe.__dict__})
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((4, 3), generator=generator)
    try:
        with torch.no_grad():
            expected = nn.functional.linear(x, probe.weight, probe.bias)
            return bool(torch.allclose(probe(x), expected, atol=1e-5))
    except Exception:
        # Its forward needs more than a weight and a bias; it cannot be told what it would do.
        return False
