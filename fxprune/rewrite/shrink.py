"""A smaller copy of a leaf module, and the check that calling it is what its nodes compute."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from fxprune.trace.arguments import argument

TORCH_LEAVES = (
    nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    _BatchNorm, _ConvNd, _DropoutNd,
)  # fmt: skip


def smaller(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], nodes: list[fx.Node]
) -> nn.Module | None:
    """A copy of the module with other tensors, its size attributes mended.

    Args:
        module: the original; it keeps its tensors and hooks.
        tensors: new parameters and buffers by name; those left out are shared.
        nodes: what the module's call left in the rewritten graph.

    Returns:
        The copy, or None for a module of an unknown class whose size attributes are ambiguous.
    """
    result = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, set)) and name.startswith(("_", "forward")):
            result.__dict__[name] = type(value)()  # hooks stay with the original
    result.__dict__["_modules"] = {}
    result.__dict__["_parameters"] = dict(module._parameters)
    result.__dict__["_buffers"] = dict(module._buffers)
    result.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    for name, tensor in tensors.items():
        slot = "_parameters" if name in module._parameters else "_buffers"
        result.__dict__[slot][name] = tensor
    return result if _mend_sizes(module, result, nodes) else None


def _mend_sizes(module: nn.Module, result: Any, nodes: list[fx.Node]) -> bool:
    if isinstance(module, nn.Linear):
        result.out_features, result.in_features = result.weight.shape
    elif isinstance(module, nn.Embedding):
        result.num_embeddings, result.embedding_dim = result.weight.shape
        place = _argument(nodes, "padding_idx", -1)
        result.padding_idx = None if place < 0 else place
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        result.normalized_shape = tuple(
            _argument(nodes, "normalized_shape", module.normalized_shape)
        )
    elif isinstance(module, _BatchNorm) and result.running_mean is not None:
        result.num_features = len(result.running_mean)
    elif isinstance(module, nn.GroupNorm):
        result.num_groups = _argument(nodes, "num_groups", module.num_groups)
        result.num_channels = len(result.weight) if result.affine else module.num_channels
    elif isinstance(module, _ConvNd):
        result.groups = _argument(nodes, "groups", module.groups)
        channels = result.weight.shape[0], result.weight.shape[1] * result.groups
        result.in_channels, result.out_channels = channels if module.transposed else channels[::-1]
    elif isinstance(module, nn.RNNBase):
        gates = len(module._parameters["weight_hh_l0"]) // module.hidden_size  # type: ignore[arg-type]
        result.hidden_size = result.weight_hh_l0.shape[0] // gates
        result.input_size = result.weight_ih_l0.shape[1]
        result.proj_size = result.weight_hr_l0.shape[0] if module.proj_size else 0
        result._init_flat_weights()
    elif isinstance(module, nn.RNNCellBase):
        result.hidden_size, result.input_size = result.weight_hh.shape[1], result.weight_ih.shape[1]
    elif {"nx", "nf"} <= vars(module).keys():  # transformers' Conv1D: a transposed Linear
        result.nx, result.nf = result.weight.shape
    else:
        return _mend_unknown(module, result)
    return True


def _mend_unknown(module: nn.Module, result: Any) -> bool:
    """Any other class: an integer that was the size of a shrunk axis becomes the new size.

    Returns:
        False where one old size has several new ones and so an attribute cannot be told.
    """
    sizes: dict[int, set[int]] = {}
    for name, before in (*module._parameters.items(), *module._buffers.items()):
        if before is not None:
            for old, new in zip(before.shape, getattr(result, name).shape, strict=True):
                sizes.setdefault(old, set()).add(new)
    for name, value in vars(module).items():
        if isinstance(value, int) and not isinstance(value, bool) and value in sizes:
            if len(sizes[value]) > 1:
                return False
            setattr(result, name, *sizes[value])
    return True


def _argument(nodes: list[fx.Node], name: str, default: Any) -> Any:
    """An argument of the one op behind a torch module."""
    found = (argument(node, name) for node in nodes)
    return next((value for value in found if value is not None), default)


def equivalent(
    module: nn.Module,
    names: Mapping[str, str],
    nodes: list[fx.Node],
    source: fx.Node,
    result: fx.Node,
) -> bool:
    """Whether calling the module is what its nodes compute.

    torch's own leaf modules are one op, which needs no proof. Any other class is run against its
    nodes on random tensors and must agree to the last bit.

    Args:
        module: the smaller module.
        names: names of its tensors to the FQNs that the nodes read.
        nodes: the nodes of one call.
        source: the tensor that enters.
        result: the node whose value leaves.
    """
    if one_op(module):
        return len([n for n in nodes if n.target is not torch.ops.aten.add_.Tensor]) == 1
    probe = _Probe(module, names, source)
    try:
        with torch.no_grad():
            expected = probe.module(probe.values[source])
            for node in nodes:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), probe.value)
                assert callable(node.target)
                probe.values[node] = node.target(*args, **kwargs)
    except Exception:
        # It cannot be called with one tensor: its nodes stay, which is as correct.
        return False
    return isinstance(expected, torch.Tensor) and torch.equal(expected, probe.values[result])


class _Probe:
    """A module with random tensors and a random input, and the values its nodes read."""

    def __init__(self, module: nn.Module, names: Mapping[str, str], source: fx.Node) -> None:
        self.values: dict[Any, Any] = {}
        self._random = torch.Generator().manual_seed(0)
        self.module = copy.copy(module)
        self.module.training = False
        parameters: dict[str, nn.Parameter | None] = dict(module._parameters)
        buffers: dict[str, torch.Tensor | None] = dict(module._buffers)
        for name, parameter in parameters.items():
            if parameter is not None:
                parameters[name] = nn.Parameter(self._draw(parameter.shape, parameter.dtype), False)
                self.values[names[name]] = parameters[name]
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = self._draw(buffer.shape, buffer.dtype)
                self.values[names[name]] = buffers[name]
        self.module.__dict__.update(_parameters=parameters, _buffers=buffers)
        # Every symbolic size gets a small number of its own.
        shape = source.meta["val"].shape
        symbols = dict.fromkeys(s.node.expr for s in shape if not isinstance(s, int))
        self._symbols = {symbol: 2 + place for place, symbol in enumerate(symbols)}
        drawn = [s if isinstance(s, int) else self._symbols[s.node.expr] for s in shape]
        self.values[source] = self._draw(drawn, source.meta["val"].dtype)

    def _draw(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        if dtype.is_floating_point:
            return (torch.rand(list(shape), generator=self._random) + 0.5).to(dtype)
        return torch.zeros(list(shape), dtype=dtype)

    def value(self, node: fx.Node) -> Any:
        """What a node stands for: a computed value, a tensor of the module, a size, a device."""
        if node in self.values:
            return self.values[node]
        if node.op == "get_attr":
            return self.values[str(node.target)]
        given = node.meta["val"]
        return (
            torch.device("cpu")
            if isinstance(given, torch.device)
            else self._symbols[given.node.expr]
        )


def one_op(module: nn.Module) -> bool:
    """Whether a module is one of torch's own whose forward is a single op."""
    return any(
        isinstance(module, base) and type(module).forward in _forwards(base)
        for base in TORCH_LEAVES
    )


def _forwards(base: type[nn.Module]) -> set[Any]:
    """The forward methods of torch's own classes of that kind."""
    own = (c for c in base.__subclasses__() if c.__module__.startswith("torch.nn.modules"))
    return {base.forward, *(c.forward for c in own)}
