"""What a criterion is given: gradients of a parameter, inputs of a consumer, all of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from fxprune.axes.dims import Dim, find
from fxprune.groups.group import Site
from fxprune.importance.aggregate import collapse, fold
from fxprune.importance.curvature import Moments
from fxprune.importance.routing import Routing
from fxprune.importance.statistics import Statistics

T = TypeVar("T")


class Made(Sequence[T]):
    """Values that are made when they are asked for: each may hold weights that are read for it.

    Args:
        makers: make the values.
    """

    def __init__(self, makers: Sequence[Callable[[], T]] = ()) -> None:
        self._makers = makers

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Made[T]: ...
    def __getitem__(self, place: int | slice) -> Any:
        """One value, or a part of them that is not made yet."""
        if isinstance(place, slice):
            return Made(self._makers[place])
        return self._makers[place]()

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the calibration loss for one parameter; what was not asked for is None.

    Attributes:
        mean: gradient of the mean loss over all the data, shape of the parameter.
        squares: sum over the samples of the squared gradient of each sample's own mean loss,
            float32, shape of the parameter. A criterion that needs the squares alone must be
            linear in them: it is given one sample at a time and its scores are added.
        samples: N, the number of samples in all of the data.
    """

    mean: Tensor | None = None
    squares: Tensor | None = None
    samples: int = 0


@dataclass(frozen=True, eq=False)
class Input:
    """The input of one consumer of a group: ``y = x W``.

    Attributes:
        site: the weight, its input axis and the layout of that axis.
        weight: the weight, any floating dtype; not to be changed.
        output_axis: the weight's output axis.
        statistics: of ``x`` over all calibration tokens, per input channel, on the CPU.
        samples: number of calibration sequences.
        moments: second moments, on the model's device; only if a criterion needs them.
        experts: where the weight is a stack of those of experts, the input of each one that a
            token was sent to; ``statistics`` are then of all, and ``moments`` None.
    """

    site: Site
    weight: Tensor
    output_axis: int
    statistics: Statistics
    samples: int
    moments: Moments | None = None
    experts: tuple[Input, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.weight.shape[self.output_axis])

    def weights(self, p: int) -> Tensor:
        """Sum of ``|W| ** p`` per input channel, over outputs and kernel; float64 (C,)."""
        weight = self.weight.detach().float()
        return collapse(weight.abs() if p == 1 else weight.square(), self.site.axis).cpu().double()

    def fold(self, channels: Tensor, dim: Dim) -> Tensor:
        """The sum of a unit's channels: from (C,) to (dim.size,)."""
        return fold(channels, self.site.layout, find(dim))

    def channels_per_unit(self, dim: Dim) -> Tensor:
        """How many input channels each unit has, shape (dim.size,)."""
        return self.fold(torch.ones(self.site.layout.size, dtype=torch.float64), dim)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one group; what the criterion does not need is empty.

    Weights may be read from disk each time an item of ``weights`` or ``inputs`` is asked for: take
    one after the other, and keep none.

    Attributes:
        members: of an :class:`ElementCriterion`, one float32 vector of shape (group.size,) per
            parameter site, in graph order: its element scores summed by layout.
        weights: every parameter site with the parameter.
        inputs: one per consumer of the group.
        routing: of experts, what their router does.
    """

    members: tuple[Tensor, ...] = ()
    weights: Sequence[tuple[Site, Tensor]] = ()
    inputs: Sequence[Input] = ()
    routing: Routing | None = None
