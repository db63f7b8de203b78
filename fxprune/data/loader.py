"""The weights of one piece after another, the next one's read ahead by a thread."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fxprune.branches.pieces import Pieces
from fxprune.trace.traced import Traced


class Source(Protocol):
    """Where the weights of a model come from, one tensor at a time.

    Attributes:
        device: where the model runs.
        memory: bytes of the stream between pieces that stay in memory; None for all of it.
        scratch: folder for what does not; None for the system's.
    """

    device: torch.device
    memory: int | None
    scratch: Path | None

    def check(self, traced: Traced) -> None:
        """Refuse, before anything runs, a model that has not all of its weights here."""
        ...

    def read(self, traced: Traced, name: str) -> Tensor:
        """A tensor of a traced model by its canonical name, of the graph's dtype, on the device."""
        ...

    def ahead(self, traced: Traced, names: Sequence[str]) -> None:
        """Be told what is read next: what lies on disk may be fetched meanwhile."""
        ...


@dataclass(eq=False)
class Loader:
    """The weights of the pieces of a model.

    Attributes:
        pieces: the pieces.
        source: where the weights come from.
        here: those of the piece that runs, by canonical name.
        bytes: how much was read in all.
    """

    pieces: Pieces
    source: Source
    here: dict[str, Tensor] = field(default_factory=dict)
    bytes: int = 0

    def __getitem__(self, name: str) -> Tensor:
        """A tensor: that of the piece which runs, or one that is read anew."""
        found = self.here.get(name)
        return self._read([name])[name] if found is None else found

    def each(self, order: Sequence[int]) -> Iterator[int]:
        """Go through pieces; :attr:`here` has the weights of each, and the next are being read.

        Args:
            order: numbers of the pieces.
        """
        tensors = [self.pieces[number].tensors for number in order]
        with ThreadPoolExecutor(1, thread_name_prefix="fxprune-weights") as pool:
            ahead = pool.submit(self._read, tensors[0]) if tensors else None
            try:
                for place, number in enumerate(order):
                    assert ahead is not None
                    self.here, ahead = ahead.result(), None
                    if place + 1 < len(order):
                        ahead = pool.submit(self._read, tensors[place + 1])
                    yield number
                    self.here = {}
                    give_back()
            finally:
                self.here = {}

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        found = {}
        for name in names:
            found[name] = self.source.read(self.pieces.traced, name)
            self.bytes += found[name].nbytes
        return found


def give_back() -> None:
    """Let the system have memory that is free, which glibc may hold on to until the end."""
    with contextlib.suppress(
        AttributeError, OSError, TypeError
    ):  # elsewhere there is no such function
        ctypes.CDLL(None).malloc_trim(0)
