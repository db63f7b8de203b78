"""Every vision family loses 30 % of its parameters, rightly, and goes on taking other pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError
from tests import conformance_table
from tests.vision import check, table
from tests.vision.families import (
    ALONE,
    ENDS,
    FAMILIES,
    RATIO,
    Family,
    built,
    frozen_axes,
    pruned,
)


def _cases(families: Any) -> Any:
    return pytest.mark.parametrize(
        "family",
        [pytest.param(f, id=f.name, marks=pytest.mark.slow if f.like else ()) for f in families],
    )


every_family = _cases(FAMILIES)
TOLERANCE = 1e-5  # the picture moves some outputs by 1e-3 of their size only


@every_family
def test_says_something(family: Family) -> None:
    """A model whose outputs hardly depend on the picture hides every mistake."""
    with torch.no_grad():
        for output in pytree.tree_leaves(built(family.name)(family.pictures(4))):
            assert output.isfinite().all()
            assert output.std(0).mean() > 1e-3 * output.abs().mean()


@every_family
def test_loses_what_was_asked(family: Family) -> None:
    """30 % of the parameters, to within one unit; the oracle agreed."""
    result, _ = pruned(family.name)
    model, small = built(family.name), dict(result.graph_module.named_parameters())
    before = sum(p.numel() for p in model.parameters())
    # What only training reads, such as an auxiliary head, is in no graph and counts as kept.
    after = sum(small.get(name, p).numel() for name, p in model.named_parameters())
    assert (before, after) == (result.plan.parameters_before, result.plan.parameters_after)
    assert RATIO <= 1 - after / before < RATIO + 0.01
    assert result.report is not None
    assert result.report.relative_error < TOLERANCE


@every_family
def test_is_the_original_without_those_units(family: Family) -> None:
    """By a check that knows nothing of the library, at the traced batch and another."""
    small = pruned(family.name)[0].graph_module
    for batch in (2, 3):
        assert check.error(built(family.name), small, family.pictures(batch)) < TOLERANCE


@every_family
def test_everything_inside_can_be_pruned(family: Family) -> None:
    """Only the picture's channels and the output's features stay."""
    count, frozen = frozen_axes(family.name)
    inside = {why: axes for why, axes in frozen.items() if not why.startswith(ENDS)}
    planes = ["conv1.0.weight[1]"] if family.name in ("googlenet", "inception_v3") else []
    assert inside == ({ALONE: planes} if planes else {})  # the picture's planes, one by one
    assert count >= 10


@_cases(f for f in FAMILIES if not f.fixed)
def test_takes_pictures_of_another_size(family: Family) -> None:
    result, warned = pruned(family.name)
    assert not any("is fixed" in warning for warning in warned)
    pictures = family.pictures(4, family.other)
    assert check.error(built(family.name), result.graph_module, pictures) < TOLERANCE


@_cases(f for f in FAMILIES if f.fixed)
def test_refuses_pictures_of_another_size(family: Family) -> None:
    """As the model itself does, but in words."""
    result, _ = pruned(family.name)
    pictures = family.pictures(2, family.other)
    with pytest.raises((RuntimeError, AssertionError)):
        built(family.name)(pictures)
    with pytest.raises(FxpruneError, match=family.fixed):
        result.graph_module(pictures)


@every_family
def test_the_page_is_current(family: Family) -> None:
    """Every cell; but errors are float noise, other on every machine, and need to be small."""
    said, found = conformance_table.committed_vision()[family.name], table.cells(family)
    for column in table.ERRORS:
        for cell in (said, found):
            assert not cell[column] or float(cell[column]) < TOLERANCE, column
        found[column] = said[column] if found[column] else ""
    assert found == said, "run: python -m tests.conformance_table"


# the check itself


class Normed(nn.Module):
    """A residual stream under both norms that average over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.norm, self.group = nn.LayerNorm(6), nn.GroupNorm(2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.first(x))
        return self.second(self.norm(x.movedim(1, -1)).movedim(-1, 1)).mean((2, 3))


def cut(model: nn.Module, kept: dict[str, tuple[int, list[int]]]) -> nn.Module:
    """A copy with some axes cut to those places, by hand."""
    small = type(model)()
    small.load_state_dict(model.state_dict())
    for name, (axis, places) in kept.items():
        path, _, leaf = name.rpartition(".")
        module = small.get_submodule(path)
        value = getattr(module, leaf).detach().index_select(axis, torch.tensor(places))
        setattr(module, leaf, nn.Parameter(value))
    return small


def halved() -> tuple[nn.Module, nn.Module]:
    """A model and the same with four of the six channels, two of each group."""
    torch.manual_seed(0)
    model, places = Normed(), [0, 2, 4, 5]
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    owners = (
        "first.weight",
        "first.bias",
        "norm.weight",
        "norm.bias",
        "group.weight",
        "group.bias",
    )
    small = cut(model, {**dict.fromkeys(owners, (0, places)), "second.weight": (1, places)})
    small.norm.normalized_shape, small.group.num_channels = (4,), 4
    return model, small


def test_the_check_finds_what_went() -> None:
    model, small = halved()
    values = check.masked(model, small)
    assert [i for i, row in enumerate(values["first.weight"]) if row.any()] == [0, 2, 4, 5]
    assert check.error(model, small, torch.randn(2, 3, 4, 4)) < 1e-6


@pytest.mark.parametrize("name", ["first.bias", "second.weight", "norm.weight", "group.bias"])
def test_the_check_sees_damage(name: str) -> None:
    model, small = halved()
    wrong = small.get_parameter(name)
    with torch.no_grad():
        wrong.copy_(wrong.flip(-1 if wrong.dim() == 1 else 1))
    values = dict(small.named_parameters())
    assert values[name] is wrong
    with pytest.raises((AssertionError, IndexError)):
        assert check.error(model, small, torch.randn(2, 3, 4, 4)) < TOLERANCE
