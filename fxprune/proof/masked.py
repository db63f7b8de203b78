"""The original with removed units switched off, at its full size."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxprune.axes import dims
from fxprune.axes.dims import Dim, Layout
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.op import find_op
from fxprune.ops.resize import Resizer
from fxprune.proof.runs import Run
from fxprune.trace.traced import Traced

aten = torch.ops.aten


class Masked(Run):
    """The original graph with removed units zeroed in the weights and left out of averages."""

    def __init__(
        self,
        traced: Traced,
        graph: DependencyGraph,
        resize: Resizer,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(traced.graph_module, dtype, **options)
        self._resize = resize
        self._symbols: dict[int, int] = {}
        # Where symbolic sizes are first seen: the axis of a value, and the stand-in.
        self._sized: dict[fx.Node, list[tuple[int, int]]] = {}
        self._shrinking: set[fx.Node] = set()  # values that lose units
        self._layouts: dict[fx.Node, tuple[Layout, ...]] = {}  # parameters that do
        seen: set[int] = set()
        for node in traced.graph_module.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                for axis, (size, free) in enumerate(resize.sizes.shape(value)):
                    if free and size not in seen:
                        seen.add(size)
                        self._sized.setdefault(node, []).append((axis, size))
            axes = resize.inferred.axes.get(node)
            if isinstance(axes, tuple) and any(map(resize.changed, axes)):
                self._shrinking.add(node)
            layouts = graph.layouts.get(str(node.target)) if node.op == "get_attr" else None
            parameter = isinstance(traced.tensors.get(str(node.target)), nn.Parameter)
            if layouts and parameter and any(map(resize.changed, layouts)):
                self._layouts[node] = layouts

    def load(self, node: fx.Node, user: fx.Node) -> Any:
        """The value of a node, in which removed units are zero where they could count."""
        value = super().load(node, user)
        if node in self._layouts:
            return self._zeroed(value, self._layouts[node])
        if node in self._shrinking and find_op(user.target).contracts and value.is_floating_point():
            return self._zeroed(value, self._resize.axes(node))
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note what its symbolic sizes are in this run."""
        result = self._run(n)
        for axis, size in self._sized.get(n, ()):
            self._symbols[size] = result.shape[axis]
        self.note(n, result)
        return result

    def _actual(self, layout: Layout) -> Layout:
        """The layout with the sizes of this run in place of stand-ins."""
        layout = dims.resolve(layout)
        if isinstance(layout, Dim):
            return Dim(self._symbols.get(layout.size, layout.size)) if layout.free else layout
        return type(layout)(tuple(map(self._actual, layout.parts)))

    def _run(self, n: fx.Node) -> Any:
        if self._shrinking.isdisjoint(n.all_input_nodes):
            return super().run_node(n)
        if n.target is aten.group_norm.default:
            given = (*self.fetch_args_kwargs_from_env(n)[0][:5],)
            return self._group_norm(n, *given, *(None, None, 1e-5)[len(given) - 2 :])
        if n.target is aten.native_group_norm.default:
            x, weight, bias, *_, groups, eps = self.fetch_args_kwargs_from_env(n)[0]
            return self._group_norm(n, x, groups, weight, bias, eps), None, None
        return self._reduce(n) if _averages(n) else super().run_node(n)

    def _zeroed(self, tensor: torch.Tensor, layouts: tuple[Layout, ...]) -> torch.Tensor:
        for axis, layout in enumerate(map(self._actual, layouts)):
            if self._resize.changed(layout):
                keep = torch.zeros(layout.size, dtype=torch.bool, device=tensor.device)
                keep[self._resize.index(layout).to(tensor.device)] = True
                shape = [-1 if a == axis else 1 for a in range(tensor.dim())]
                tensor = torch.where(keep.view(shape), tensor, 0)
        return tensor

    def _group_norm(
        self, n: fx.Node, x: Any, groups: int, weight: Any, bias: Any, eps: float
    ) -> torch.Tensor:
        """By hand and at full size: which channels make a group is then not taken from the plan."""
        source: Any = n.args[0]
        keep = self._zeroed(torch.ones_like(x), self._resize.axes(source))
        blocks, kept = (each.reshape(x.shape[0], groups, -1) for each in (x, keep))
        count = kept.sum(-1, keepdim=True).clamp(min=1)
        centred = (blocks - (blocks * kept).sum(-1, keepdim=True) / count) * kept
        variance = centred.square().sum(-1, keepdim=True) / count
        result: torch.Tensor = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
        channels = (-1, *[1] * (x.dim() - 2))
        if weight is not None:
            result = result * weight.view(channels)
        if bias is not None:
            result = result + bias.view(channels)
        return result * keep

    def _reduce(self, n: fx.Node) -> Any:
        """Gather the kept units, run the op on them, scatter the result among zeros."""
        patch = find_op(n.target).patch
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        small = graph.node_copy(
            n, lambda source: copies.setdefault(source, graph.placeholder(source.name))
        )
        small.meta = dict(n.meta)
        if patch:
            patch(self._resize, n, small)
        inputs = {copy: self._gather(source) for source, copy in copies.items()}
        args, kwargs = fx.node.map_arg((small.args, small.kwargs), lambda c: inputs[c])
        assert callable(small.target)
        result, axes = small.target(*args, **kwargs), self._resize.inferred.axes[n]
        if isinstance(axes, list):
            values = (self._restored(n, place, value) for place, value in enumerate(result))
            return tuple(self._scatter(*each) for each in zip(values, axes, strict=True))
        return self._scatter(self._restored(n, 0, result), axes)

    def _restored(self, n: fx.Node, place: int, value: torch.Tensor) -> torch.Tensor:
        """Positions among the kept units as positions among all."""
        layout = self._resize.inferred.points.get((n, place))
        if layout is None or not self._resize.changed(layout):
            return value
        return self._resize.index(layout).to(value.device)[value]

    def _gather(self, node: fx.Node) -> Any:
        value = super().load(node, node)
        axes = self._resize.inferred.axes.get(node)
        if not isinstance(axes, tuple):
            return value
        return self._resize.slice(value, tuple(map(self._actual, axes)))

    def _scatter(self, value: torch.Tensor, layouts: tuple[Layout, ...]) -> torch.Tensor:
        for axis, layout in enumerate(map(self._actual, layouts)):
            if self._resize.changed(layout):
                shape = [layout.size if a == axis else s for a, s in enumerate(value.shape)]
                place = self._resize.index(layout).to(value.device)
                value = value.new_zeros(shape).index_copy(axis, place, value)
        return value


def _averages(node: fx.Node) -> bool:
    reduces = find_op(node.target).reduces
    return bool(reduces(node) if callable(reduces) else reduces)
