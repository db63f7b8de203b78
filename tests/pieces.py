"""A source of weights that says which of them are in memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.trace.traced import Traced


class Counted:
    """Weights of a traced model that has them, each read a copy, and which of them are alive."""

    device, memory, scratch = torch.device("cpu"), None, None

    def __init__(self) -> None:
        self.alive: list[tuple[str, weakref.ref[Tensor]]] = []
        self.threads: set[int] = set()
        # What is here by now stays, and need not be looked through each time.
        gc.collect()
        gc.freeze()

    def check(self, traced: Traced) -> None:
        """All are here."""

    def ahead(self, traced: Traced, names: Sequence[str]) -> None:
        pass

    def read(self, traced: Traced, name: str) -> Tensor:
        found = traced.tensors[name].detach().clone()
        self.alive.append((name, weakref.ref(found)))
        self.threads.add(threading.get_ident())
        return found

    def names(self) -> set[str]:
        gc.collect()
        return {name for name, reference in self.alive if reference() is not None}
