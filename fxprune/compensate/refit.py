"""One consumer after the other: gather its sums over all batches, solve, write."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.compensate import matrices, solve
from fxprune.compensate.combined import all_residuals, combined
from fxprune.compensate.edits import Write
from fxprune.compensate.matching import Match, Stacked
from fxprune.compensate.moments import Products, Residuals
from fxprune.compensate.report import Compensated
from fxprune.compensate.stacked import pairs
from fxprune.data.graph_inputs import Masks, row_count
from fxprune.data.processes import Processes
from fxprune.errors import CalibrationError
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.traced import Traced

Values = Mapping[fx.Node, Any]

DAMPING = 0.5  # where no batches are held out to choose it
DAMPINGS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ENOUGH = 2  # tokens of an expert for each input: with fewer, a refit does more harm than good
NOTHING = 1e-11  # of the squares of a target: what rounding makes of it in float32


@dataclass(frozen=True, eq=False)
class Refit:
    """The two runs, side by side, and what to do at each stop.

    Attributes:
        traced: the original, without the branches and blocks that were removed.
        dense: the run of the dense model, which gives the targets.
        pruned: the run of the smaller graph.
        masks: of each batch.
        propagated: let the dense run go on with what the pruned model gives.
        damping: see :func:`fxprune.compensate.compensate`.
        held: numbers of the batches that choose it, where it is None.
        write: puts a value into a tensor.
        among: processes that have the other batches.
        original: gives a weight of the original by its canonical name.
        shared: what several of the products read, which are taken one behind the other.
    """

    traced: Traced
    dense: Lockstep
    pruned: Lockstep
    masks: Sequence[Masks]
    propagated: bool
    damping: float | None
    held: Collection[int]
    write: Write
    among: Processes | None
    original: Callable[[str], Tensor]
    shared: Collection[fx.Node]
    _last: dict[tuple[fx.Node, bool], tuple[Products, ...]] = field(
        default_factory=dict, init=False
    )

    def skip(self, match: Match) -> None:
        """Go by a consumer that has its new values."""
        run = self.dense.advance(match.stop, through=True), self.pruned.advance(match.node)
        for _ in zip(*run, strict=True):
            pass
        self._last.clear()
        if self.propagated:
            self._hand_over(match)

    def least_squares(self, match: Match) -> Compensated:
        """Refit the weight and, where it may change, the bias.

        Raises:
            CalibrationError: values are not finite, or no token counts.
        """
        if match.stacked is not None:
            return self._experts(match, match.stacked)
        before = _matrix(match, match.weight)
        sums = self._sums(match, before)
        if all(float(each.ee) <= NOTHING * float(each.yy) for each, _ in sums):
            for each, _ in sums[1:]:
                sums[0][0].join(each)
            return self._done(match, sums[0][0], float(sums[0][0].ee))
        residuals, products, damping = self._damped(match, sums)
        sums.clear()  # there are no two large matrices more than are needed
        change = solve.least_squares(products, residuals, damping, centred=match.fits_bias)
        new = matrices.weight_tensor(match.consumer, before.double() + change, match.weight)
        self.write(match.weight, new)
        # The weight may be rounded; the bias is fitted to what it is.
        change = _matrix(match, match.weight).double() - before.double()
        bias = None
        if match.fits_bias:
            bias = self._shift(match, solve.bias_change(products, residuals, change))
        after = solve.squares_after(products, residuals, change, bias)
        return replace(self._done(match, residuals, after), damping=damping)

    def _sums(self, match: Match, before: Tensor) -> list[tuple[Residuals, Products]]:
        """The sums over the batches, those of batches that are held out second."""
        whole, *apart = self._products(match, before)
        sums = [(Residuals(len(before), before.device), whole)]
        for number, (_, kept, target) in enumerate(self._rows(match)):
            lacking = _lacking(match, before, kept, target)
            if number in self.held and len(sums) == 1:
                # Around the same offset, which is set by now.
                products = apart[0] if apart else whole.apart()
                sums.append((Residuals(len(before), before.device), products))
                if key := self._shared(match):
                    self._last[key] = (whole, products)
            residuals, products = sums[number in self.held]
            residuals.add(lacking, target)
            products.add(kept, lacking)
        sums = combined(self.among, sums)
        sums = [each for each in sums if each[0].rows] or sums[:1]
        for residuals, products in sums:
            _check(match, residuals, products.xx.diagonal().sum())
        return sums

    def _damped(
        self, match: Match, sums: Sequence[tuple[Residuals, Products]]
    ) -> tuple[Residuals, Products, float]:
        """All sums together, and the damping that leaves least on the batches held out."""
        residuals, products = sums[0]
        if len(sums) == 1:
            return residuals, products, DAMPING if self.damping is None else self.damping
        held, apart = sums[1]
        left = {}
        for damping in DAMPINGS:
            change = solve.least_squares(products, residuals, damping, centred=match.fits_bias)
            bias = solve.bias_change(products, residuals, change) if match.fits_bias else None
            left[damping] = solve.squares_after(apart, held, change, bias)
        residuals.join(held)
        joined = products.join(apart, take=self._shared(match) is None)
        return residuals, joined, min(left, key=left.__getitem__)

    def _experts(self, match: Match, stacked: Stacked) -> Compensated:
        """Refit the matrix of each expert to what it gave to the same tokens.

        Tokens that are sent to it in one of the models alone do not count. An expert that few are
        sent to is left alone.
        """
        meets = [
            pairs(self.traced, stacked, there, here, hidden)
            for there, here, hidden in zip(
                self.dense.advance(match.stop, through=True),
                self.pruned.advance(match.node),
                self.masks,
                strict=True,
            )
        ]
        self._last.clear()
        small = stacked.stacks[1]
        total = Residuals(match.weight.shape[match.consumer.output_axis], match.weight.device)
        after, rare = 0.0, 0
        for expert in range(small.size) if small.expert is None else (small.expert,):
            matrix = small.matrix(match.weight.detach(), expert)
            before = matrix.to(torch.promote_types(matrix.dtype, torch.float32), copy=True)
            residuals = Residuals(len(before), before.device)
            products = Products(before.shape[1], len(before), before.device, centred=False)
            for meet in meets:
                target, kept = meet.of(expert)
                if match.kept_outputs is not None:
                    target = target.index_select(1, match.kept_outputs.to(target.device))
                lacking = target - kept @ before.T
                residuals.add(lacking, target)
                products.add(kept, lacking)
            ((residuals, products),) = combined(self.among, [(residuals, products)])
            total.join(residuals)
            if residuals.rows < ENOUGH * before.shape[1]:
                rare += 1
                after += float(residuals.ee)
                continue
            _check(match, residuals, products.xx.diagonal().sum())
            damping = DAMPING if self.damping is None else self.damping
            change = solve.least_squares(products, residuals, damping, centred=False)
            self.write(matrix, before.double() + change)
            change = matrix.double() - before.double()
            after += solve.squares_after(products, residuals, change, None)
        if small.expert is None:
            _check(match, total, total.e.sum())
        return replace(self._done(match, total, after), rare=rare)

    def _products(self, match: Match, matrix: Tensor) -> tuple[Products, ...]:
        """Empty sums; those of the inputs are taken over where the last consumer read the same."""
        key = self._shared(match)
        known = () if key is None else self._last.get(key, ())
        self._last.clear()  # before the next is made: one normal matrix at a time
        found = tuple(each.beside(len(matrix)) for each in known)
        if not found:
            found = (Products(matrix.shape[1], len(matrix), matrix.device, match.fits_bias),)
        if key is not None:
            self._last[key] = found
        return found

    def _shared(self, match: Match) -> tuple[fx.Node, bool] | None:
        """What other products read the same rows; None if none do, or kernels differ."""
        if matrices.convolves(match.consumer) or match.source not in self.shared:
            return None
        return match.source, match.fits_bias

    def bias(self, match: Match) -> Compensated:
        """Add to the bias what the removed inputs give on average (FLAP).

        Raises:
            CalibrationError: values are not finite, or no token counts.
        """
        weight = _matrix(match, match.weight)
        original = self.original(match.consumer.site.tensor)
        removed = original.detach().index_fill(
            match.consumer.site.axis, match.kept_inputs.to(original.device), 0
        )
        matrix = _matrix(match, removed).double()
        if match.kept_outputs is not None:
            matrix = matrix.index_select(0, match.kept_outputs.to(matrix.device))
        residuals = Residuals(len(weight), weight.device)
        inputs = matrix.new_zeros(matrix.shape[1])
        for full, kept, target in self._rows(match, full=True):
            residuals.add(_lacking(match, weight, kept, target), target)
            inputs += full.sum(0)
        if self.among is not None:
            residuals, inputs = all_residuals(self.among, residuals), self.among.total(inputs)
        _check(match, residuals, inputs.sum())
        change = self._shift(match, matrix @ (inputs / residuals.rows))
        after = residuals.ee - 2 * change @ residuals.e + residuals.rows * change @ change
        return self._done(match, residuals, float(after))

    def _rows(self, match: Match, full: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each batch, as rows: inputs of the dense and of the pruned model, and the target.

        The first only if it is asked for (``full``).
        """
        consumer = match.consumer
        original = self.traced.tensors[consumer.site.tensor]
        count = row_count(self.traced, consumer.source.meta["val"].shape[:-1])
        dense = self.dense.advance(match.stop, through=True)
        pruned = self.pruned.advance(match.node)
        for there, here, masks in zip(dense, pruned, self.masks, strict=True):
            target = _target(match, there, here)
            kept = matrices.input_rows(consumer, here[match.source], match.weight)
            rows = matrices.input_rows(consumer, there[consumer.source], original) if full else kept
            mask = None if matrices.convolves(consumer) else masks.get(count)
            yield (rows, kept, target) if mask is None else (rows[mask], kept[mask], target[mask])

    def _shift(self, match: Match, change: Tensor) -> Tensor:
        """Add to the bias; returns by how much it changed, rounding included."""
        bias = match.bias
        assert bias is not None
        before = bias.detach().to(torch.float64, copy=True)
        self.write(bias, before + change)
        return bias.detach().double() - before

    def _done(self, match: Match, residuals: Residuals, after: float) -> Compensated:
        if not math.isfinite(after):
            raise CalibrationError(
                f"{match.name}: its new weight does not fit into {match.weight.dtype}; "
                "use a larger damping"
            )
        if self.propagated:
            self._hand_over(match)
        return Compensated(match.name, residuals.relative(residuals.ee), residuals.relative(after))

    def _hand_over(self, match: Match) -> None:
        """Let the run of the dense model go on with the pruned model's output."""
        consumer, weight = match.consumer, _matrix(match, match.weight)
        for there, here in zip(self.dense.values, self.pruned.values, strict=True):
            kept = matrices.input_rows(consumer, here[match.source], match.weight)
            rows = _output(match, weight, kept)
            there[consumer.node] = matrices.output_tensor(consumer, rows, there[consumer.node])


