"""What was traced once in a process is not captured again: a copy stands in.

Capturing is most of what a test of anything behind it costs, and the same few models are captured
all the time. Here a model that is built like one before, with inputs of sizes that the graph of
that one takes, gets a copy of the graph, around its own tensors. So every trace is a test's own, to
change as it likes. Tests of tracing itself have it captured each time, see ``tests/conftest.py``.
Nor do nodes know the lines that they come from, or say twice what their fake tensors are: that
takes a fifth of the time.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.fx.experimental import proxy_tensor
from torch.utils import _pytree as pytree

from fxprune.trace import Traced, export
from fxprune.trace.given import check_values
from fxprune.trace.guards import Guards
from fxprune.trace.sizes import Sizes, settle, stand_ins

# Where models of transformers and their configs come from; a forward pass reads none of it.
ORIGIN = {"name_or_path", "_is_hf_initialized", "_use_kernels", "_weight_conversions"}
CONFIGS = {"PreTrainedConfig", "GenerationConfig"}
ORIGIN_OF_CONFIGS = {
    "architectures", "dtype", "model_type", "transformers_version",
    "_commit_hash", "_from_model_config", "_name_or_path", "_original_object_hash",
}  # fmt: skip


class Unknown(Exception):  # noqa: N818
    """Two models like this one cannot be told apart."""


class _Structure(pickle.Pickler):
    """All of a model but the values of its parameters, and its tensors and modules in order."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.places: dict[int, int] = {}
        self.parts: list[Any] = []

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, fx.GraphModule):  # what its nodes say of themselves is not pickled
            raise Unknown
        if isinstance(value, nn.Module):
            self._number(value)
            return None
        if isinstance(value, str):  # by value: else it counts which ones are the same object
            return -int.from_bytes(b"+" + value.encode(errors="surrogatepass"))
        if not isinstance(value, torch.Tensor):
            return None
        known = id(value) in self.places
        place = self._number(value)
        return place if known else (place, *_kind(value))

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            origin = ORIGIN
        elif CONFIGS.isdisjoint(base.__name__ for base in type(value).__mro__):
            return NotImplemented
        else:
            origin = ORIGIN_OF_CONFIGS
        made, args, state, *rest = value.__reduce_ex__(5)
        told = {name: each for name, each in sorted(state.items()) if name not in origin}
        return made, args, told, *rest

    def _number(self, value: Any) -> int:
        if id(value) not in self.places:
            self.places[id(value)] = len(self.parts)
            self.parts.append(value)
        return self.places[id(value)]


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Everything that a trace may depend on; values of buffers may stand in a graph."""
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        raise Unknown
    known = (
        type(tensor).__name__, tuple(tensor.shape), str(tensor.dtype), tensor.stride(),
        tensor.storage_offset(), str(tensor.device), tensor.requires_grad, tensor.is_leaf,
    )  # fmt: skip
    if isinstance(tensor, nn.Parameter) or tensor.is_meta:
        return known
    return (*known, tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def structure(model: nn.Module) -> tuple[str, list[Any]]:
    """A digest of what makes a trace, and the tensors and modules that it refers to.

    Two models with the same digest differ in values of parameters only.

    Raises:
        Unknown: this cannot be told.
    """
    file = io.BytesIO()
    pickler = _Structure(file)
    try:
        pickler.dump(model)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise Unknown from error
    return hashlib.sha256(file.getvalue()).hexdigest(), pickler.parts


def _inputs(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What inputs are but for their sizes; and their sizes."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    told: list[Any] = []
    sizes: list[tuple[int, ...]] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if type(leaf) is not torch.Tensor:
                raise Unknown
            strides = None if leaf.is_contiguous() else leaf.stride()
            told.append((tuple(n == 1 for n in leaf.shape), leaf.dtype, strides, leaf.device))
            sizes.append(tuple(leaf.shape))
        elif isinstance(leaf, bool | int | float | str | None):
            told.append((type(leaf), leaf))
        else:
            raise Unknown
    return (str(spec), *told), tuple(sizes)


def around(found: Traced, parts: list[Any], model: nn.Module, own: list[Any]) -> Traced:
    """A copy of a trace, of another model.

    Args:
        found: the trace.
        parts: tensors and modules of its model.
        model: one of the same structure.
        own: its tensors and modules, in the same order.
    """
    memo = {id(one): other for one, other in zip(parts, own, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of copies of its own trees
        graph_module = copy.deepcopy(found.graph_module, memo)
        tensors = {name: copy.deepcopy(t, memo) for name, t in found.tensors.items()}
    sizes = Sizes(stand_ins(found.guards)[0])
    settle(graph_module.graph, sizes)
    aliases = dict(found.aliases)
    return Traced(graph_module, model, (), {}, tensors, aliases, sizes, found.guards)


@dataclass(frozen=True)
class Known:
    """A trace of a model that nobody else has, with the parts of that model, and its warnings."""

    traced: Traced
    parts: list[Any]
    said: list[warnings.WarningMessage]
    sizes: tuple[Any, ...]

    def guards(self, sizes: tuple[Any, ...]) -> Guards | None:
        """Those of a trace with inputs of other sizes, if that has the same answers: one graph."""
        guards = self.traced.guards
        if sizes == self.sizes:
            return guards
        shapes = [each.shape for each in guards.inputs if each.dtype is not None]
        axes = zip(itertools.chain(*shapes), itertools.chain(*sizes), strict=True)
        example = {symbol: n for symbol, n in axes if isinstance(symbol, str)}
        if self.said or example.keys() != guards.example.keys() or not guards.allow(example):
            return None
        if tuple(shape for shape in guards.shapes(example) if shape is not None) != sizes:
            return None
        # Of a batch of one it was captured for two.
        more = {symbol: n for symbol, n in example.items() if n != 1}
        return replace(guards, example={**guards.example, **more})


@dataclass
class Memory:
    """What was traced.

    Attributes:
        trace: traces what is not known yet.
        on: whether to remember; else all is traced.
    """

    trace: Callable[..., Traced]
    on: bool = True
    known: dict[Any, list[Known]] = field(default_factory=dict)

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any
    ) -> Traced:
        try:
            if not self.on:
                raise Unknown
            text, parts = structure(model)
            inputs, sizes = _inputs(args, kwargs)
        except Unknown:
            return self.trace(model, args, kwargs, **options)
        alike = self.known.setdefault((text, inputs, _modes(), *sorted(options.items())), [])
        for known in alike:
            guards = known.guards(sizes)
            if guards is not None:
                traced = around(known.traced, known.parts, model, parts)
                traced.args, traced.kwargs, traced.guards = args, kwargs, guards
                check_values(model, traced.graph_module, args, kwargs)
                break
        else:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                with _brief():
                    traced = self.trace(model, args, kwargs, **options)
            own = copy.deepcopy(model)
            theirs = structure(own)[1]
            known = Known(around(traced, parts, own, theirs), theirs, said, sizes)
            alike.append(known)
        for each in known.said:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return traced


@contextlib.contextmanager
def _brief() -> Iterator[None]:
    """Without what nothing here reads of nodes."""
    lines = patch.object(fx.config, "do_not_emit_stack_traces", True)
    again = patch.object(proxy_tensor, "_extract_tensor_metadata", lambda *_: None)
    with lines, again:
        yield


def _modes() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


MEMORY = Memory(export._traced)
