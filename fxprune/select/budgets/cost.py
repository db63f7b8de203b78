"""What a cost is: a name that a budget can limit, and how it is counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from fxprune.axes.dims import Dim
from fxprune.errors import SelectionError

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.select.latency import LatencyTable


class Count(Protocol):
    """Counts one cost of the whole model; it never falls as units come back."""

    @abstractmethod
    def total(self, counts: Mapping[Dim, int]) -> int:
        """The cost, a whole number; a dim that is absent keeps all its units."""

    def unit_cost(self, dim: Dim, counts: dict[Dim, int], more: int = 1) -> int:
        """What is added when ``dim`` keeps ``more`` units than ``counts`` says."""
        changed = ChainMap({dim: counts.get(dim, dim.size) + more}, counts)
        return self.total(changed) - self.total(counts)


@dataclass(frozen=True, eq=False)
class Setting:
    """What a cost may depend on beside the model.

    Attributes:
        shape: sequences of a forward pass and tokens of each.
        biases: names of biases that the model gains, each with the dims of which one has to lose a
            unit for that.
        latency: what :func:`fxprune.measure_latency` measured, if it did.
    """

    shape: tuple[int, int] = (1, 64)
    biases: Mapping[str, Set[Dim]] = field(default_factory=dict)
    latency: LatencyTable | None = None


class Cost(ABC):
    """A cost that :class:`fxprune.Budget` can limit.

    Attributes:
        name: the keyword of the budget, such as ``macs``.
        words: what is counted, in words, for messages: ``MACs``.
    """

    name: ClassVar[str]
    words: ClassVar[str]

    @abstractmethod
    def count(self, graph: DependencyGraph, dims: Collection[Dim], setting: Setting) -> Count:
        """How the cost falls as units of these dims go.

        Args:
            graph: the groups of the model.
            dims: the dims that may lose units, unbound. All others keep theirs.
            setting: what else it may depend on.

        Raises:
            FxpruneError: it cannot be counted for this model.
        """

    def whole(self, graph: DependencyGraph, setting: Setting) -> int:
        """The cost of the whole model."""
        return self.count(graph, (), Setting(setting.shape, {}, setting.latency)).total({})

    def absolute(self, amount: float) -> float:
        """A budget's absolute number in the unit that is counted."""
        return amount


COSTS: dict[str, Cost] = {}


def register_cost(cost: Cost) -> None:
    """Let :class:`fxprune.Budget` limit a cost under its name.

    Raises:
        SelectionError: the name is taken, or cannot be a keyword.
    """
    name = cost.name
    if name in COSTS or name in ("units", "rounding", "shape"):
        raise SelectionError(f"a budget of {name!r} is registered already")
    if not name.isidentifier():
        raise SelectionError(f"{name!r} cannot be a keyword of fxprune.Budget")
    COSTS[name] = cost
