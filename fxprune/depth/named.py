"""Criteria for depth by name, for command lines."""

from __future__ import annotations

from fxprune.depth.criteria import PPL, AngularDistance, BlockInfluence, DepthCriterion
from fxprune.errors import CriterionError
from fxprune.importance import Criterion, Magnitude
from fxprune.importance.named import by_name as by_weights

_CRITERIA: dict[str, DepthCriterion | Criterion] = {
    "ppl": PPL(),
    "block-influence": BlockInfluence(),
    "angular-distance": AngularDistance(),
    "magnitude": Magnitude(p=1),  # as in Shortened LLaMA
}
_WEIGHTS = ("taylor", "taylor2", "taylor-mixed", "taylor-vector", "random")
NAMES: tuple[str, ...] = (*_CRITERIA, *_WEIGHTS)


def by_name(name: str, seed: int = 0) -> DepthCriterion | Criterion:
    """The criterion of a name.

    Args:
        name: one of :data:`NAMES`.
        seed: the seed of ``random``.

    Raises:
        CriterionError: for another name.
    """
    if name in _WEIGHTS:
        return by_weights(name, seed)
    if name not in _CRITERIA:
        raise CriterionError(f"{name!r} scores no blocks and branches: take {', '.join(NAMES)}")
    return _CRITERIA[name]


def is_depth_only(name: str | None) -> bool:
    """Whether a name is of a criterion that scores blocks and branches, and no units of groups."""
    return name is not None and isinstance(_CRITERIA.get(name), DepthCriterion)
