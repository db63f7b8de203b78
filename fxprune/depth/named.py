"""Criteria for depth by name, for command lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.depth.criteria import PPL, AngularDistance, BlockInfluence, DepthCriterion
from fxprune.errors import CriterionError
from fxprune.importance import Criterion, Magnitude
from fxprune.importance.collect import DATA
from fxprune.importance.named import NAMES as UNIT_NAMES
from fxprune.importance.named import by_name as by_weights
from fxprune.importance.named import find, name_of

_CRITERIA: dict[str, DepthCriterion | Criterion] = {
    "ppl": PPL(),
    "block-influence": BlockInfluence(),
    "angular-distance": AngularDistance(),
    "magnitude": Magnitude(p=1),  # as in Shortened LLaMA
}
_CRITERIA |= {
    name: by_weights(name)
    for name in ("taylor", "taylor2", "taylor-mixed", "taylor-vector", "random")
}
NAMES: tuple[str, ...] = tuple(_CRITERIA)


def by_name(spec: str | Mapping[str, Any], seed: int = 0) -> DepthCriterion | Criterion:
    """The criterion of a name, perhaps with other options.

    Args:
        spec: one of :data:`NAMES`; or ``{"name": one of them, option: value, ...}``.
        seed: the seed of ``random``.

    Raises:
        CriterionError: for another name, or an option that the criterion does not have.
    """
    name = spec if isinstance(spec, str) else spec.get("name")
    if name not in _CRITERIA and name in UNIT_NAMES:
        raise CriterionError(f"{name!r} scores no blocks and branches: take {', '.join(NAMES)}")
    return find(_CRITERIA, spec, seed)


def described(criterion: DepthCriterion | Criterion) -> str | dict[str, Any]:
    """What :func:`by_name` makes this criterion of again; its ``repr`` if it has no name."""
    return name_of(_CRITERIA, criterion)


def is_depth_only(name: object) -> bool:
    """Whether a name is of a criterion that scores blocks and branches, and no units of groups."""
    return isinstance(name, str) and isinstance(_CRITERIA.get(name), DepthCriterion)


def needs_data(criterion: DepthCriterion | Criterion) -> bool:
    """Whether a criterion looks at calibration data."""
    return isinstance(criterion, DepthCriterion) or bool(criterion.needs & DATA)
