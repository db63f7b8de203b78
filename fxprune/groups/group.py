"""What a group is."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.axes.dims import Dim, Layout


@dataclass(frozen=True)
class Site:
    """Where a group's dim appears in a parameter or buffer.

    Attributes:
        tensor: canonical FQN.
        axis: axis of the tensor.
        layout: layout of that whole axis; the dim occurs in it once or more.
        parameter: False for a buffer.
    """

    tensor: str
    axis: int
    layout: Layout
    parameter: bool

    def __str__(self) -> str:
        return f"{self.tensor}[{self.axis}]"


@dataclass(frozen=True, eq=False)
class Group:
    """All sites of one dim: the coupled structure that must be pruned together (LLM-Pruner, 3.1).

    Attributes:
        name: where it is and what its units are, such as ``model.layers.3.mlp:units``.
        kind: ``mlp`` (hidden units inside residual branches or, in a model without such, of any
            chain), ``attention`` (key/value heads with their query heads), ``query`` (query heads
            per key/value head), ``head_dim``, ``channel`` (the residual stream, convolution
            channels), ``expert``, ``state`` (channels, heads or groups of a recurrence), ``conv``
            (channels of a convolution along the sequence), ``latent`` (ranks on the way to heads
            and states), ``vocabulary`` (tokens; frozen but for :mod:`fxprune.hf.vocabulary`) or
            ``other`` (poolers, projectors, heads).
        size: number of units.
        sites: where it appears.
        dim: its dim in the axis algebra.
        normalised: units are averaged somewhere (a norm over the axis), so that removing a unit
            is not the same as zeroing it.
        reason: None if the group can be pruned, else why it is frozen.
        layer: stack and place in it, ``("model.layers", 3)``, if it lies in one numbered layer.
        least: units that have to stay: of experts as many as a router chooses.
        multiple: what the number of units that stay should be a multiple of, because kernels take
            no other: torch's grouped products want rows of 16 bytes.
    """

    name: str
    kind: str
    size: int
    sites: tuple[Site, ...]
    dim: Dim
    normalised: bool
    reason: str | None
    layer: tuple[str, int] | None
    least: int = 1
    multiple: int = 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """Canonical FQNs of the parameters the group touches."""
        return tuple(dict.fromkeys(s.tensor for s in self.sites if s.parameter))

    def __str__(self) -> str:
        state = f"frozen: {self.reason}" if self.reason else f"{len(self.sites)} sites"
        return f"{self.name} ({self.kind}, {self.size} units, {state})"
