"""Loops over the experts that were hit: captured over all of them, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.errors import TraceError
from tests.loops import EXPERTS, RUNS, Loop, built, by_number, by_tensor, hit, inputs


@pytest.mark.parametrize("run", RUNS, ids=lambda each: each.__name__)
def test_all_are_captured(run: Callable[..., Tensor]) -> None:
    """Few rows hit few experts."""
    model = built(run)
    graph = fxprune.trace(model, (inputs(9),)).graph_module
    with torch.no_grad():
        for rows in (1, 2, 9, 30):
            assert torch.equal(graph(inputs(rows)), model(inputs(rows)))


def test_classes_that_nothing_points_to() -> None:
    """One more class than experts, for which there are no weights."""
    model = built(by_tensor, classes=EXPERTS + 1)
    graph = fxprune.trace(model, (inputs(9),)).graph_module
    with torch.no_grad():
        assert torch.equal(graph(inputs(3)), model(inputs(3)))


def test_on_meta_and_of_one_row() -> None:
    with torch.device("meta"):
        blank = built(by_number)
    model = built(by_number)
    for example in (inputs(9), inputs(1)):
        graph = fxprune.trace(blank, (example.to("meta"),)).graph_module
        names = [node.target for node in graph.graph.nodes]
        found = fxprune.trace(model, (example,)).graph_module
        assert names == [node.target for node in found.graph.nodes]
        with torch.no_grad():
            assert torch.equal(found(example), model(example))


def counted(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out, count = torch.zeros_like(x), 0
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
        count += 1
    return out / count


def numbered(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number, (e,) in enumerate(hit(mask).tolist()):
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], number) * weights[row, place, None])
    return out


def for_all_rows(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
        out += self.parts[e].bias
    return out


def for_some(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Only every second expert does more."""
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
        out = out + self.parts[e].bias if e % 2 else out
    return out


def remembered(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The sum of no rows is 0, and is added all the same."""
    out, total = torch.zeros_like(x), torch.zeros(())
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        values = self.expert(x[row], e) * weights[row, place, None]
        out.index_add_(0, row, values)
        total = total + values.sum() + 1
    return out * total


def other_rows(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Rows of an expert that is perhaps not hit."""
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[(e + 1) % EXPERTS])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
    return out


def only_the_first(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
        break
    return out


def of_the_last(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Writes the rows of the last expert that was hit once more."""
    out = by_number(self, x, weights, mask)
    for (e,) in hit(mask).tolist():
        row = torch.where(mask[e])[1]
    return out.index_add(0, row, x[row])


def overwritten(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The mask is another one by the time that its rows are listed."""
    out, found = torch.zeros_like(x), hit(mask)
    mask.copy_(mask.flip(0))
    for (e,) in found.tolist():
        place, row = torch.where(mask[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
    return out


MORE = (
    counted, numbered, for_all_rows, for_some, remembered, other_rows, only_the_first,
    of_the_last, overwritten,
)  # fmt: skip


@pytest.mark.parametrize("run", MORE, ids=lambda each: each.__name__)
def test_a_loop_that_does_more_is_refused(run: Callable[..., Tensor]) -> None:
    with pytest.raises(TraceError, match=r"does more than to write the rows .*loops.py:\d+"):
        fxprune.trace(built(run), (inputs(9),))


def negative(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Of numbers that cancel out it is not known where some are."""
    out = torch.zeros_like(x)
    signed = mask - mask.flip(1)
    for (e,) in hit(signed).tolist():
        place, row = torch.where(signed[e])
        out.index_add_(0, row, self.expert(x[row], e) * weights[row, place, None])
    return out


def over_rows(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """As many passes as rows, which is no number that a graph knows."""
    out = torch.zeros_like(x)
    for (row,) in (mask.sum((0, 1)) > 2).nonzero().tolist():
        out[row] = x[row]
    return out


@pytest.mark.parametrize("run", [negative, over_rows], ids=lambda each: each.__name__)
def test_what_is_no_mask_stays_refused(run: Callable[..., Tensor]) -> None:
    with pytest.raises(TraceError, match="depends on values of the data"):
        fxprune.trace(built(run), (inputs(9),))
