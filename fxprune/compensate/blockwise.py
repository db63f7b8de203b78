"""Blockwise distillation: one block after the other is trained to give its part of the stream."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.branches.find import find_branches
from fxprune.branches.unit import Unit
from fxprune.compensate.dense import Dense
from fxprune.compensate.edits import Write
from fxprune.compensate.places import readers
from fxprune.compensate.report import Compensated
from fxprune.compensate.residual import SAME_ROWS
from fxprune.data.graph_inputs import Masks, row_count
from fxprune.errors import CalibrationError
from fxprune.ops.op import packet
from fxprune.ops.resize import Resizer
from fxprune.progress import track
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.traced import Traced

_LEAST = 1e-3  # a tensor of zeros moves as one of this root mean square


@dataclass(frozen=True, eq=False)
class Exit:
    """Where the stream leaves a block.

    Attributes:
        block: the block.
        there: the node that gives the stream in the dense model; before a hole, behind that.
        here: the node that gives it in the smaller graph.
    """

    block: Unit
    there: fx.Node
    here: fx.Node


@dataclass(frozen=True)
class Schedule:
    """How long and how fast each block is trained.

    Attributes:
        epochs: passes over the batches that train, at most.
        learning_rate: Adam's at its highest, in parts of the root mean square of each tensor
            (Adafactor, 1804.04235, section 8). It rises over ten steps and falls to a tenth.
        patience: after so many passes without a lower validation error a block is left.
    """

    epochs: int = 2
    learning_rate: float = 1e-2
    patience: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "patience"):
            if getattr(self, name) < 1:
                raise CalibrationError(f"{name}={getattr(self, name)}: at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise CalibrationError(f"learning_rate={self.learning_rate}: it must be above 0")


def exits(traced: Traced, small: fx.GraphModule, dense: Dense) -> list[Exit]:
    """Where the stream leaves each block, in graph order; nothing if there are no blocks."""
    calls = readers(traced, small)
    names = {node.name: node for node in small.graph.nodes}
    found: dict[fx.Node, Unit] = {}
    for unit in find_branches(traced).of("block"):
        leaves = unit.exit
        while (here := _twin(leaves, names, calls)) is None and packet(leaves) in SAME_ROWS:
            leaves = leaves.all_input_nodes[0]
        if here is not None:
            found[here] = unit
    order = {node: place for place, node in enumerate(small.graph.nodes)}
    ordered = sorted(found, key=order.__getitem__)
    following = [dense.node(found[here].exit) for here in ordered[1:]]
    return [
        Exit(found[here], dense.aim(found[here].exit, before), here)
        for here, before in itertools.zip_longest(ordered, following)
    ]


def distil(
    traced: Traced,
    resize: Resizer,
    dense: Dense,
    small: fx.GraphModule,
    blocks: Sequence[Exit],
    inputs: Sequence[Sequence[Any]],
    masks: Sequence[Masks],
    held: Collection[int],
    schedule: Schedule,
    write: Write,
    ignore: Collection[str] = (),
    progress: bool = False,
) -> tuple[Compensated, ...]:
    """Train one block after the other, see :class:`Distillation`.

    Args:
        traced: the original, without the branches and blocks that were removed.
        resize: what becomes of its axes.
        dense: the dense model.
        small: the pruned graph, with tensors of its own, see :func:`separate`.
        blocks: what :func:`exits` found.
        inputs: of each batch, the values of the placeholders.
        masks: of each batch.
        held: numbers of the batches that are held out.
        schedule: how to train.
        write: puts a value into a tensor.
        ignore: canonical names of tensors that keep their values.
        progress: show a progress bar.

    Raises:
        CalibrationError: values are not finite.
    """
    distillation = Distillation(
        traced=traced,
        resize=resize,
        small=small,
        dense=Lockstep(dense.traced.graph_module, inputs, [each.there for each in blocks]),
        pruned=Lockstep(small, inputs, [each.here for each in blocks]),
        masks=masks,
        held=held,
        schedule=schedule,
        write=write,
        ignore=ignore,
    )
    return tuple(map(distillation.block, track(blocks, "distilling blocks", progress)))


def _twin(
    node: fx.Node, names: Mapping[str, fx.Node], calls: Mapping[str, fx.Node]
) -> fx.Node | None:
    """The node of the smaller graph that gives what this one gives in the original."""
    same = names.get(node.name)
    if same is not None and same.target == node.target:
        return same
    weights = [each for each in node.all_input_nodes if each.op == "get_attr"]
    return calls.get(str(weights[0].target)) if weights else None


@dataclass(eq=False)
class Distillation:
    """The two graphs side by side, from block to block.

    The parameters that only one block reads are trained by Adam, in float32, towards the stream
    that leaves the block in the dense model, from what enters it in the pruned one. The loss of a
    token is its squared error over its own square, so that the few tokens with massive activations
    do not drown the others. Weights of the least error on the batches held out are kept.

    Attributes:
        traced: the original, without the branches and blocks that were removed.
        resize: what becomes of its axes; where the stream lost channels, the others count.
        small: the pruned graph.
        dense: the run of the dense model.
        pruned: the run of the smaller one.
        masks: of each batch.
        held: numbers of the batches that are held out.
        schedule: how to train.
        write: puts a value into a tensor.
        ignore: canonical names of tensors that keep their values.
    """

    traced: Traced
    resize: Resizer
    small: fx.GraphModule
    dense: Lockstep
    pruned: Lockstep
    masks: Sequence[Masks]
    held: Collection[int]
    schedule: Schedule
    write: Write
    ignore: Collection[str] = ()
    _targets: list[tuple[Tensor, Tensor | None]] = field(default_factory=list, init=False)

    def block(self, exit: Exit) -> Compensated:
        """Train one block; the next comes after it in the graph.

        Raises:
            CalibrationError: an error is not finite.
        """
        name, there, here = exit.block.name, exit.there, exit.here
        count = row_count(self.traced, there.meta["val"].shape[:-1])
        self._targets.clear()
        axes = self.resize.axes(exit.block.exit)
        with self._fast(self.dense, there):
            for values, masks in zip(
                self.dense.advance(there, through=True), self.masks, strict=True
            ):
                target = self.resize.slice(values[there].detach(), axes)
                self._targets.append((target, masks.get(count)))
        parameters = self._parameters(exit.block)
        fast = self._fast(self.pruned, here)
        before, after = self._train(here, parameters, fast)
        with fast:
            for _ in self.pruned.advance(here, through=True):
                pass
        if not math.isfinite(after):
            raise CalibrationError(f"{name}: what it gives on the calibration data is not finite")
        if not parameters:
            return Compensated(name, skipped="it has no parameters that nothing else reads")
        return Compensated(name, math.sqrt(before), math.sqrt(after))

    def _train(
        self,
        here: fx.Node,
        parameters: Sequence[nn.Parameter],
        fast: contextlib.AbstractContextManager[None],
    ) -> tuple[float, float]:
        """The error held out, before and after."""
        before = best = self._error(here, fast)
        kept = [parameter.detach().clone() for parameter in parameters]
        masters = [parameter.detach().float().clone() for parameter in parameters]
        train = [n for n in range(len(self._targets)) if n not in self.held]
        if not parameters or not math.isfinite(before):
            return before, before
        steps = self.schedule.epochs * len(train)
        rate = self.schedule.learning_rate
        groups = [{"params": [m], "lr": rate * max(_LEAST, _rms(m))} for m in masters]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
        rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, steps))
        generator = torch.Generator().manual_seed(0)
        since = 0
        for _ in range(self.schedule.epochs):
            for place in torch.randperm(len(train), generator=generator).tolist():
                with torch.enable_grad():
                    with fast:
                        loss = self._loss(here, train[place])
                    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for master, gradient in zip(masters, gradients, strict=True):
                    master.grad = None if gradient is None else gradient.float()
                nn.utils.clip_grad_norm_(masters, 1.0)
                adam.step()
                rates.step()
                _put(parameters, masters)
            now = self._error(here, fast)
            since = 0 if now < best else since + 1
            if now < best:
                best, kept = now, [parameter.detach().clone() for parameter in parameters]
            elif since >= self.schedule.patience:
                break
        _put(parameters, kept)
        return before, best

    def _fast(self, run: Lockstep, node: fx.Node) -> contextlib.AbstractContextManager[None]:
        """To run on to a node: autocast to bfloat16, if that is faster and the graph takes it."""
        device = next(self.small.parameters()).device.type
        if node.meta["val"].dtype != torch.float32 or not _made_for_bfloat16(device):
            return contextlib.nullcontext()
        fast = torch.autocast(device, torch.bfloat16)
        try:
            with fast:
                run.ahead(0, node)
        except RuntimeError:  # it may say outright which dtypes it takes
            return contextlib.nullcontext()
        return fast

    def _error(self, here: fx.Node, fast: contextlib.AbstractContextManager[None]) -> float:
        """The mean loss of the batches that are held out, by tokens."""
        with fast:
            losses = [(self._loss(here, n), self._targets[n]) for n in self.held]
        weights = [len(t.flatten(0, -2)) if m is None else int(m.sum()) for _, (t, m) in losses]
        total = sum(float(loss) * w for (loss, _), w in zip(losses, weights, strict=True) if w)
        return total / max(1, sum(weights))

    def _loss(self, here: fx.Node, number: int) -> Tensor:
        target, mask = self._targets[number]
        found: Tensor = self.pruned.ahead(number, here).flatten(0, -2).float()
        target = target.flatten(0, -2).float()
        squares = (found - target).square().sum(-1) / target.square().sum(-1).clamp(min=1e-12)
        loss: Tensor = (squares if mask is None else squares[mask]).mean()
        return loss

    def _parameters(self, block: Unit) -> list[nn.Parameter]:
        """The parameters that nothing outside a block reads."""
        found: dict[nn.Parameter, None] = {}
        for module, leaf, name in _places(self.traced, self.small):
            if name in block.parameters and name not in self.ignore:
                parameter = getattr(module, leaf)
                self.write(parameter, parameter.detach())  # on an error later on it comes back
                found[parameter.requires_grad_()] = None
        return list(found)


def _made_for_bfloat16(device: str) -> bool:
    if device == "cpu":
        known = torch.cpu.get_capabilities()
        return any(known.get(each) for each in ("avx512_bf16", "amx_bf16", "bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt()) if tensor.numel() else 0.0


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / max(1, steps)))


def _put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)


def separate(traced: Traced, small: fx.GraphModule) -> None:
    """Give the smaller graph tensors of its own instead of those that it shares."""
    shared = {id(each) for each in traced.module.parameters()}
    mine: dict[int, nn.Parameter] = {}
    for module, leaf, _ in _places(traced, small):
        there = getattr(module, leaf)
        if id(there) in shared:
            made = nn.Parameter(there.detach().clone(), requires_grad=there.requires_grad)
            setattr(module, leaf, mine.setdefault(id(there), made))


def _places(traced: Traced, small: fx.GraphModule) -> Iterator[tuple[nn.Module, str, str]]:
    """Every parameter that can be trained: its module, its name there, and its canonical name."""
    for path, module in small.named_modules():
        for leaf, value in module._parameters.items():
            if value is not None and value.is_floating_point():
                yield module, leaf, traced.canonical(f"{path.partition('@')[0]}.{leaf}".lstrip("."))
