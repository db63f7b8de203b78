"""Statistics of the inputs of modules, taken by hooks while the model runs forward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from fxprune.data.calibrate import Batch, rows
from fxprune.importance.statistics import Statistics, measure, merge


@dataclass(eq=False)
class Recorder:
    """Collects statistics by name, only within :meth:`recording`.

    Outside nothing is recorded: gradient checkpointing runs parts of the forward pass again during
    the backward pass, and those tokens have been counted.

    Attributes:
        modules: the modules whose inputs are seen, by the name of their weight.
        statistics: what was seen, by the name of the weight.
        samples: number of calibration samples seen.
    """

    modules: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    samples: int = 0
    _open: bool = False
    _mask: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the modules; removed at the end, on errors as well."""
        with hooked(
            self.modules,
            lambda name, module: module.register_forward_pre_hook(
                partial(self._see, name), with_kwargs=True
            ),
        ):
            yield

    @contextmanager
    def recording(self, batch: Batch) -> Iterator[None]:
        """Record the one forward pass over a batch that happens within."""
        self._mask = token_mask(batch)
        self._open = True
        try:
            yield
        finally:
            self._open, self._mask = False, None
        self.samples += rows(batch)

    def _see(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._open:
            self.add(name, tokens(module, next(iter((*args, *kwargs.values()))), self._mask))

    def add(self, name: str, seen: Tensor) -> None:
        """Add what a weight was applied to, a matrix (tokens, C)."""
        if seen.shape[0] == 0:
            return  # an expert that no token was sent to
        found = measure(seen)
        known = self.statistics.get(name)
        self.statistics[name] = found if known is None else merge(known, found)


@contextmanager
def hooked(
    modules: Mapping[str, Sequence[nn.Module]],
    register: Callable[[str, nn.Module], RemovableHandle],
) -> Iterator[None]:
    """A hook on every module; removed at the end, on errors as well.

    Args:
        modules: the modules by name.
        register: puts a hook for a name onto a module.
    """
    with ExitStack() as stack:
        for name, owners in modules.items():
            for module in owners:
                stack.callback(register(name, module).remove)
        yield


def token_mask(batch: Batch) -> Tensor | None:
    """Which tokens count, bool of shape (N, L), where the batch says so by an attention mask."""
    mask = batch.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def tokens(module: nn.Module, values: Tensor, mask: Tensor | None) -> Tensor:
    """What goes into or comes out of a module as a matrix (tokens, C).

    Without padding where it has the shape (N, L, C), or (N * L, C), and there is a mask.
    """
    values = values.detach()
    kernel = getattr(module, "kernel_size", ())  # of a convolution, whose channels are before
    values = values.movedim(-1 - len(kernel), -1)
    flat = values.reshape(-1, values.shape[-1])
    if mask is not None and values.shape[:-1] in (mask.shape, (mask.numel(),)):
        return flat[mask.flatten().to(values.device)]
    return flat


def can_observe(module: nn.Module) -> bool:
    """Whether the first input of a module is what its ``weight`` is applied to."""
    if isinstance(module, nn.Linear | _ConvNd):
        return True
    # Not imported, which takes seconds: where it is not loaded no module is of its class.
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)
