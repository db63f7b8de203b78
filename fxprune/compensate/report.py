"""What compensation did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compensated:
    """One consumer, before and after.

    Attributes:
        name: its module.
        before: ``||target - output|| / ||target||`` (Frobenius) on the calibration data, where the
            output is what the consumer gives for the inputs of the pruned model, all consumers
            before it being compensated. None if it was skipped.
        after: the same with the new weight and bias. None if it was skipped.
        skipped: why it was left alone, or None.
        damping: of least squares, None of anything else.
        rare: of stacked weights, to how many experts too few tokens were sent: they keep theirs.
    """

    name: str
    before: float | None = None
    after: float | None = None
    skipped: str | None = None
    rare: int = 0
    damping: float | None = None


@dataclass(frozen=True)
class CompensationReport:
    """What :func:`fxprune.compensate.compensate` did.

    Attributes:
        method: ``bias`` or ``least-squares``.
        target: ``residual``, ``dense`` or ``propagated``.
        consumers: each consumer of the pruned units, or each of all units, in graph order.
        seconds: wall-clock time.
        temperature: what the logits are divided by, None if it was not fitted.
        no_temperature: why it was not fitted though it was asked for, or None.
        blocks: each block that was distilled, with the errors of the stream on the batches held
            out.
    """

    method: str
    target: str
    consumers: tuple[Compensated, ...]
    seconds: float
    temperature: float | None = None
    no_temperature: str | None = None
    blocks: tuple[Compensated, ...] = ()

    @property
    def skipped(self) -> tuple[Compensated, ...]:
        """The consumers that were left alone."""
        return tuple(each for each in self.consumers if each.skipped is not None)

    def __str__(self) -> str:
        pairs = [(c.before, c.after) for c in self.consumers if c.skipped is None]
        count = len(pairs)
        text = f"{self.method} compensation of {count} consumers in {self.seconds:.1f} s"
        if count:
            before = sum(b or 0.0 for b, _ in pairs) / count
            after = sum(a or 0.0 for _, a in pairs) / count
            text += f": mean relative output error {before:.3f} -> {after:.3f}"
        text += f", {len(self.skipped)} skipped" if self.skipped else ""
        rare = sum(each.rare for each in self.consumers)
        text += f", {rare} matrices of experts with too few tokens kept" if rare else ""
        pairs = [(b.before, b.after) for b in self.blocks if b.skipped is None]
        if pairs:
            last = f"{pairs[-1][0]:.3f} -> {pairs[-1][1]:.3f}"
            text += f"; {len(pairs)} blocks distilled, error of the last {last}"
        text += f", temperature {self.temperature:.3f}" if self.temperature else ""
        return text + (f", no temperature: {self.no_temperature}" if self.no_temperature else "")
