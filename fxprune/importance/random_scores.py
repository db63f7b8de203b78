"""Random scores: the baseline every criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups.group import Group
from fxprune.importance.criterion import Criterion
from fxprune.importance.evidence import Evidence


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform scores in [0, 1). Needs neither data nor weights.

    A group's scores depend on the seed and its name alone, so the same model gives the same scores
    whichever other groups are scored with it.

    Args:
        seed: any integer.
    """

    seed: int = 0

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """Scores drawn for this group, shape (group.size,)."""
        digest = hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        return torch.rand(group.size, generator=generator)
