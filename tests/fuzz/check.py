"""One plan tried: is what the library gives the original without the lost units?"""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import fxprune
from fxprune import FxpruneError
from tests.fuzz.alive import UnknownOpError
from tests.fuzz.reference import (
    Kept,
    NotASliceError,
    difference,
    expected,
    flat,
    kept_positions,
    named_tensors,
    take,
)
from tests.fuzz.subject import Captured, Inputs, Spec

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Outcome:
    """What came of a try.

    Attributes:
        verdict: ``right``, ``refused`` (an FxpruneError), ``wrong`` (other numbers, and nothing was
            said), ``raw`` (another exception), ``skipped`` (the reference cannot say).
        what: where it showed: ``trace``, ``fidelity``, ``rewrite``, ``numbers``, ``verify``...
        detail: class of the error, or what differs.
    """

    verdict: str
    what: str = ""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the library is at fault."""
        return self.verdict in ("wrong", "raw")

    def __str__(self) -> str:
        return ": ".join(x for x in (self.verdict, self.what, self.detail) if x)


class Stop(Exception):  # noqa: N818
    """Ends a try with its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


def attempt(what: str, function: Callable[[], Any]) -> Any:
    """Call the library; an error becomes an outcome.

    Raises:
        Stop: with that outcome.
    """
    try:
        return function()
    except Stop:
        raise
    except FxpruneError as error:
        detail = f"{type(error).__name__}: {_line(error)}"
        raise Stop(Outcome("refused", what, detail)) from error
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "fxprune/" in f.filename]
        where = [f"{f.filename.rpartition('fxprune/')[2]}:{f.lineno}" for f in frames[-1:]]
        detail = " ".join([f"{type(error).__name__}: {_line(error)}", *where])
        raise Stop(Outcome("raw", what, detail)) from error


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


def fidelity(case: Captured) -> Iterator[Outcome]:
    """Whether the graph is the model: at each size, twice, in training, and afterwards."""
    for place, inputs in enumerate(case.inputs):
        yield _faithful(case, inputs, "fidelity" if place == 0 else "fidelity at another size")
    if case.subject.training:
        yield _in_training(case)
    again = run(case.model, case.inputs[0])
    if difference(case.truth, again) > 0:
        yield Outcome("wrong", "the original changed", f"{difference(case.truth, again):.1e}")


def unchanged(case: Captured) -> Iterator[Outcome]:
    """Whether capturing has left the model as it was found."""
    if case.changed:
        yield Outcome("wrong", "the original changed by capture", case.changed[:200])


def _faithful(case: Captured, inputs: Inputs, what: str) -> Outcome:
    try:
        want = run(case.model, inputs)
    except Exception as error:
        return Outcome("skipped", what, f"the model itself refuses: {_line(error)[:60]}")
    limit = TOLERANCE[next(case.model.parameters()).dtype]
    try:
        first = attempt(what, lambda: run(case.whole, inputs))
        second = attempt(what, lambda: run(case.whole, inputs))
    except Stop as stop:
        return stop.outcome
    for got in (first, second):
        error = difference(want, got)
        if not error <= limit and not _fragile(lambda i: run(case.model, i), inputs, want, error):
            return Outcome("wrong", what, f"{error:.1e}; inputs {shapes(inputs)}")
    return Outcome("right", what)


def _in_training(case: Captured) -> Outcome:
    """Dropout draws from the same generator in the same order."""
    results = []
    for module in (case.model, case.whole):
        module.train()
        torch.manual_seed(5)
        try:
            results.append(attempt("training", lambda m=module: run(m, case.inputs[0])))
        except Stop as stop:
            return stop.outcome
        finally:
            module.eval()
    error = difference(*results)
    return Outcome("right" if error <= 1e-4 else "wrong", "training", f"{error:.1e}")


def try_plan(
    case: Captured,
    spec: Spec,
    inputs: list[Inputs],
    twin: Captured | None = None,
    verify: bool = True,
) -> Outcome:
    """Rewrite by a plan and compare.

    Args:
        case: the captured model.
        spec: the plan.
        inputs: to compare on.
        twin: the same model in float32, where values can be told apart, if ``case`` is not.
        verify: run the library's own proof too; it must agree.
    """
    try:
        plan = attempt("plan", lambda: case.plan(spec))
        small = attempt("rewrite", lambda: fxprune.rewrite(case.traced, plan))
        kept, gone = _lost(case, small, spec, twin)
        for place, each in enumerate(inputs):
            _compare(case, small, spec, (kept, gone), each, place)
        if verify:
            attempt("verify", lambda: fxprune.verify(case.traced, small, plan))
    except Stop as stop:
        return stop.outcome
    except UnknownOpError as error:
        return Outcome("skipped", "no rule of the reference", str(error))
    except Exception as error:
        return Outcome("raw", "the fuzzer itself", f"{type(error).__name__}: {_line(error)}")
    return Outcome("right")


