"""Size patches where more than one op takes part; single ops are in tests/axes/test_rules.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from tests.zoo import BY_NAME, OTHER, built

aten = torch.ops.aten


class Root(nn.Module):
    """Parameters of the root module itself, which no leaf module holds."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.rand(shape) + 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def graph_of(body: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(Root(body, **shapes), (torch.rand(2, 7, 6),)))


def pruned(graph: DependencyGraph, kept: dict[int, tuple[int, ...]]) -> fx.GraphModule:
    """Keep units of the groups of these sizes, and prove the result at another batch and length."""
    plan = Plan.of(graph, {g.name: kept[g.size] for g in graph.groups if g.size in kept})
    small = fxprune.rewrite(graph.traced, plan)
    fxprune.verify(graph.traced, small, plan)
    fxprune.verify(graph.traced, small, plan, torch.rand(5, 9, 6))
    return small


def arguments(small: fx.GraphModule, target: Any) -> list[Any]:
    return [node.args[1:] for node in small.graph.nodes if node.target is target]


def mlp(m: Any, x: Tensor) -> Tensor:
    return (x @ m.a).relu() @ m.b


def test_parameters_of_the_root_module() -> None:
    small = pruned(graph_of(mlp, a=(6, 12), b=(12, 5)), {12: (1, 4, 5)})
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == {
        "a": (6, 3),
        "b": (3, 5),
    }
    assert not list(small.buffers())


def test_view_sizes() -> None:
    graph = graph_of(
        lambda m, x: (x @ m.a).unflatten(-1, (3, 4)).sin().flatten(2) @ m.b, a=(6, 12), b=(12, 5)
    )
    small = pruned(graph, {3: (0, 2), 4: (1,)})
    assert arguments(small, aten.unflatten.int) == [(-1, [2, 1])]


def test_split_lists_what_each_piece_keeps() -> None:
    graph = graph_of(
        lambda m, x: torch.cat((x @ m.a).chunk(3, -1)[1:], -1) @ m.b, a=(6, 12), b=(8, 5)
    )
    names = [g.name for g in graph.groups if g.size == 4]
    plan = Plan.of(graph, {names[0]: (0, 1, 3), names[1]: (2,)})
    small = fxprune.rewrite(graph.traced, plan)
    fxprune.verify(graph.traced, small, plan)
    ((sizes, axis),) = arguments(small, aten.split_with_sizes.default)
    assert (sorted(sizes), axis) == ([1, 3, 4], 2)


def test_boundaries_of_slices_move_to_the_kept_units_before_them() -> None:
    graph = graph_of(lambda m, x: (x @ m.a)[..., 5:-3] @ m.b, a=(6, 12), b=(4, 5))
    small = pruned(graph, {5: (0, 4), 4: (0, 1, 2), 3: (1,)})
    assert arguments(small, aten.slice.Tensor) == [(2, 2, 5)]


