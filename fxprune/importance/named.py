"""Criteria by name, for command lines and tables."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from fxprune.errors import CriterionError
from fxprune.importance.activation_norm import ActivationNorm
from fxprune.importance.criterion import Criterion
from fxprune.importance.experts import REAP, ExpertNorm, Frequency
from fxprune.importance.flap import FLAP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.obs import OBS
from fxprune.importance.peak_to_peak import PeakToPeak
from fxprune.importance.random_scores import Random
from fxprune.importance.taylor import Taylor
from fxprune.importance.wanda import WandaSP

T = TypeVar("T")
_CRITERIA: dict[str, Criterion] = {
    "random": Random(),
    "magnitude": Magnitude(),
    "magnitude-l1": Magnitude(p=1),
    "taylor": Taylor(),
    "taylor2": Taylor(order=2),
    "taylor-mixed": Taylor(order="mixed"),
    "taylor-vector": Taylor(reduce="vector"),
    "obs": OBS(),
    "wanda-sp": WandaSP(),
    "flap": FLAP(),
    "flap-ifv": FLAP(metric="IFV"),
    "flap-wifn": FLAP(metric="WIFN"),
    "activation-norm": ActivationNorm(),
    "reap": REAP(),
    "frequency": Frequency(),
    "expert-norm": ExpertNorm(),
    "peak-to-peak": PeakToPeak(),
    "peak-to-peak-static": PeakToPeak(activations=False),
}
NAMES: tuple[str, ...] = tuple(_CRITERIA)


def by_name(spec: str | Mapping[str, Any], seed: int = 0) -> Criterion:
    """The criterion of a name, perhaps with other options.

    Args:
        spec: one of :data:`NAMES`; or ``{"name": one of them, option: value, ...}``.
        seed: the seed of ``random``; the others have none.

    Raises:
        CriterionError: for another name, the message offers close ones; or for an option that the
            criterion does not have.
    """
    return find(_CRITERIA, spec, seed)


def described(criterion: Criterion) -> str | dict[str, Any]:
    """What :func:`by_name` makes this criterion of again; its ``repr`` if it has no name."""
    return name_of(_CRITERIA, criterion)


def find(table: Mapping[str, T], spec: str | Mapping[str, Any], seed: int = 0) -> T:
    """The entry of a table that is asked for, see :func:`by_name`.

    Raises:
        CriterionError: there is none.
    """
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.pop("name", None))
    if name not in table:
        close = difflib.get_close_matches(name, table, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(table)}"
        raise CriterionError(f"no criterion {name!r}; {hint}")
    found: Any = table[name]
    if name == "random":
        options.setdefault("seed", seed)
    known = [each.name for each in fields(found)]
    if unknown := [option for option in options if option not in known]:
        has = ", ".join(known) or "none"
        raise CriterionError(f"the criterion {name} has no option {unknown[0]!r}: it has {has}")
    made: T = replace(found, **options)
    return made


def name_of(table: Mapping[str, Any], criterion: Any) -> str | dict[str, Any]:
    """The opposite of :func:`find`."""
    for name, known in table.items():
        if known == criterion and type(known) is type(criterion):
            return name
    for name, known in table.items():
        if type(known) is type(criterion):
            options = {each.name: getattr(criterion, each.name) for each in fields(known)}
            differ = {k: v for k, v in options.items() if getattr(known, k) != v}
            return {"name": name, **differ}
    return repr(criterion)
