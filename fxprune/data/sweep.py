"""Run all batches through a model piece by piece: forward, and back for the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.branches.pieces import Piece, pieces_of
from fxprune.data.calibrate import Batch
from fxprune.data.graph_inputs import graph_inputs, named_inputs
from fxprune.data.held import Held, holding
from fxprune.data.loader import Loader, Source
from fxprune.errors import CalibrationError
from fxprune.progress import track_some
from fxprune.trace.guards import check
from fxprune.trace.lockstep import flatten, input_names
from fxprune.trace.ones import admit_ones
from fxprune.trace.traced import Traced

Read = Callable[[fx.Node], Any]


class Watch(Protocol):
    """What looks at values while a piece runs."""

    def see(self, batch: int, node: fx.Node, value: Any, read: Read) -> Any:
        """A node of the whole graph has run, or its value was given to a piece.

        Args:
            batch: the number of the batch.
            node: the node.
            value: what it gave.
            read: gives the value of a node that it reads.

        Returns:
            What later nodes read of it, mostly ``value``.
        """
        ...


@dataclass(eq=False)
class Sweep:
    """Runs of a model over batches, one piece after the other, each over all batches.

    Attributes:
        weights: of the pieces.
        inputs: of each batch, the values of the graph's placeholders.
        held: what goes from piece to piece.
        progress: show progress.
    """

    weights: Loader
    inputs: Sequence[Sequence[Any]]
    held: Held
    progress: bool = False

    @torch.no_grad()
    def forward(
        self,
        pieces: int,
        watch: Watch | None = None,
        *,
        keep: bool = False,
        done: Callable[[int], None] = lambda number: None,
        output: Callable[[int, Any], None] = lambda batch, output: None,
    ) -> None:
        """Run the first pieces, all batches through each.

        Args:
            pieces: how many.
            watch: sees every node.
            keep: hold what each piece gave until :meth:`backward` has used it.
            done: called after each piece, with its number, while its weights are there.
            output: called with the number of each batch and what the graph gives for it, if the
                last piece is among them.
        """
        every = self.weights.pieces
        for number in self._track(range(pieces), "Running pieces"):
            piece = every[number]
            for batch in range(len(self.inputs)):
                given = self._run(piece, batch, self._read(piece, batch), watch)
                if number == len(every) - 1:
                    output(batch, every.output(given))
                else:
                    for node, value in zip(piece.gives, given, strict=True):
                        if every.last[node] < pieces or keep:
                            self.held.put((node, batch), value)
                del given
                for node in piece.reads if not keep else ():
                    if every.last.get(node) == number:
                        self.held.drop((node, batch))
            done(number)

    def backward(
        self,
        first: int,
        wanted: Collection[str],
        loss: Callable[[int, nn.Module], Tensor | None],
        watch: Watch,
        *,
        after: Callable[[int, int], None],
        done: Callable[[int], None],
    ) -> None:
        """Run the pieces again from the last to one of the first, and differentiate each.

        :meth:`forward` has run all but the last, and kept what they gave. The gradients lie on the
        weights, summed over the batches unless ``after`` takes them off.

        Args:
            first: the number of the last piece to run.
            wanted: canonical names of the parameters to differentiate for.
            loss: of a batch, with a module that gives what the graph does; None where the batch is
                only to be seen.
            watch: sees every node.
            after: called with the numbers of the piece and of the batch when it has run backward.
            done: called after each piece, with its number, while its weights are there.
        """
        every = self.weights.pieces
        order = list(reversed(range(first, len(every))))
        silent: set[int] = set()
        for number in self._track(order, "Running pieces backward"):
            piece = every[number]
            for name, tensor in self.weights.here.items():
                tensor.requires_grad_(name in wanted)
            for batch in range(len(self.inputs)):
                last = number == len(every) - 1
                with torch.inference_mode(False), torch.enable_grad():
                    leaves = self._leaves(piece, batch, number > first)
                    if last:
                        if not self._differentiate_loss(piece, batch, leaves, loss, watch):
                            silent.add(batch)
                    else:
                        self._pass_on(piece, batch, leaves, watch, batch in silent)
                for node in piece.gives:
                    self.held.drop((node, batch))
                    self.held.drop((node, batch, "gradient"))
                self._hand_down(batch, leaves)
                after(number, batch)
            done(number)

    def _leaves(self, piece: Piece, batch: int, differentiate: bool) -> dict[fx.Node, Any]:
        """What a piece reads, to differentiate for where it came from an earlier one."""
        values = self._read(piece, batch)
        for node, value in values.items():
            if differentiate and node in self.weights.pieces.last and _is_float(value):
                values[node] = value.detach().requires_grad_()
        return values

    def _differentiate_loss(
        self,
        piece: Piece,
        batch: int,
        leaves: Mapping[fx.Node, Any],
        loss: Callable[[int, nn.Module], Tensor | None],
        watch: Watch,
    ) -> bool:
        tail = Tail(self, piece, batch, leaves, watch)
        found = loss(batch, tail)
        if found is None:
            with torch.no_grad():
                self._run(piece, batch, leaves, watch)
            return False
        if not tail.ran:
            raise CalibrationError("the loss does not run the model that it is given")
        if not found.requires_grad:
            raise CalibrationError("the calibration loss depends on none of the scored parameters")
        found.backward()  # type: ignore[no-untyped-call]
        return True

    def _pass_on(
        self, piece: Piece, batch: int, leaves: Mapping[fx.Node, Any], watch: Watch, silent: bool
    ) -> None:
        """Differentiate a piece, given the gradients of what it gave."""
        if silent:
            with torch.no_grad():
                self._run(piece, batch, leaves, watch)
            return
        given = self._run(piece, batch, leaves, watch)
        roots, gradients = [], []
        for node, value in zip(piece.gives, given, strict=True):
            gradient = self.held.pop((node, batch, "gradient"))
            if gradient is not None and value.requires_grad:
                roots.append(value)
                gradients.append(gradient.to(value.device))
        if roots:
            torch.autograd.backward(roots, gradients)

    def _hand_down(self, batch: int, leaves: Mapping[fx.Node, Any]) -> None:
        """Add the gradients of what a piece read to those of other readers."""
        for node, leaf in leaves.items():
            if isinstance(leaf, Tensor) and leaf.grad is not None:
                known = self.held.pop((node, batch, "gradient"))
                gradient = leaf.grad if known is None else leaf.grad + known.to(leaf.device)
                self.held.put((node, batch, "gradient"), gradient)
                leaf.grad = None

    def _read(self, piece: Piece, batch: int) -> dict[fx.Node, Any]:
        """What a piece reads for one batch, on the device."""
        placeholders = _placeholders(self.weights.pieces.traced.graph_module)
        given = dict(zip(placeholders, self.inputs[batch], strict=True))
        device = self.weights.source.device
        return {
            node: given[node] if node in given else moved(self.held.get((node, batch)), device)
            for node in piece.reads
        }

    def _run(
        self, piece: Piece, batch: int, values: Mapping[fx.Node, Any], watch: Watch | None
    ) -> Any:
        ready: list[Any] = list(values.values())
        if piece.writes:  # what is held stays as it is, and a leaf cannot be written into
            ready = [value.clone() if isinstance(value, Tensor) else value for value in ready]
        return _Run(piece, self.weights.here, batch, watch).run(*ready)

    def _track(self, order: Sequence[int], words: str) -> Any:
        return track_some(self.weights.each(order), len(order), words, self.progress)


@contextlib.contextmanager
def sweeping(
    traced: Traced, source: Source, data: Sequence[Batch], *, progress: bool = False
) -> Iterator[Sweep]:
    """Sweep over batches, from the first piece on.

    Args:
        traced: the model.
        source: where its weights come from.
        data: the batches.
        progress: show progress.

    Raises:
        CalibrationError: the batches do not fit the graph.
        CheckpointError: the source has not all of the weights.
    """
    source.check(traced)
    inputs = inputs_of(traced, source, data)
    with holding(source.memory, source.scratch) as held:
        yield Sweep(Loader(pieces_of(traced), source), inputs, held, progress)


def inputs_of(traced: Traced, source: Source, data: Sequence[Batch]) -> list[list[Any]]:
    """Of each batch, the values of the graph's placeholders, on the device where the model runs.

    Raises:
        CalibrationError: the batches do not fit the graph.
        InputError: the graph was captured for other sizes.
    """
    there = ({n: moved(x, source.device) for n, x in batch.items()} for batch in data)
    inputs = [graph_inputs(traced, batch) for batch in there]
    blank = any(tensor.is_meta for tensor in traced.tensors.values())
    if blank and not all(map(traced.guards.take, inputs)):
        admit_ones(traced)
    for values in inputs:
        check(traced.guards.spec, *values)
    return inputs


class Tail(nn.Module):
    """The last piece for one batch, as a module that gives what the whole graph does."""

    def __init__(
        self, sweep: Sweep, piece: Piece, batch: int, values: Mapping[fx.Node, Any], watch: Watch
    ) -> None:
        super().__init__()
        self.ran = False
        self.__dict__["_held"] = sweep, piece, batch, values, watch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph gives for the batch.

        Raises:
            CalibrationError: the inputs are others than the batch's: the earlier pieces ran on it.
        """
        sweep, piece, batch, values, watch = self.__dict__["_held"]
        pieces = sweep.weights.pieces
        module = pieces.traced.graph_module
        names = input_names(module)
        named = dict(zip(names, args, strict=False)) | kwargs
        known = named.keys() <= set(names) and not self.ran
        if known:
            given = flatten(module, named_inputs(pieces.traced, named))
        if not known or not _alike(given, sweep.inputs[batch]):
            raise CalibrationError(
                "a model that is run in pieces can be called once by the loss, with the inputs of "
                f"the batch ({', '.join(names)}) as they are: give a loss_fn that compares logits "
                "with labels"
            )
        self.ran = True
        return pieces.output(sweep._run(piece, batch, values, watch))


class _Run(fx.Interpreter):
    """A run of one piece on one batch."""

    def __init__(
        self, piece: Piece, weights: Mapping[str, Tensor], batch: int, watch: Watch | None
    ) -> None:
        super().__init__(piece.module)
        self.piece, self.weights, self.batch, self.watch = piece, weights, batch, watch
        self.nodes = {whole: mine for mine, whole in piece.origins.items()}

    def fetch_attr(self, target: str) -> Any:
        """A tensor of the piece that runs."""
        found = self.weights.get(target)
        return super().fetch_attr(target) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and let it be seen."""
        value = super().run_node(n)
        whole = self.piece.origins.get(n)
        if self.watch is not None and whole is not None:
            value = self.watch.see(
                self.batch, whole, value, lambda node: self.env[self.nodes[node]]
            )
        return value


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def moved(value: Any, device: torch.device) -> Any:
    """Nested values with every tensor on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _alike(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(some, others, strict=True)
    )