def try_shrink(case: Captured, spec: Spec) -> Outcome:
    """The transformers class by a plan must give what the graph does."""
    try:
        plan = attempt("plan", lambda: case.plan(spec))
        small = attempt("rewrite", lambda: fxprune.rewrite(case.traced, plan))
        shrunk = attempt(
            "shrink", lambda: fxprune.shrink(case.model, plan, small, traced=case.traced)
        )
        for inputs in case.inputs[:2]:
            got = attempt("shrink", lambda i=inputs: run(shrunk, i))
            want = attempt("rewrite", lambda i=inputs: run(small, i))
            error = difference(want, got)
            if not error <= TOLERANCE[want[0].dtype]:
                return Outcome("wrong", "shrink", f"{error:.1e}")
    except Stop as stop:
        return stop.outcome
    return Outcome("right", "shrink")


def _lost(
    case: Captured, small: nn.Module, spec: Spec, twin: Captured | None
) -> tuple[Kept, frozenset[str]]:
    """What a smaller model has lost, by value."""
    try:
        if twin is None:
            kept = kept_positions(small, case.model)
        else:
            exact = attempt("rewrite", lambda: fxprune.rewrite(twin.traced, twin.plan(spec)))
            kept = kept_positions(exact, twin.model)
            _bit_equal(small, case.model, kept)
    except NotASliceError as error:
        raise Stop(Outcome("wrong", "values", str(error))) from error
    _as_planned(case, spec, kept)
    gone: frozenset[str] = frozenset()
    if spec.removed:
        tensors, left = named_tensors(case.model), named_tensors(small)
        alive = {tensors[name].data_ptr() for name in left if name in tensors}
        had = named_tensors(case.whole)
        gone = frozenset(n for n in had if n in tensors and tensors[n].data_ptr() not in alive)
    return kept, gone


def _bit_equal(small: nn.Module, original: nn.Module, kept: Kept) -> None:
    old = named_tensors(original)
    for name, tensor in named_tensors(small).items():
        if name not in old:
            continue
        want = take(old[name], kept[name]) if name in kept else old[name]
        if want.shape != tensor.shape or not torch.equal(want, tensor):
            raise NotASliceError(f"{name}: other entries than in float32")


def _as_planned(case: Captured, spec: Spec, kept: Kept) -> None:
    """Where an axis is one group, the positions that stayed are the units of the plan."""
    for group in case.groups(spec.removed):
        if group.name not in spec.kept:
            continue
        for site in group.sites:
            tensor = case.traced.tensors[site.tensor]
            if tensor.shape[site.axis] != group.size or site.tensor not in kept:
                continue
            positions = kept[site.tensor][site.axis]
            found = tuple(range(group.size)) if positions is None else tuple(positions.tolist())
            if found != tuple(spec.kept[group.name]):
                raise Stop(Outcome("wrong", "values", f"{site} keeps {found} of {group.name}"))


def _compare(
    case: Captured,
    small: nn.Module,
    spec: Spec,
    lost: tuple[Kept, frozenset[str]],
    inputs: Inputs,
    place: int,
) -> None:
    blocks = tuple(n.rpartition(":")[0] for n in spec.removed if n.endswith(":block"))

    def reference(given: Inputs) -> list[Tensor]:
        return expected(case.model, *given, *lost, blocks)

    what = "numbers" if place == 0 else "numbers at another size"
    try:
        run(case.model, inputs)
    except Exception:
        return  # the model itself does not take this size
    want = reference(inputs)
    try:
        got = attempt(what, lambda: run(small, inputs))
    except Stop as stop:
        if stop.outcome.verdict == "refused" and place:
            return  # outside what it was captured for
        raise
    error = difference(want, got)
    dtype = next(case.model.parameters()).dtype
    if error <= TOLERANCE[dtype] or _fragile(reference, inputs, want, error):
        return
    if dtype == torch.bfloat16 and error < math.inf:
        # Rounding may be as far off, or have tipped a comparison. In float32 it hardly is.
        model, graph = (copy.deepcopy(m).float() for m in (case.model, small))
        given = _raised(inputs)
        exact = expected(model, *given, *lost, blocks)
        limit = max(TOLERANCE[dtype], 2 * difference(exact, _raised(want)))
        if difference(exact, _raised(got)) <= limit:
            return
        if difference(exact, attempt(what, lambda: run(graph, given))) <= TOLERANCE[dtype]:
            return
    raise Stop(Outcome("wrong", what, f"{error:.1e}; inputs {shapes(inputs)}"))


def _raised(values: Any) -> Any:
    """The same in float32."""
    return tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, values)


def _fragile(
    function: Callable[[Inputs], list[Tensor]], inputs: Inputs, want: list[Tensor], error: float
) -> bool:
    """Whether rounding alone moves the reference as far: a matter of the model's arithmetic."""
    moved = 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)

        def nudge(x: Tensor, generator: torch.Generator = generator) -> Tensor:
            if not x.is_floating_point():
                return x
            step = 4 * torch.finfo(x.dtype).eps
            noise = torch.randn(x.shape, generator=generator)
            return (x * (1 + step * noise)).to(x.dtype)

        moved = max(moved, difference(want, function(tree_map_only(Tensor, nudge, inputs))))
    return moved > 0 and moved * 4 >= error and error != float("inf")


def run(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs, without gradients; inputs are copied, as a model may write into them."""
    args, kwargs = tree_map_only(Tensor, torch.clone, inputs)
    with torch.no_grad():
        return flat(module(*args, **kwargs))


def shapes(inputs: Inputs) -> str:
    """Sizes of all inputs."""
    return str(tree_map_only(Tensor, lambda x: tuple(x.shape), inputs))
