"""Hand-made models whose groups are known without any analysis."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxprune.axes.dims import ONE, Dim, Layout, Product, resolve
from fxprune.errors import GroupError
from fxprune.groups.group import Group, Site


@dataclass(eq=False)
class ToyGraph:
    """Stands in for a DependencyGraph."""

    traced: SimpleNamespace
    layouts: dict[str, tuple[Layout, ...]]
    groups: tuple[Group, ...]
    frozen: tuple[Group, ...] = field(default=())

    def __getitem__(self, name: str) -> Group:
        for group in (*self.groups, *self.frozen):
            if group.name == name:
                return group
        raise GroupError(f"no group {name!r}")


class ToyBlock(nn.Module):
    """Grouped-query attention and a gated MLP."""

    def __init__(self, channels: int, kv: int, repeat: int, head: int, units: int) -> None:
        super().__init__()
        self.shape = (kv, repeat, head)
        self.q = nn.Linear(channels, kv * repeat * head, bias=True)
        self.k = nn.Linear(channels, kv * head, bias=False)
        self.v = nn.Linear(channels, kv * head, bias=False)
        self.o = nn.Linear(kv * repeat * head, channels, bias=False)
        self.gate = nn.Linear(channels, units, bias=False)
        self.up = nn.Linear(channels, units, bias=False)
        self.down = nn.Linear(units, channels, bias=False)
        self.norm = nn.RMSNorm(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        kv, repeat, head = self.shape
        n, length, _ = x.shape
        h = self.norm(x)
        q = self.q(h).view(n, length, kv * repeat, head).transpose(1, 2)
        k = self.k(h).view(n, length, kv, head).transpose(1, 2).repeat_interleave(repeat, 1)
        v = self.v(h).view(n, length, kv, head).transpose(1, 2).repeat_interleave(repeat, 1)
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.o(a.transpose(1, 2).reshape(n, length, -1)))
        return x + self.down(functional.silu(self.gate(x)) * self.up(x))


class ToyLM(nn.Module):
    """A language model of :class:`ToyBlock`, with tied embeddings."""

    def __init__(
        self,
        layers: int = 2,
        channels: int = 8,
        kv: int = 2,
        repeat: int = 3,
        head: int = 4,
        units: int = 10,
        vocabulary: int = 11,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, channels)
        self.layers = nn.ModuleList(
            ToyBlock(channels, kv, repeat, head, units) for _ in range(layers)
        )
        self.head = nn.Linear(channels, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def toy_graph(model: ToyLM) -> ToyGraph:
    """The groups of a :class:`ToyLM`: channel, MLP units, KV heads, query heads per KV head."""
    channel, vocabulary = Dim(model.embed.weight.shape[1]), Dim(model.embed.weight.shape[0])
    vocabulary.reason = "vocabulary"
    layouts: dict[str, tuple[Layout, ...]] = {
        "embed.weight": (vocabulary, channel),
        "scale": (channel,),
    }
    roots: list[tuple[str, str, Dim, tuple[str, int] | None]] = []
    for i, block in enumerate(model.layers):
        assert isinstance(block, ToyBlock)
        kv, repeat, head = (Dim(size) for size in block.shape)
        units = Dim(block.up.out_features)
        head.reason = "rotary"
        query, value = Product((kv, repeat, head)), Product((kv, head))
        pre, layer = f"layers.{i}", ("layers", i)
        layouts |= {
            f"{pre}.q.weight": (query, channel),
            f"{pre}.q.bias": (query,),
            f"{pre}.k.weight": (value, channel),
            f"{pre}.v.weight": (value, channel),
            f"{pre}.o.weight": (channel, query),
            f"{pre}.gate.weight": (units, channel),
            f"{pre}.up.weight": (units, channel),
            f"{pre}.down.weight": (channel, units),
            f"{pre}.norm.weight": (channel,),
        }
        roots += [
            (f"{pre}.attention:kv", "attention", kv, layer),
            (f"{pre}.attention:query", "query", repeat, layer),
            (f"{pre}.attention:head_dim", "head_dim", head, layer),
            (f"{pre}.mlp:units", "mlp", units, layer),
        ]
    roots.append(("channel", "channel", channel, None))
    parameters = dict(model.named_parameters())
    return make_graph(model, layouts, roots, parameters, {"head.weight": "embed.weight"})


def make_graph(
    module: nn.Module,
    layouts: dict[str, tuple[Layout, ...]],
    roots: list[tuple[str, str, Dim, tuple[str, int] | None]],
    parameters: dict[str, nn.Parameter],
    aliases: dict[str, str] | None = None,
) -> ToyGraph:
    """A graph from layouts and (name, kind, dim, layer) of every group."""
    groups = []
    for name, kind, dim, layer in roots:
        if dim.size == 1:
            continue
        sites = tuple(
            Site(tensor, axis, layout, tensor in parameters)
            for tensor, axes in layouts.items()
            for axis, layout in enumerate(axes)
            if contains(layout, dim)
        )
        groups.append(Group(name, kind, dim.size, sites, dim, False, dim.reason, layer))
    return ToyGraph(
        SimpleNamespace(
            graph_module=fx.GraphModule(nn.Module(), fx.Graph()),
            module=module,
            aliases=aliases or {},
            original=None,
            removed=(),
            dropped=frozenset(),
        ),
        layouts,
        tuple(group for group in groups if group.reason is None),
        tuple(group for group in groups if group.reason is not None),
    )


def contains(layout: Layout, dim: Dim) -> bool:
    """Whether the dim occurs in the layout."""
    layout = resolve(layout)
    if layout is ONE or isinstance(layout, Dim):
        return layout is dim
    return any(contains(part, dim) for part in layout.parts)


def positions(layout: Layout) -> list[list[tuple[Dim, int]]]:
    """For every position of the axis the (dim, unit) pairs it belongs to, by plain loops."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return [[(layout, unit)] for unit in range(layout.size)]
    if isinstance(layout, Product):
        result: list[list[tuple[Dim, int]]] = [[]]
        for part in layout.parts:
            result = [outer + inner for outer in result for inner in positions(part)]
        return result
    return [pairs for part in layout.parts for pairs in positions(part)]
