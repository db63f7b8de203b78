"""Cleaning keeps what writes, what views and what copies, call after call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from tests.trace.small import Small


class Increment(nn.Module):
    def forward(self, y: torch.Tensor) -> torch.Tensor:
        y.add_(1.0)
        return y


def indexed(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = h[:, [0, 1, 2, 3]]
    y += 1.0
    return m.b(h.relu()) + y


def indexed_and_source_written(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = h[:, [4, 5, 6, 7]]
    h.mul_(3.0)
    return m.b(h) * y


def copied_for_a_child(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    return m.b(h * m.child(h.to(h.dtype, copy=True)))


def cloned(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = h.clone()
    y.relu_()
    return m.b(h - y)


def contiguous(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h.contiguous().add_(1.0)  # h itself
    return m.b(h)


def cast_to_its_own_dtype(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = h.float()
    y.mul_(2.0)  # h itself
    return m.b(h + y)


def cast_as_itself(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h.type_as(x).sigmoid_()
    return m.b(h)


def dropped_out(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    F.dropout(h, 0.5, m.training).add_(1.0)
    return m.b(h)


def literal(m: Small, x: torch.Tensor) -> torch.Tensor:
    c = torch.tensor([1.0, 2.0, 0.5, 1.5])
    c += 1
    return m.b(m.a(x).relu()) * c


def literal_through_a_view(m: Small, x: torch.Tensor) -> torch.Tensor:
    c = torch.tensor([[1.0, 2.0], [0.5, 1.5]])
    c.view(-1)[1:3].mul_(2.0)
    return m.b(m.a(x).relu()) * c.flatten()


def literal_index_written(m: Small, x: torch.Tensor) -> torch.Tensor:
    i = torch.tensor([0, 1, 2, 3])
    i += 2
    return m.a(x)[:, i]


def whole_slice(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h[:, :] += 1.0
    return m.b(h)


def part(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h[:, 2:7].mul_(-1.0)
    return m.b(h)


def narrowed(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    first = h.narrow(-1, 0, 8)
    first.tanh_()
    return m.b(h)


def reshaped_copy(m: Small, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = h.t().reshape(-1)  # a copy, for the strides do not allow a view
    y.zero_()
    return m.b(h) + y.sum()


def filled_in(m: Small, x: torch.Tensor) -> torch.Tensor:
    z = torch.zeros_like(m.a(x))
    z[:, :3] = m.a(x)[:, :3]
    return m.b(z)


def input_copy(m: Small, x: torch.Tensor) -> torch.Tensor:
    y = x.to(torch.float32, copy=True)
    y += 1.0
    return m.b(m.a(y)) + m.b(m.a(x))


CASES: tuple[Callable[..., Any], ...] = (
    indexed, indexed_and_source_written, copied_for_a_child, cloned, contiguous,
    cast_to_its_own_dtype, cast_as_itself, dropped_out, literal, literal_through_a_view,
    literal_index_written, whole_slice, part, narrowed, reshaped_copy, filled_in, input_copy,
)  # fmt: skip


@pytest.mark.parametrize("run", CASES, ids=lambda run: run.__name__)
def test_memory_that_is_written_to(run: Callable[..., Any]) -> None:
    model, x = Small(run, child=Increment()).eval(), torch.randn(3, 8)
    graph = fxprune.trace(model, (x,)).graph_module
    other = torch.randn(5, 8)
    with torch.no_grad():
        for _ in range(2):  # nothing drifts from call to call
            torch.testing.assert_close(graph(x.clone()), model(x.clone()))
            torch.testing.assert_close(graph(other.clone()), model(other.clone()))


def test_what_is_only_read_is_a_slice_and_no_copy() -> None:
    graph = fxprune.trace(
        Small(lambda m, x: m.a(x)[:, [2, 3, 4]] * torch.tensor(2.0)), (torch.randn(3, 8),)
    ).graph_module
    names = {str(node.target) for node in graph.graph.nodes}
    assert "aten.slice.Tensor" in names
    assert not names & {"aten.index.Tensor", "aten.clone.default", "aten.lift_fresh_copy.default"}
