"""What can be removed in depth: a residual branch, or a block of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

KINDS = ("block", "attention", "mlp", "other")


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of the model that a residual stream can do without.

    A *branch* is one term ``f(x)`` of a sum ``x + f(x)``; without it the sum is ``x``. A *block* is
    a run of branches that the module hierarchy nests (a decoder layer); without it, what enters it
    leaves it.

    Attributes:
        name: where it is and its kind, such as ``model.layers.3:block``.
        kind: ``block``; or of a branch ``attention`` (a softmax over a product of two activations),
            ``mlp`` (matrices and nothing that mixes positions) or ``other``.
        place: path of the block's module, or of the one that holds the branch; with ``@1`` for the
            second run of a module that runs several times.
        entry: the value of the stream that enters.
        exit: of a block the value that leaves it, which ``entry`` replaces; of a branch its term.
        skip: what is left of the stream without the unit: ``entry``, for a branch perhaps scaled.
        inside: every node that goes along, ``exit`` included.
        parameters: canonical names of the parameters that nothing else reads, in graph order.
        branches: names of the branches inside a block; empty for a branch.
    """

    name: str
    kind: str
    place: str
    entry: fx.Node
    exit: fx.Node
    skip: fx.Node
    inside: frozenset[fx.Node]
    parameters: tuple[str, ...]
    branches: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f" of {len(self.branches)} branches" if self.branches else ""
        return f"{self.name} ({self.kind}{inside}, {len(self.parameters)} parameters of its own)"


def kind_of(name: str) -> str:
    """The kind that a unit's name ends with; the second of its kind in a place has a number."""
    return name.rpartition(":")[2].partition("#")[0]
