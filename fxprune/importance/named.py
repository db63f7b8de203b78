"""Criteria by name, for command lines and tables."""

from __future__ import annotations

import difflib

from fxprune.errors import CriterionError
from fxprune.importance.activation_norm import ActivationNorm
from fxprune.importance.criterion import Criterion
from fxprune.importance.flap import FLAP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.obs import OBS
from fxprune.importance.peak_to_peak import PeakToPeak
from fxprune.importance.random_scores import Random
from fxprune.importance.taylor import Taylor
from fxprune.importance.wanda import WandaSP

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
    "peak-to-peak": PeakToPeak(),
    "peak-to-peak-static": PeakToPeak(activations=False),
}
NAMES: tuple[str, ...] = tuple(_CRITERIA)


def by_name(name: str, seed: int = 0) -> Criterion:
    """The criterion of a name.

    Args:
        name: one of :data:`NAMES`.
        seed: the seed of ``random``; the others have none.

    Raises:
        CriterionError: for another name; the message offers close ones.
    """
    if name == "random":
        return Random(seed)
    if name not in _CRITERIA:
        close = difflib.get_close_matches(name, NAMES, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(NAMES)}"
        raise CriterionError(f"no criterion {name!r}; {hint}")
    return _CRITERIA[name]
