"""Runs that leave a model and its inputs as they were, at a higher precision if asked."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.trace.attributes import get_attribute
from fxprune.trace.lockstep import Weights
from fxprune.trace.modes import evaluation, seeded
from fxprune.trace.state import preserved
from fxprune.trace.storage import written

hops = torch.ops.higher_order

# For each precision of a run, what becomes of the dtypes below it.
_RAISED: dict[torch.dtype | None, dict[torch.dtype, torch.dtype]] = {
    None: {},
    torch.float32: {
        torch.float16: torch.float32,
        torch.bfloat16: torch.float32,
        torch.complex32: torch.complex64,
    },
    torch.float64: {
        torch.float16: torch.float64,
        torch.bfloat16: torch.float64,
        torch.float32: torch.float64,
        torch.complex32: torch.complex128,
        torch.complex64: torch.complex128,
    },
}


def raised(value: Any, dtype: torch.dtype | None) -> Any:
    """A tensor of lower precision at ``dtype``, a lower dtype as that; anything else as it is."""
    higher = _RAISED[dtype]
    if isinstance(value, torch.Tensor):
        return value.to(higher[value.dtype]) if value.dtype in higher else value
    return higher.get(value, value) if isinstance(value, torch.dtype) else value


class _Raised(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every op computes at a higher precision: its tensors and the dtypes it names are raised.

    So a cast to the model's own dtype, in the graph or inside a module, rounds nothing away.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.view.dtype:
            raise NotImplementedError("the bits of a tensor are read as another dtype")
        args, kwargs = pytree.tree_map(lambda x: raised(x, self._dtype), (args, kwargs or {}))
        return func(*args, **kwargs)


@contextlib.contextmanager
def _precision(dtype: torch.dtype | None) -> Iterator[None]:
    with contextlib.nullcontext() if dtype is None else _Raised(dtype):
        yield


def copied(value: Any) -> Any:
    """Inputs of a model that it may write into: tensors cloned, containers made anew."""

    def clone(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf)

    return pytree.tree_map(clone, value)


@torch.no_grad()
def call(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
    after: Callable[[], None] = lambda: None,
    seed: int = 0,
    pure: bool = False,
) -> Any:
    """What a module gives in evaluation mode.

    Args:
        module: left as it was found.
        args: positional inputs; not changed either.
        kwargs: keyword inputs.
        dtype: precision, if not the module's own.
        after: called while the module still is as the run left it.
        seed: of the random numbers that it draws.
        pure: a graph of ours, which changes nothing but tensors that its ops write into: there is
            less to put back.
    """
    args, kwargs = copied((args, dict(kwargs)))
    changing = written_tensors(module) if isinstance(module, fx.GraphModule) else {}
    kept = _kept(changing.values()) if pure else preserved(module, changing.values())
    with kept, evaluation(module), seeded(seed), _precision(dtype):
        args, kwargs = pytree.tree_map(lambda x: raised(x, dtype), (args, kwargs))
        result = module(*args, **kwargs)
        after()
        return copied(result) if changing else result  # it may be one of those tensors


@contextlib.contextmanager
def _kept(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Put the values of tensors back."""
    before = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in before:
            tensor.copy_(value)


def written_tensors(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants that a graph writes into, by name."""
    names = {str(node.target) for node in written(module.graph) if node.op == "get_attr"}
    found = {name: get_attribute(module, name) for name in sorted(names)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


class Run(fx.Interpreter):
    """Runs a graph on copies of what it writes into, at a higher precision if asked.

    Weights are raised when they are used, so that one copy at a time is alive.

    Args:
        module: the graph.
        dtype: precision, if not the module's own.
        jitter: moves every parameter by up to one rounding of its dtype, each time it is used.
        weights: the tensors, where they are not in the graph: those of one node at a time.
        watched: names of nodes of which the values are kept.
        options: of ``torch.fx.Interpreter``.

    Attributes:
        flags: of every value that was computed whether it holds NaN and infinity; filled only if
            set to a dict before the run.
        kept: what the watched nodes gave in the last run, by name.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        dtype: torch.dtype | None = None,
        *,
        jitter: torch.Generator | None = None,
        weights: Weights | None = None,
        watched: Collection[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(module, **options)
        self.dtype = dtype
        self._weights, self._watched = weights, watched
        self.kept: dict[str, Any] = {}
        self._jitter = jitter
        self.flags: dict[fx.Node, tuple[bool, bool]] | None = None
        self._own = {n for n in written(module.graph) if n.op in ("get_attr", "placeholder")}

    @torch.no_grad()
    def outputs(self, inputs: list[Any]) -> list[Any]:
        """The outputs of a run, flat, of the placeholders' values."""
        try:
            with seeded(), _precision(self.dtype):
                results = self.run(*inputs, enable_io_processing=False)
        finally:
            if self._weights is not None:
                self._weights.bring(())
        return pytree.tree_leaves(results)

    def load(self, node: fx.Node, user: fx.Node) -> Any:
        """The value of a node as another one uses it."""
        held = self.env[node]
        if self._elsewhere(node) and self._weights is not None:
            held = self._weights[str(node.target)]
        value = raised(held, self.dtype)
        if self._jitter is None or node in self._own or not _moves(held):
            return value
        noise = torch.rand(value.shape, generator=self._jitter).to(value) * 2 - 1
        return value * (1 + torch.finfo(value.dtype).eps * noise)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Arguments of a node."""
        return fx.node.map_arg((n.args, n.kwargs), lambda node: self.load(node, n))

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, on a copy of its own if an op will write into the result."""
        if self._elsewhere(n):
            return None  # it is read where it is used
        if self._weights is not None:
            self._weights.bring([n])
        value = super().run_node(n)
        if n in self._own and isinstance(value, torch.Tensor):
            own = raised(value.detach().clone(), self.dtype)
            value = nn.Parameter(own, False) if isinstance(value, nn.Parameter) else own
        self.note(n, value)
        return value

    def fetch_attr(self, target: str) -> Any:
        """A tensor that the graph writes into, or what is no tensor of the model."""
        if self._weights is not None and target in self._weights:
            return self._weights[target]
        return super().fetch_attr(target)

    def _elsewhere(self, n: fx.Node) -> bool:
        if n.op != "get_attr" or self._weights is None or n in self._own:
            return False
        return n.target in self._weights

    def note(self, n: fx.Node, value: Any) -> None:
        """Fill :attr:`flags` and :attr:`kept`."""
        if n.name in self._watched:
            self.kept[n.name] = value
        if self.flags is not None:
            self.flags[n] = not_finite(value)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an op; at a higher precision regions run without the autocast that lowers it."""
        if self.dtype is not None and target is hops.wrap_with_autocast:
            return args[4](*args[5:])
        if self.dtype is not None and target is hops.cond:
            chosen, operands = args[1 if args[0] else 2], args[3]
            return chosen(*operands)
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a module on its tensors at the precision of the run."""
        if self.dtype is None:
            return super().call_module(target, args, kwargs)
        module: Any = self.fetch_attr(target)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        tensors = {name: raised(tensor, self.dtype) for name, tensor in tensors.items()}
        return functional_call(module, tensors, args, kwargs)


def _moves(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and (value.is_floating_point() or value.is_complex())


def not_finite(value: Any) -> tuple[bool, bool]:
    """Whether a value holds NaN, and whether it holds an infinity."""
    leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
    numbers = [x for x in leaves if x.is_floating_point() or x.is_complex()]
    return any(bool(x.isnan().any()) for x in numbers), any(bool(x.isinf().any()) for x in numbers)
