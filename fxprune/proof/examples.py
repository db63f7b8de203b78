"""The inputs a proof runs on: the example, and the example at another size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.errors import OracleError, TraceError
from fxprune.proof.fidelity import NotRunnableError, check_fidelity
from fxprune.trace import inputs
from fxprune.trace.lockstep import input_names
from fxprune.trace.traced import Traced


@dataclass(frozen=True)
class Example:
    """Inputs of one size.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        what: the size in words, if it is not that of the example; "" if it is.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    what: str = ""


@dataclass(frozen=True)
class Examples:
    """Inputs on which the traced graph is the model.

    Attributes:
        each: one for each size.
        trace: how that is known, in words.
    """

    each: tuple[Example, ...]
    trace: str


def checked(traced: Traced, example: Any = None) -> Examples:
    """The inputs of a proof, on which the graph was compared with the model.

    Args:
        traced: the whole original.
        example: inputs: keyword arguments as a mapping, positional ones as a tuple, or one tensor.
            The traced example and, where sizes are free, one of another size if left out.

    Raises:
        TraceError: the graph does not compute what the model does.
        OracleError: the inputs are not those the model was traced with.
    """
    given = [_given(traced, example)]
    if example is None and (other := inputs.at_other_size(traced)) is not None:
        args, kwargs = other
        given.append(Example(args, kwargs, _sizes(args, kwargs)))
    kept, trace = [], ""
    for each in given:
        try:
            trace = check_fidelity(traced, each.args, each.kwargs)
        except NotRunnableError:
            if not each.what:
                raise
            continue  # the model itself refuses a size that its graph would take
        except TraceError as error:
            raise TraceError(f"{error}{each.what and f' (seen{each.what})'}") from error
        kept.append(each)
    return Examples(tuple(kept), trace)


def _given(traced: Traced, example: Any) -> Example:
    if example is None:
        return Example(traced.args, dict(traced.kwargs))
    if isinstance(example, Mapping):
        values = named(traced.graph_module, (), example)
    else:
        args = example if isinstance(example, tuple) else (example,)
        values = named(traced.graph_module, args, {})
    # As the model was called when it was traced: the graph may have another order of keywords.
    names = list(values)[: len(traced.args)]
    kwargs = {name: value for name, value in values.items() if name not in names}
    return Example(tuple(values[name] for name in names), kwargs)


def named(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs by the names that a graph has for them, in its order.

    Raises:
        OracleError: some are missing, or too many.
    """
    names = input_names(module)
    found = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or set(names) != set(found):
        raise OracleError(
            f"the example must have the inputs the model was traced with: {', '.join(names)}"
        )
    return {name: found[name] for name in names}


def _sizes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    shapes = [f"{name} {' x '.join(map(str, t.shape))}" for name, t in inputs.named(args, kwargs)]
    return f" at another size than the example's ({', '.join(shapes)})"