def test_implicit_attention_scale_becomes_explicit_only_when_head_size_shrinks() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = ((x @ w).unflatten(-1, (3, -1)).mT.mT.transpose(1, 2) for w in (m.q, m.k, m.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ m.o

    graph = graph_of(body, q=(6, 12), k=(6, 12), v=(6, 15), o=(15, 5))
    for kept, scale in (({3: (0, 2), 5: (1,)}, None), ({4: (0, 3)}, 0.5)):
        small = pruned(graph, kept)
        (call,) = (n for n in small.graph.nodes if "scaled_dot" in str(n.target))
        assert call.kwargs.get("scale") == scale


def test_squeeze_spares_an_axis_pruned_to_one_unit() -> None:
    graph = graph_of(lambda m, x: (x @ m.a).unsqueeze(1).squeeze() @ m.b, a=(6, 12), b=(12, 5))
    small = pruned(graph, {12: (7,)})
    assert small(torch.rand(2, 7, 6)).shape == (2, 7, 5)
    assert arguments(small, aten.squeeze.dims) == [([1],)]


def test_kept_numbers_of_an_arange_are_a_buffer() -> None:
    graph = graph_of(lambda m, x: x @ m.a * torch.arange(12) @ m.b, a=(6, 12), b=(12, 5))
    small = pruned(graph, {12: (2, 11)})
    assert [buffer.tolist() for buffer in small.buffers()] == [[2, 11]]
    assert small.state_dict().keys() == {"a", "b", "_kept_arange"}


@pytest.mark.parametrize("read_back", [False, True])
def test_symbolic_products_exchange_their_static_factor_once(read_back: bool) -> None:
    """``batch * heads`` may be computed, or read off a value that is smaller already."""

    def body(m: Any, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = (x @ m.a).unflatten(-1, (3, 4)).transpose(1, 2).reshape(batch * 3, length, 4)
        rows = y.shape[0] if read_back else batch * 3
        y = y.view(rows, length, 2, 2).sin().reshape(rows, length, 4)
        return y.view(batch, 3, length, 4).transpose(1, 2).flatten(2) @ m.b

    graph = graph_of(body, a=(6, 12), b=(12, 5))
    pruned(graph, {3: (0, 2)})
    pruned(graph, {3: (1,), 2: (1,)})


@pytest.mark.parametrize("name", ["gpt2", "opt"])
@pytest.mark.parametrize("counts", [{"heads": 2, "v_dim": 1}, {"heads": 1, "qk_dim": 1}])
def test_attention_with_axes_of_one_unit(name: str, counts: dict[str, int]) -> None:
    """Such an axis has no stride of its own: a reshape then gives a view that is not contiguous.

    In GPT-2 a module of its own views what attention gives.
    """
    args, kwargs = BY_NAME[name].example()
    graph = fxprune.discover(fxprune.trace(built(name, "sdpa"), args, kwargs))
    kept = {g.name: counts.get(g.name.rpartition(":")[2]) for g in graph.groups}
    plan = Plan.of(graph, {group: tuple(range(n)) for group, n in kept.items() if n})
    assert len(plan.kept) == 4
    small = fxprune.rewrite(graph.traced, plan)
    args, kwargs = BY_NAME[name].example(*OTHER)
    fxprune.verify(graph.traced, small, plan, kwargs or args)
    whole, cut = (dict(m.named_modules()) for m in (built(name, "sdpa"), small))
    leaves = [n for n, m in whole.items() if type(m).__name__ in ("Conv1D", "Linear")]
    assert all(type(cut[n]) is type(whole[n]) for n in leaves)


def test_views_where_export_dropped_a_contiguous() -> None:
    """The kernel for equal head sizes gives strides at which ``contiguous()`` has nothing to do."""

    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = ((x @ w).unflatten(-1, (3, -1)).transpose(1, 2) for w in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return y.view(*x.shape[:2], 12) @ m.o

    graph = graph_of(body, q=(6, 12), k=(6, 12), v=(6, 12), o=(12, 5))
    assert not any("contiguous" in str(n.target) for n in graph.traced.graph_module.graph.nodes)
    query_key, value = [g.name for g in graph.groups if g.size == 4]
    for name in (query_key, value):
        plan = Plan.of(graph, {name: (0, 3)})
        small = fxprune.rewrite(graph.traced, plan)
        fxprune.verify(graph.traced, small, plan, torch.rand(5, 9, 6))


def test_views_of_memory_that_is_written_stay() -> None:
    """A reshape that copies would lose what is written through it."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = x @ m.a
        y.view(*x.shape[:2], 3, 4).transpose(2, 3).mul_(2.0)
        return y.sin().view(*x.shape[:2], 12) @ m.b

    small = pruned(graph_of(body, a=(6, 12), b=(12, 5)), {3: (0, 2)})
    ((*_, kept),) = [sizes for (sizes,) in arguments(small, aten.view.default)]
    assert kept == 4
    assert len(arguments(small, aten.reshape.default)) == 1


def test_learned_positions_may_be_fewer_than_a_stand_in_length() -> None:
    graph = graph_of(
        lambda m, x: (x @ m.a + m.p[: x.shape[1]]) @ m.b, a=(6, 12), p=(30, 12), b=(12, 5)
    )
    assert pruned(graph, {12: (3, 4)}).p.shape == (30, 2)


def test_regions_of_control_flow_stay() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.cond(x.sum() > 0, lambda z: z.sin(), lambda z: z.cos(), (x,))
        return mlp(m, y)

    graph = graph_of(body, a=(6, 12), b=(12, 5))
    small = pruned(graph, {12: (0, 1)})
    assert small(torch.rand(2, 7, 6)).shape == (2, 7, 5)


def test_unpruned_graph_is_shared_and_unpatched() -> None:
    graph = graph_of(mlp, a=(6, 12), b=(12, 5))
    small = fxprune.rewrite(graph.traced, Plan.of(graph, {}))
    assert small.a is graph.traced.module.a
    x = torch.rand(3, 4, 6)
    assert torch.equal(small(x), graph.traced.module(x))


def test_attention_over_the_pixels_of_pictures_of_any_size() -> None:
    """Its scores, pixels by pixels, are more than a tensor holds at the stand-ins for sizes."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.qkv = nn.Conv2d(3, 8, 1), nn.Linear(8, 24)
            self.out = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.out(x + y)

    model = Pixels().eval()
    graph = fxprune.discover(fxprune.trace(model, torch.randn(2, 3, 6, 5)))
    plan = Plan.of(graph, {group.name: range(1, group.size) for group in graph.groups})
    small = fxprune.rewrite(graph.traced, plan)
    fxprune.verify(graph.traced, small, plan)
    assert small(torch.randn(3, 3, 4, 7)).shape == (3, 28, 4)
