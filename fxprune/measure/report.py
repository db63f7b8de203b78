"""What a model costs, before and after: parameters, MACs, bytes, latency, perplexity."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.trace.given import examples

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Measurement:
    """The costs of one model; None is what was not measured.

    Attributes:
        parameters: numbers in its parameters, a tied tensor once.
        macs: multiply-accumulates in matrix products and convolutions of one forward pass.
        size: bytes of its tensors on disk.
        perplexity: on the evaluation text.
        latency: seconds of one forward pass, the median.
    """

    parameters: int
    macs: int | None = None
    size: int | None = None
    perplexity: float | None = None
    latency: float | None = None


def parameters(module: nn.Module) -> int:
    """How many numbers the parameters hold; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(module: nn.Module) -> int:
    """Bytes of all parameters and buffers that a checkpoint holds; each storage counts once."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in module.state_dict(keep_vars=True).values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())


@torch.no_grad()
def macs(module: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> int:
    """Multiply-accumulates of one forward pass, counted without computing anything.

    Matrix products (attention included, whatever its backend) and convolutions count, half of
    ``torch.utils.flop_counter``'s FLOPs; pointwise work does not. Weights may be on ``meta``.

    Args:
        module: a module or GraphModule.
        args: positional inputs, for their shapes.
        kwargs: keyword inputs, for their shapes.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    on_meta = any(p.is_meta for p in module.parameters())
    with contextlib.ExitStack() as stack:
        inputs = examples(module, args, kwargs)
        if not on_meta:
            fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            inputs = pytree.tree_map_only(torch.Tensor, fake.from_tensor, inputs)
        # The fused attention kernels of a CPU have no FLOP formula; their plain form has.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        module(*inputs[0], **inputs[1])
    return int(counter.get_total_flops()) // 2


def latency(
    calls: Sequence[Callable[[], object]], *, rounds: int = 15, seconds: float = 30.0
) -> list[float]:
    """Median seconds of each call, in turns; see :func:`turns`."""
    return [statistics.median(spent) for spent in turns(calls, rounds, seconds)]


def turns(
    calls: Sequence[Callable[[], object]], rounds: int = 15, seconds: float = 30.0
) -> list[list[float]]:
    """Seconds of each call, round by round.

    The calls take turns, so that whatever else the machine does meets all of them alike and the
    ratio of two is fair. One round warms up and is not counted.

    Args:
        calls: what to time.
        rounds: how often each is timed.
        seconds: stop sooner once this much time is spent, but not before three rounds.
    """
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for number in range(rounds + 1):
        if number > 3 and time.perf_counter() - start > seconds:
            break
        for call, spent in zip(calls, times, strict=True):
            before = time.perf_counter()
            call()
            if number:
                spent.append(time.perf_counter() - before)
    return times


def forward(
    module: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> Callable[[], object]:
    """One forward pass without gradients, finished when it returns; to be timed."""
    args, named = examples(module, args, kwargs)

    def call() -> object:
        with torch.no_grad():
            output = module(*args, **named)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output

    return call


def table(before: Measurement, after: Measurement) -> Table:
    """Both measurements side by side, with the change; a row that neither has is left out.

    Args:
        before: of the original.
        after: of the pruned model.
    """
    from rich.table import Table

    made = Table()
    made.add_column("")
    for column in ("before", "after", "change"):
        made.add_column(column, justify="right")
    for row in rows(before, after):
        made.add_row(*row)
    return made


def as_json(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Both measurements as plain values, in the units of :class:`Measurement`."""
    return {"before": asdict(before), "after": asdict(after)}


def rows(before: Measurement, after: Measurement) -> Iterator[tuple[str, str, str, str]]:
    """What there is to compare, both figures and the change, in words."""
    shown: list[tuple[str, str, Callable[[Any], str]]] = [
        ("parameters", "parameters", lambda n: f"{n:,}"),
        ("MACs", "macs", lambda n: scaled(n)),
        ("size on disk", "size", lambda n: f"{scaled(n)}B"),
        ("perplexity", "perplexity", lambda x: f"{x:.2f}"),
        ("latency", "latency", lambda s: f"{1000 * s:.1f} ms"),
    ]
    for label, name, write in shown:
        old, new = getattr(before, name), getattr(after, name)
        if old is None and new is None:
            continue
        change = f"{100 * (new / old - 1):+.1f} %" if old and new is not None else ""
        cells = ["-" if value is None else write(value) for value in (old, new)]
        yield label, cells[0], cells[1], change


def scaled(number: float) -> str:
    """A large number with a decimal prefix: 134515008 as ``134.5 M``."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000 or prefix == "T":
            return f"{number:.0f} " if prefix == "" else f"{number:.2f} {prefix}"
        number /= 1000
    raise AssertionError("unreachable")


def resized(inputs: Any, batch: int, length: int) -> Any:
    """The same inputs at another size.

    Args:
        inputs: nested example inputs. Token ids have shape (batch, length); of anything else the
            first axis is the batch.
        batch: new number of rows.
        length: new number of tokens.
    """

    def resize(value: torch.Tensor) -> torch.Tensor:
        tokens = value.dim() == 2 and not value.is_floating_point()
        shape = (batch, length) if tokens else (batch, *value.shape[1:])
        # Which token makes no difference to the cost; 0 is often padding.
        return torch.full(shape, 2 if tokens else 0, dtype=value.dtype, device=value.device)

    return pytree.tree_map_only(torch.Tensor, resize, inputs)


def shape_words(inputs: Any) -> str:
    """The shape of the first tensor of some inputs, for people: ``1 x 64 tokens``."""
    first = next(x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor))
    words = " x ".join(map(str, first.shape))
    return words if first.is_floating_point() else f"{words} tokens"
