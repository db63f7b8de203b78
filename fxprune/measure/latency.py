"""Measure how the latency of a model falls as groups lose units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fxprune.errors import SelectionError
from fxprune.groups.dependency import discover
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.groups.parameters import fingerprint
from fxprune.measure import latency_tables as store
from fxprune.measure import report
from fxprune.plan import Plan
from fxprune.progress import track
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.budget import check_shape
from fxprune.select.candidates import choose_groups
from fxprune.select.latency import LatencyCurve, LatencyTable

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.trace import Traced

# Every size in several passes, so that a slow minute of the machine does not meet one size alone;
# in each so many rounds, in turns with the whole model.
PASSES, ROUNDS, SECONDS = 3, 5, 15.0


def measure_latency(
    graph: DependencyGraph,
    shape: tuple[int, int] = (1, 64),
    *,
    kinds: Collection[str] = DEFAULT_KINDS,
    groups: Collection[str] | None = None,
    sizes: int = 8,
    cache: bool = True,
    progress: bool = False,
) -> LatencyTable:
    """Measure a forward pass of this model, on its device, at several sizes of its groups.

    The idea is ZipLM's (arXiv 2302.04089): a table of measured sizes says what pruning saves on a
    machine. A layer alone would find its weights in the processor's cache, which a whole model does
    not, so whole models are timed: all groups that are alike lose the same number of units, each
    size in turns with the whole model, and the groups share the difference equally. What comes out
    is made monotone.

    Args:
        graph: the groups of the model, with its weights on the device that counts.
        shape: sequences and tokens of the forward pass.
        kinds: kinds of groups to measure.
        groups: these groups by name, whatever their kind.
        sizes: how many sizes of a group are timed at most, besides the whole one.
        cache: read the result from the cache folder if this model was measured on this machine
            before, and keep it there.
        progress: show progress bars.

    Raises:
        SelectionError: no such groups, no weights, or inputs of this shape do not run.
    """
    check_shape(shape)
    if sizes < 1:
        raise SelectionError(f"sizes={sizes}: at least 1")
    traced = graph.traced
    if any(p.is_meta for p in traced.module.parameters()):
        raise SelectionError("latency is measured with weights, and the model's are on meta")
    chosen, _ = choose_groups(graph, kinds, names=groups)
    key = store.key(graph, shape, [group.name for group in chosen], sizes)
    if cache and (found := store.read(key)) is not None:
        return found
    table = _measured(graph, shape, _alike(graph, chosen), sizes, progress)
    if cache:
        store.write(key, table)
    return table


def timed(
    traced: Traced, modules: Sequence[nn.Module], shape: tuple[int, int], rounds: int = ROUNDS
) -> list[float]:
    """Seconds of a forward pass of each module, in turns.

    Of the first the median; of the others that times the median of the rounds' ratios to it, for a
    machine that is slow in one round and fast in the next is the same in both calls of a round.

    Raises:
        SelectionError: inputs of this shape do not run.
    """
    args = report.resized(traced.args, *shape)
    kwargs = report.resized(traced.kwargs, *shape)
    calls = [report.forward(m, args, kwargs) for m in modules]
    try:
        calls[0]()
    except Exception as error:
        raise SelectionError(
            f"the model does not run on inputs of shape {shape}: {str(error).splitlines()[0]}"
        ) from error
    first, *others = report.turns(calls, rounds, SECONDS)
    whole = median(first)
    ratios = [median(b / a for a, b in zip(first, other, strict=True)) for other in others]
    return [whole, *(whole * ratio for ratio in ratios)]


def unpruned(traced: Traced) -> nn.Module:
    """The model as rewriting leaves it, with all units: what a pruned one compares with."""
    return rewrite(traced, Plan.of(discover(traced), {}))


def _measured(
    graph: DependencyGraph,
    shape: tuple[int, int],
    alike: Sequence[Sequence[Group]],
    sizes: int,
    progress: bool,
) -> LatencyTable:
    traced = graph.traced
    most = unpruned(traced)
    if traced.original is None:
        (base,) = (whole,) = timed(traced, [most], shape)
    else:
        whole, base = timed(traced, [unpruned(traced.original), most], shape)
    jobs = [(groups, kept) for groups in alike for kept in _sizes(groups[0].size, sizes)]
    spent: dict[tuple[str, int], list[float]] = defaultdict(list)
    what = f"timing {len(jobs)} sizes of the model's groups"
    for groups, kept in track(jobs * PASSES, what, progress):
        plan = Plan.of(graph, {group.name: tuple(range(kept)) for group in groups})
        large, small = timed(traced, [most, rewrite(traced, plan)], shape)
        spent[groups[0].name, kept].append(small / large)
    ratios = {key: median(each) for key, each in spent.items()}
    return LatencyTable(
        shape=shape,
        whole=whole,
        base=base,
        curves=tuple(_curve(groups, sizes, base, ratios) for groups in alike),
        fingerprint=fingerprint(graph),
        removed=traced.removed,
        machine=store.machine(traced),
    )


def _alike(graph: DependencyGraph, groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of the same kind and size, in tensors of the same shapes."""
    found: dict[Any, list[Group]] = {}
    for group in groups:
        shapes = sorted(
            (tuple(layout.size for layout in graph.layouts[site.tensor]), site.axis)
            for site in group.sites
            if site.parameter
        )
        found.setdefault((group.kind, group.size, tuple(shapes)), []).append(group)
    return list(found.values())


def _sizes(size: int, most: int) -> list[int]:
    """Numbers of units below the whole one, down to 1."""
    return sorted({round(n) for n in np.linspace(1, size, most + 1)[:-1]} - {size})


def _curve(
    groups: Sequence[Group], sizes: int, base: float, ratios: dict[tuple[str, int], float]
) -> LatencyCurve:
    kept = _sizes(groups[0].size, sizes)
    saved = [base * (1 - ratios[groups[0].name, n]) / len(groups) for n in kept]
    return LatencyCurve(
        groups=tuple(group.name for group in groups),
        kept=(*kept, groups[0].size),
        saved=(*falling(saved), 0.0),
    )


def falling(values: Sequence[float]) -> list[float]:
    """The nearest values, by squares, that never rise nor are negative (pool adjacent violators).

    Noise must not make a smaller model slower, or a budget could be met by putting units back.
    """
    blocks: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] < mean:
            before, many = blocks.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        blocks.append((mean, count))
    return [max(mean, 0.0) for mean, count in blocks for _ in range(count)]
