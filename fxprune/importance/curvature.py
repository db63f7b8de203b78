"""Second moments at a product with a weight: of its inputs and of the gradient of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from fxprune.data.calibrate import Batch
from fxprune.importance.activations import hooked, token_mask, tokens


@dataclass(eq=False)
class Moments:
    """Sums over calibration tokens at one weight ``y = x W``, in float32.

    Attributes:
        inputs: sum of the outer products of ``x``, shape (inputs, inputs).
        gradients: sum of the outer products of the gradient of the summed loss with respect to
            ``y``, shape (outputs, outputs).
        rows: number of tokens.
        tokens: of an expert, how many tokens came past, sent to it or not; else as many.
        share: of an expert, which part of ``gradients`` is its own; they are those of all.
    """

    inputs: Tensor
    gradients: Tensor
    rows: int = 0
    tokens: int | None = None
    share: float = 1.0


@dataclass(eq=False)
class MomentRecorder:
    """Collects :class:`Moments` by hooks, only within :meth:`recording`.

    The outputs are made to require gradients where no parameter before them does, so a backward
    pass needs no gradients of weights at all.

    Attributes:
        modules: the modules that apply each weight, by its name.
        moments: what was seen, by the name of the weight.
    """

    modules: Mapping[str, Sequence[nn.Module]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    factor: float | None = None
    _mask: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the modules; removed at the end, on errors as well."""
        with hooked(
            self.modules,
            lambda name, module: module.register_forward_hook(
                partial(self._see, name), with_kwargs=True
            ),
        ):
            yield

    @contextmanager
    def recording(self, batch: Batch, factor: float) -> Iterator[None]:
        """Record the one forward pass over a batch that happens within, and its backward pass.

        Args:
            batch: the batch.
            factor: the summed loss of all tokens is this times what is differentiated.
        """
        self.factor, self._mask = factor, token_mask(batch)
        try:
            yield
        finally:
            self.factor, self._mask = None, None

    def _see(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        if self.factor is None:
            return None
        flat = partial(tokens, module, mask=self._mask)
        return self.add(name, flat(next(iter((*args, *kwargs.values())))), output, flat)

    def add(
        self, name: str, x: Tensor, output: Tensor, flat: Callable[[Tensor], Tensor]
    ) -> Tensor | None:
        """Add what a weight was applied to, and the gradient of its output when that comes.

        Args:
            name: of the weight.
            x: what it was applied to, a matrix (tokens, C).
            output: what came out.
            flat: makes such a matrix of the output's gradient.

        Returns:
            What stands for the output from here on; None for the output itself.
        """
        assert self.factor is not None
        x, factor = x.float(), self.factor
        known = self.moments.get(name)
        if known is None:
            width, size = x.shape[-1], output.shape[-1]
            known = Moments(x.new_zeros(width, width), x.new_zeros(size, size))
            self.moments[name] = known
        known.inputs.addmm_(x.T, x)
        known.rows += len(x)
        first = not output.requires_grad
        output.requires_grad_()

        def arrive(gradient: Tensor) -> None:
            g = flat(gradient).float() * factor
            known.gradients.addmm_(g.T, g)

        output.register_hook(arrive)  # type: ignore[no-untyped-call]
        # A leaf must not be changed in place, and the model may do that to what it is given.
        return output.clone() if first else None
