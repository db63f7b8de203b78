"""The oracle: the smaller model must compute what the original does with those units zeroed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.axes.arguments import argument
from fxprune.axes.dims import Layout
from fxprune.errors import OracleError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.plan import Plan
from fxprune.rewrite.patches import find_patch
from fxprune.rewrite.resize import Resizer
from fxprune.trace.traced import Traced

aten = torch.ops.aten

# Largest difference allowed, relative to the largest output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# Ops that average or sum units. Zeroed units would still be counted, so these run on kept ones.
_REDUCTIONS = {
    aten.layer_norm, aten.rms_norm, aten.native_layer_norm, aten.group_norm, aten.instance_norm,
    aten.mean, aten.nanmean, aten.sum, aten.nansum, aten.var, aten.std, aten.var_mean,
    aten.std_mean, aten.norm, aten.linalg_vector_norm, aten.linalg_norm,
}  # fmt: skip

# Products of activations. A removed unit need not be zero there: ``elu(0) + 1`` is not.
_CONTRACTIONS = {
    aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.inner,
    aten.tensordot, aten.einsum, aten.scaled_dot_product_attention,
}  # fmt: skip


@dataclass(frozen=True)
class VerifyReport:
    """What the oracle measured.

    Attributes:
        max_abs_error: largest difference of any output element.
        scale: largest absolute output of the original.
        tolerance: largest ``relative_error`` allowed for the output's dtype.
        normalised: pruned groups whose units are averaged in a norm. There the original was run
            with the norms taken over the kept units.
    """

    max_abs_error: float
    scale: float
    tolerance: float
    normalised: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """``max_abs_error / scale``."""
        return self.max_abs_error / self.scale if self.scale else self.max_abs_error

    def __str__(self) -> str:
        return (
            f"max |difference| {self.max_abs_error:.2e} of outputs up to {self.scale:.3g} "
            f"({self.relative_error:.1e} relative, {self.tolerance:.0e} allowed)"
        )


@dataclass(frozen=True)
class Reference:
    """Outputs of the original with the removed units switched off, to compare with later."""

    outputs: tuple[Any, ...]
    normalised: tuple[str, ...]


def verify(traced: Traced, small: nn.Module, plan: Plan, example: Any = None) -> VerifyReport:
    """Prove that ``small`` is the original without the plan's removed units.

    Runs the original with those units zeroed at every parameter and compares the outputs. Where a
    removed unit is averaged in a norm, zeroing is not removal: there the norm is taken over the
    kept units, everything else being the original's full-size computation.

    Args:
        traced: the original, with real weights.
        small: the smaller model.
        plan: what was removed.
        example: inputs: keyword arguments as a mapping, positional ones as a tuple, or one tensor.
            The traced example if left out.

    Returns:
        The measured error.

    Raises:
        OracleError: the outputs differ in shape, are not finite or differ by more than the
            tolerance of their dtype; or the model has no weights.
    """
    return compare(reference(traced, plan, example), small, traced, example)


def reference(traced: Traced, plan: Plan, example: Any = None) -> Reference:
    """Run the original with the removed units switched off.

    Returns:
        The outputs, in which intermediate values are cut to the size the smaller model gives.
    """
    if any(tensor.is_meta for tensor in traced.tensors.values()):
        raise OracleError("a model on the meta device has no weights to verify with")
    graph = discover(traced)
    plan.check(graph)
    resize = Resizer(graph.inferred, plan.kept_units(graph), traced.sizes)
    args, kwargs = _inputs(traced, example)
    with torch.no_grad():
        flat = _flatten(traced.graph_module, args, kwargs)
        results = _Masked(traced, graph, resize).run(*flat, enable_io_processing=False)
    outputs = pytree.tree_leaves(results)
    nodes = pytree.tree_leaves(traced.graph_module.graph.output_node().args[0])
    for place in graph.inferred.intermediate:
        outputs[place] = resize.slice(outputs[place], resize.axes(nodes[place]))
    return Reference(tuple(outputs), tuple(g for g in plan.kept if graph[g].normalised))


def compare(
    expected: Reference, small: nn.Module, traced: Traced, example: Any = None
) -> VerifyReport:
    """Run the smaller model and compare it with a reference; see :func:`verify`."""
    args, kwargs = _inputs(traced, example)
    with torch.no_grad(), _evaluation(small):
        actual = pytree.tree_leaves(small(*args, **kwargs))
    worst, scale, tolerance = 0.0, 0.0, 0.0
    for place, (mine, theirs) in enumerate(zip(actual, expected.outputs, strict=True)):
        if not isinstance(mine, torch.Tensor):
            continue
        if mine.shape != theirs.shape:
            raise OracleError(
                f"output {place} of the smaller model has shape {tuple(mine.shape)}, "
                f"the original {tuple(theirs.shape)}"
            )
        if not mine.is_floating_point():
            worst = max(worst, float((mine != theirs).any()))
            continue
        if not torch.isfinite(mine).all() and torch.isfinite(theirs).all():
            raise OracleError(f"output {place} of the smaller model is not finite")
        difference = (mine.double() - theirs.double()).abs().nan_to_num()
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
        scale = max(scale, float(theirs.abs().max()) if theirs.numel() else 0.0)
        tolerance = max(tolerance, TOLERANCE.get(mine.dtype, 1e-4))
    report = VerifyReport(worst, scale, tolerance, expected.normalised)
    if report.relative_error > tolerance:
        raise OracleError(
            "the smaller model does not compute what the original does without the removed units: "
            f"{report}. It must not be used; please report the model"
        )
    return report


class _Masked(fx.Interpreter):
    """The original graph with removed units zeroed in the weights and left out of averages."""

    def __init__(self, traced: Traced, graph: DependencyGraph, resize: Resizer) -> None:
        super().__init__(traced.graph_module)
        self._layouts = graph.layouts
        self._resize = resize

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        contracts = getattr(n.target, "overloadpacket", None) in _CONTRACTIONS

        # Weights are zeroed when they are used, so that one copy at a time is alive.
        def load(node: fx.Node) -> Any:
            value = self.env[node]
            if node.op == "get_attr" and isinstance(value, nn.Parameter):
                return self._zeroed(value, self._layouts[str(node.target)])
            if contracts and isinstance(value, torch.Tensor) and value.is_floating_point():
                return self._zeroed(value, self._resize.axes(node))
            return value

        return fx.node.map_arg((n.args, n.kwargs), load)

    def run_node(self, n: fx.Node) -> Any:
        if _averages(n) and any(
            self._resize.changed(layout)
            for source in n.all_input_nodes
            if source in self._resize.inferred.axes
            for layout in self._resize.axes(source)
        ):
            return self._reduce(n)
        return super().run_node(n)

    def _zeroed(self, tensor: torch.Tensor, layouts: tuple[Layout, ...]) -> torch.Tensor:
        for axis, layout in enumerate(layouts):
            if self._resize.changed(layout):
                keep = torch.zeros(layout.size, dtype=torch.bool, device=tensor.device)
                keep[self._resize.index(layout).to(tensor.device)] = True
                shape = [-1 if a == axis else 1 for a in range(tensor.dim())]
                tensor = torch.where(keep.view(shape), tensor, 0)
        return tensor

    def _reduce(self, n: fx.Node) -> Any:
        """Gather the kept units, run the op on them, scatter the result among zeros."""
        patch = find_patch(n.target)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        small = graph.node_copy(
            n, lambda source: copies.setdefault(source, graph.placeholder(source.name))
        )
        small.meta = dict(n.meta)
        if patch:
            patch(self._resize, n, small)
        inputs = {copy: self._gather(source) for source, copy in copies.items()}
        args, kwargs = fx.node.map_arg((small.args, small.kwargs), lambda c: inputs[c])
        assert callable(small.target)
        result, axes = small.target(*args, **kwargs), self._resize.inferred.axes[n]
        if isinstance(axes, list):
            return tuple(self._scatter(*each) for each in zip(result, axes, strict=True))
        return self._scatter(result, axes)

    def _gather(self, node: fx.Node) -> Any:
        value = self.env[node]
        axes = self._resize.inferred.axes.get(node)
        return self._resize.slice(value, axes) if isinstance(axes, tuple) else value

    def _scatter(self, value: torch.Tensor, layouts: tuple[Layout, ...]) -> torch.Tensor:
        for axis, layout in enumerate(layouts):
            if self._resize.changed(layout):
                shape = [layout.size if a == axis else s for a, s in enumerate(value.shape)]
                place = self._resize.index(layout).to(value.device)
                value = value.new_zeros(shape).index_copy(axis, place, value)
        return value


def _averages(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    # A batch norm in evaluation mode averages nothing.
    return packet in _REDUCTIONS or (packet is aten.batch_norm and bool(argument(node, "training")))


def _inputs(traced: Traced, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example is None:
        return traced.args, dict(traced.kwargs)
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple):
        return example, {}
    if traced.kwargs and not traced.args:
        return (), {next(iter(traced.kwargs)): example}
    return (example,), {}


def _flatten(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Inputs in the order of the graph's placeholders."""
    codegen: Any = module.graph._codegen
    info = codegen.pytree_info
    positional, by_name = info.in_spec.children()
    named = {**dict(zip(info.orig_args, args, strict=False)), **kwargs}
    missing = [name for name in info.orig_args if name not in named]
    if missing or len(named) > len(info.orig_args):
        names = ", ".join(info.orig_args)
        raise OracleError(f"the example must have the inputs the model was traced with: {names}")
    first = tuple(named[name] for name in info.orig_args[: positional.num_children])
    return pytree.tree_leaves((first, {name: named[name] for name in by_name.context}))


@contextlib.contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
