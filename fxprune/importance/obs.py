"""OBS: what removing a unit costs if its consumer's other weights make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxprune.axes.dims import Dim, Layout, Sum, find, resolve
from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance.criterion import Criterion, Needs
from fxprune.importance.evidence import Evidence, Input
from fxprune.importance.surgery import Block, gradient_root, removal_costs

# Heads stand in for each other: one is cheap while the others are there, several cost far more than
# their sum, most of all on text unlike the calibration. So a ranking counts one for this many.
HEADS = 4.0


@dataclass(frozen=True)
class OBS(Criterion):
    """Structured optimal brain surgeon with a Kronecker-factored Fisher.

    Units are removed one after the other, cheapest first, and after each the consumer's remaining
    weights are refitted (in the estimate; the model does not change). The score of a unit is the
    increase of the loss that this predicts when its turn comes: with x the consumer's input, g the
    gradient of the loss with respect to its output, ``A = E[x x^T]`` and ``G = E[g g^T]`` over
    calibration tokens,

        1/2 tr(G W_u ((A^-1)_uu)^-1 W_u^T),    W and A^-1 of what is left by then

    (optimal brain surgeon, Hassibi and Stork 1992, for structures as in Kurtic et al., ZipLM,
    arXiv 2302.04089, with the Fisher of van der Ouderaa et al., LLM Surgeon, arXiv 2312.17244).
    Being increases of the loss per token, scores of all layers and kinds compare as they are: rank
    them globally, and compensate by least squares, which is what they assume. A global ranking
    counts those of attention heads fourfold: one is cheap only while the others are there.

    Memory: ``inputs^2 + outputs^2`` float32 numbers per consumer. Where a group has several
    consumers (heads that layers share), the costs of each are added. Where the units are those of
    experts, each expert has an ``A`` of its own, over the tokens that were sent to it, and its part
    of one ``G`` (``experts * inputs^2 + outputs^2`` numbers); a unit costs the sum over all, and
    goes from all at once. Units that a norm averages (the residual stream) cannot be scored, nor
    those that a convolution reads; a norm over the states of a layer is taken as it is.

    Args:
        damping: of A, relative to its diagonal.
        rounds: how many refits from all units to none; several units go between two refits if
            there are more.

    Raises:
        CriterionError: for options out of range; on use, for another group.
    """

    ranking: ClassVar[Mapping[str, Any]] = {
        "normalise": "none",
        "weights": {"attention": HEADS, "query": HEADS},
    }

    damping: float = 5e-2
    rounds: int = 96

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf") or self.rounds < 1:
            raise CriterionError(f"{self!r}: damping is at least 0 and rounds at least 1")

    @property
    def needs(self) -> Needs:
        """The weights of the consumers and second moments around them."""
        return frozenset({"weights", "inputs", "moments"})

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """Increases of the loss in nats per token, shape (group.size,)."""
        return torch.stack([self._costs(group, source) for source in evidence.inputs]).sum(0)

    def _costs(self, group: Group, source: Input) -> Tensor:
        sources = source.experts or (source,)
        known = sources[0].moments
        assert known is not None
        root = gradient_root(_mean(known.gradients, known.tokens or known.rows))
        columns = unit_columns(group, source).to(source.weight.device)
        return removal_costs([self._block(each, root) for each in sources], columns, self.rounds)

    def _block(self, source: Input, root: Tensor) -> Block:
        moments, weight = source.moments, source.weight.detach().float()
        assert moments is not None
        matrix = weight if source.site.axis == 1 else weight.T
        inputs = _mean(moments.inputs, moments.rows)
        return Block.of(inputs, root, matrix, self.damping, moments.share)


def unit_columns(group: Group, source: Input) -> Tensor:
    """Positions of each unit on the consumer's input axis, int64 (group.size, positions)."""
    owners = _owners(source.site.layout, find(group.dim))
    held = (owners >= 0).nonzero()[:, 0]
    order = torch.argsort(owners[held], stable=True)
    return held[order].view(group.size, -1)


def _owners(layout: Layout, dim: Dim) -> Tensor:
    """Which unit of the dim each position belongs to, -1 for none; int64 (layout.size,)."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return torch.arange(dim.size) if layout is dim else torch.full((layout.size,), -1)
    parts = [_owners(part, dim) for part in layout.parts]
    if isinstance(layout, Sum):
        return torch.cat(parts)
    merged = torch.full((1,), -1)
    for part in parts:
        merged = torch.maximum(merged[:, None], part[None, :]).flatten()
    return merged


def _mean(total: Tensor, rows: int) -> Tensor:
    mean = total.double() / rows
    # Sums in float32 are not quite symmetric.
    return (mean + mean.T) / 2