def _target(match: Match, there: Values, here: Values) -> Tensor:
    """What the output should be, as rows: what is wanted less what is added to it here."""

    def rows(values: Values, node: fx.Node) -> Tensor:
        found = matrices.output_rows(match.consumer, values[node])
        if values is here or match.kept_outputs is None:
            return found
        return found.index_select(1, match.kept_outputs.to(found.device))

    # Streams are large beside what is between them: their difference comes first.
    *others, last = (rows(there, node) for node in match.wanted)
    return functools.reduce(operator.add, [*others, *(-rows(here, n) for n in match.added), last])


def _matrix(match: Match, weight: Tensor) -> Tensor:
    """A copy of a weight as a matrix in float32 or float64."""
    matrix = matrices.weight_matrix(match.consumer, weight.detach())
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32), copy=True)


def _output(match: Match, weight: Tensor, rows: Tensor) -> Tensor:
    bias = match.bias
    return rows @ weight.T if bias is None else rows @ weight.T + bias.detach()


def _lacking(match: Match, weight: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    return target - _output(match, weight, rows)


def _check(match: Match, residuals: Residuals, inputs: Tensor) -> None:
    if not residuals.rows:
        raise CalibrationError(f"{match.name}: the attention mask hides every calibration token")
    if not torch.isfinite(residuals.ee + residuals.yy + inputs):
        raise CalibrationError(
            f"{match.name}: its inputs or outputs on the calibration data are not finite; look at "
            "the weights before it and at the data"
        )
