"""The part of docs/conformance.md that tells of vision families."""

from __future__ import annotations

from collections import Counter

from fxprune.errors import FxpruneError
from tests.vision import check
from tests.vision.families import BY_NAME, RATIO, Family, built, frozen_axes, pruned

INTRODUCTION = f"""\
## Vision

The families of torchvision and of common segmentation and detection code, written small in
`tests/vision`. Each lost {RATIO:.0%} of its parameters (whole channels, hidden units and heads).
`axes`: of the channels and features that the convolutions and linear layers read and write, so many
of so many axes can lose units; `stay` says why the others cannot. `oracle` is the error that
`fxprune.verify` measures, `by value` that of a second check, which shares no code with the library:
it finds the units that went by comparing values, zeroes them in the original and runs both. `there`
is that error for pictures of another size than the one the model was traced with, and another
batch (1e-5 is allowed).

"""
ERRORS = ("oracle", "by value", "there")
COLUMNS = ("family", "groups", "axes", "stay", "oracle", "by value", "other size", "there")


def cells(family: Family) -> dict[str, str]:
    """One line of the table, by column. All but ``ERRORS`` is the same on every machine."""
    result, _ = pruned(family.name)
    assert result.report is not None
    kinds = Counter(group.kind for group in result.graph.groups)
    count, frozen = frozen_axes(family.name)
    here = check.error(built(family.name), result.graph_module, family.pictures(3))
    answer, there = at_another_size(family)
    return {
        "family": family.name,
        "groups": ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds)),
        "axes": f"{count - sum(map(len, frozen.values()))} of {count}",
        "stay": "; ".join(sorted(frozen)),
        "oracle": f"{result.report.relative_error:.0e}",
        "by value": f"{here:.0e}",
        "other size": answer,
        "there": there,
    }


def at_another_size(family: Family) -> tuple[str, str]:
    """Such as ``40 x 48`` and the error there; or why not, and nothing."""
    pictures, small = family.pictures(4, family.other), pruned(family.name)[0].graph_module
    try:
        small(pictures)
    except FxpruneError as error:
        return f"no: {error}", ""
    error = check.error(built(family.name), small, pictures)
    return " x ".join(map(str, family.other)), f"{error:.0e}"


def rows() -> list[dict[str, str]]:
    """Every line."""
    return [cells(family) for family in BY_NAME.values()]
