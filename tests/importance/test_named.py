"""Every name gives its criterion."""

from __future__ import annotations

import pytest

from fxprune.criteria import REAP, ExpertNorm, Frequency
from fxprune.errors import CriterionError
from fxprune.importance import (
    FLAP,
    NAMES,
    OBS,
    ActivationNorm,
    Magnitude,
    PeakToPeak,
    Random,
    Taylor,
    WandaSP,
    by_name,
)

EXPECTED = {
    "random": Random(5),
    "magnitude": Magnitude(2),
    "magnitude-l1": Magnitude(1),
    "taylor": Taylor(order=1),
    "taylor2": Taylor(order=2),
    "taylor-mixed": Taylor(order="mixed"),
    "taylor-vector": Taylor(order=1, reduce="vector"),
    "obs": OBS(),
    "reap": REAP(),
    "frequency": Frequency(),
    "expert-norm": ExpertNorm(),
    "wanda-sp": WandaSP(),
    "flap": FLAP("WIFV"),
    "flap-ifv": FLAP("IFV"),
    "flap-wifn": FLAP("WIFN"),
    "activation-norm": ActivationNorm(2),
    "peak-to-peak": PeakToPeak(True),
    "peak-to-peak-static": PeakToPeak(False),
}


def test_names() -> None:
    assert {name: by_name(name, 5) for name in NAMES} == EXPECTED
    assert by_name("random") == Random(0)


def test_an_unknown_name() -> None:
    with pytest.raises(CriterionError, match="no criterion 'tailor'; did you mean taylor"):
        by_name("tailor")
    with pytest.raises(CriterionError, match="no criterion '%%'; choose from random, magnitude"):
        by_name("%%")
