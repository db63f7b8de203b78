"""How a model is measured."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.errors import EvaluationError
from fxprune.measure.perplexity import BOS


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        lengths: tokens in the windows that perplexity is measured on, BOS included.
        stride: see :func:`fxprune.measure.perplexity.windows`; None: windows do not overlap.
        windows: windows per text and length at most; None for all.
        bos: see :func:`fxprune.measure.perplexity.bos_token`.
        limit: only the first questions of each task; None for all.
        batch_size: rows per forward pass, for perplexity and tasks.
        generation: time the model and see what memory it takes.
        batch_sizes: rows to time with.
        prompt: tokens in, per row.
        new: tokens out, per row.
        rounds: to take the median of.
        continuations: beginnings of each text that are continued, ``prompt`` tokens in and ``new``
            out, to count what is repeated; 0 for none.
    """

    lengths: tuple[int, ...] = (128,)
    stride: int | None = None
    windows: int | None = None
    bos: str = "auto"
    limit: int | None = None
    batch_size: int = 4
    generation: bool = True
    batch_sizes: tuple[int, ...] = (1,)
    prompt: int = 12
    new: int = 128
    rounds: int = 5
    continuations: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            EvaluationError: a number below what it can be, or no such BOS policy.
        """
        for name in ("stride", "windows", "limit", "batch_size", "prompt", "new", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvaluationError(f"{name} {value}: take at least 1")
        if self.continuations < 0:
            raise EvaluationError(f"continuations {self.continuations}: take at least 0")
        if not self.lengths or min(self.lengths) < 2:
            raise EvaluationError(f"lengths {self.lengths}: take at least 2 tokens")
        if self.generation and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise EvaluationError(f"batch sizes {self.batch_sizes}: take at least 1 row")
        if self.bos not in BOS:
            raise EvaluationError(f"no BOS policy {self.bos!r}: take {', '.join(BOS)}")
