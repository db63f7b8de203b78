"""What torch functions do to dead entries: the table that :class:`tests.fuzz.alive.Alive` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.fuzz.alive import Alive, Rule, UnknownOpError, name_of
from tests.fuzz.norms import NORMS

Function = Callable[..., Any]
RULES: dict[str, Rule] = dict(NORMS)


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a function for each of these names."""

    def add(function: Rule) -> Rule:
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = function
        return function

    return add


def inplace(function: Rule) -> Rule:
    """The same rule, for the function that writes its result into its first argument."""

    def run(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
        return alive.mark(args[0], function(alive, func, args, kwargs))

    return run


ELEMENTWISE = (
    "add sub mul div true_divide pow neg abs exp exp2 log log2 log1p expm1 sqrt rsqrt sin cos tan "
    "tanh sigmoid relu relu6 elu selu celu gelu silu mish leaky_relu softplus softsign logsigmoid "
    "hardtanh hardswish hardsigmoid erf sign floor ceil round reciprocal square clamp clamp_min "
    "clamp_max clip where masked_fill lerp addcmul addcdiv maximum minimum fmod remainder floordiv "
    "eq ne gt ge lt le logical_and logical_or logical_not logical_xor __and__ __or__ __xor__ "
    "__invert__ bitwise_and bitwise_or bitwise_not nan_to_num isnan isfinite isinf atan atan2 "
    "asin acos sinh cosh float half bfloat16 double bool long int dropout alpha_dropout "
    "feature_dropout feature_alpha_dropout clone detach contiguous positive rsub subtract multiply "
    "divide __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ "
    "__div__ __pow__ __rpow__ __neg__ __eq__ __ne__ __gt__ __ge__ __lt__ __le__ __floordiv__ "
    "__mod__ __abs__ tril triu threshold hardshrink softshrink tanhshrink rrelu sgn frac trunc "
    "log_sigmoid"
)
_SUMS = {"add", "radd", "sub", "rsub", "subtract"}


def _pointwise(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    result, mask = _elementwise(alive, func, args, kwargs)
    return result if result is args[0] else alive.mark(result, mask)


def _pointwise_into(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    result, mask = _elementwise(alive, func, args, kwargs)
    alive.mark(args[0], mask)
    return result


def _elementwise(alive: Alive, func: Function, args: Any, kwargs: Any) -> tuple[Any, Tensor]:
    """An entry is alive if all it is made from are.

    But for a term that is dead as a whole, a removed branch: it adds nothing.
    """
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    masks = [alive.whole(x) for x in tensors]
    if name_of(func).strip("_").removeprefix("i") in _SUMS:
        dead = [isinstance(x, Tensor) and x.numel() and not alive.whole(x).any() for x in args]
        if any(dead) and not all(dead[:2]):
            masks = [torch.ones_like(mask) if not mask.any() else mask for mask in masks]
            if name_of(func).startswith("__i") or name_of(func).endswith("_"):
                if dead[0]:
                    args[0].zero_()  # it is written into
                dead[0] = False
            args = tuple(torch.zeros_like(x) if d else x for x, d in zip(args, dead, strict=True))
    shape = torch.broadcast_shapes(*(m.shape for m in masks))
    mask = torch.ones(shape, dtype=torch.bool)
    for each in masks:
        mask = mask & each
    return func(*args, **kwargs), mask


for _name in ELEMENTWISE.split():
    RULES[_name] = _pointwise
    if not _name.startswith("__"):
        RULES[f"{_name}_"] = _pointwise_into
for _name in ["add", "sub", "mul", "div", "truediv", "pow", "and", "or"]:
    RULES[f"__i{_name}__"] = _pointwise_into


@rule("to type_as type")
def _cast(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    result = func(*args, **kwargs)
    return result if result is args[0] else alive.mark(result, alive.whole(args[0]))


@rule(
    "view reshape flatten unflatten permute transpose t T mT H mH adjoint squeeze unsqueeze expand "
    "expand_as view_as reshape_as chunk split split_with_sizes tensor_split unbind select narrow "
    "__getitem__ cat concat concatenate stack hstack vstack dstack repeat repeat_interleave tile "
    "roll flip rot90 movedim moveaxis swapaxes swapdims unfold pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle index_select gather take_along_dim embedding ravel "
    "broadcast_to diagonal as_strided hsplit vsplit"
)
def _arranged(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    """What only moves entries moves their records the same way."""
    result = func(*args, **kwargs)
    storages = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)}
    fresh = [
        x for x in tree_leaves(result) if x.untyped_storage().data_ptr() not in storages
    ]  # of views the record is there already
    if not fresh:
        return result
    masks = _masks(alive, (args, kwargs))
    moved = func(*masks[0], **masks[1])
    for mine, mask in zip(tree_leaves(result), tree_leaves(moved), strict=True):
        alive.mark(mine, mask > 0.5)
    return result


def _masks(alive: Alive, values: Any) -> Any:
    """Records as numbers in place of floating point tensors; indices stay."""

    def mask(x: Tensor) -> Tensor:
        return alive.whole(x).float() if x.is_floating_point() or x.dtype == torch.bool else x

    return tree_map_only(Tensor, mask, values)


@rule(
    "linear matmul __matmul__ __rmatmul__ bmm mm mv dot vdot inner outer addmm addmv addbmm "
    "baddbmm einsum tensordot bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d "
    "upsample_linear1d upsample_bicubic2d _upsample_nearest_exact2d im2col lp_pool2d"
)
def _products(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    """Dead entries are read as zero; what is computed from dead entries alone is dead."""
    given = tree_map_only(Tensor, alive.zeroed, (args, kwargs))
    result = func(*given[0], **given[1])
    masks = _masks(alive, (args, kwargs))
    mask = func(*masks[0], **masks[1])
    for mine, theirs in zip(tree_leaves(result), tree_leaves(mask), strict=True):
        alive.mark(mine, theirs.abs() > 1e-7)
    return result


@rule("scaled_dot_product_attention")
def _attention(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    given = tree_map_only(Tensor, alive.zeroed, (args, kwargs))
    result = func(*given[0], **given[1])
    names = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    queries = alive.whole(names["query"]).any(-1, keepdim=True)
    values = alive.whole(names["value"]).any(-2, keepdim=True)
    if kwargs.get("enable_gqa"):
        values = values.repeat_interleave(queries.shape[-3] // values.shape[-3], -3)
    return alive.mark(result, (queries & values).expand(result.shape))


@rule("__setitem__")
def _set_item(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    target, place, value = args
    mask = alive.whole(target).clone()
    if isinstance(value, Tensor):
        mask[place] = mask[place] & alive.whole(value)
    func(*args, **kwargs)
    alive.mark(target, mask)


@rule("copy_")
def _copy(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    mask = alive.whole(args[1]).expand(args[0].shape)
    return alive.mark(func(*args, **kwargs), mask)


@rule("zero_ fill_")
def _fill(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)  # a removed unit does not come back


@rule("pad")
def _pad(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    result = func(*args, **kwargs)
    mask = alive.whole(args[0]).float()
    if mode == "constant":
        mask = torch.nn.functional.pad(mask, args[1] if len(args) > 1 else kwargs["pad"], value=1.0)
    else:
        mask = func(mask, *args[1:], **kwargs)
    return alive.mark(result, mask > 0.5)


@rule("glu")
def _glu(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    axis = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    first, second = alive.whole(args[0]).chunk(2, axis)
    return alive.mark(func(*args, **kwargs), first & second)


@rule("prelu")
def _prelu(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    x, slopes = args
    mask = alive.whole(slopes)
    if mask.numel() > 1:
        mask = mask.view(-1, *[1] * (x.dim() - 2))
    return alive.mark(func(x, slopes), alive.whole(x) & mask)


@rule("_weight_norm")
def _weight_norm(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    direction, length = args[:2]
    mask = alive.whole(direction) & alive.whole(length)
    return alive.mark(func(alive.zeroed(direction), *args[1:], **kwargs), mask)


@rule("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def _cell(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    given = tree_map_only(Tensor, alive.zeroed, args)
    result = func(*given, **kwargs)
    units = alive.whole(args[3]).any(0)  # columns of the recurrent weight
    for state in tree_leaves(result):
        alive.mark(state, units.expand(state.shape))
    return result


@rule("index_add scatter_add index_copy")
def _written(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    """What dead entries are written to is dead."""
    target, dim, index, source = args[:4]
    result = func(alive.zeroed(target), dim, index, alive.zeroed(source), *args[4:], **kwargs)
    dead = func(torch.zeros(target.shape), dim, index, (~alive.whole(source)).float())
    return alive.mark(result, alive.whole(target) & (dead == 0))


@rule("index_fill")
def _index_fill(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    return alive.mark(func(*args, **kwargs), alive.whole(args[0]))


@rule("gru lstm rnn_tanh rnn_relu")
def _recurrent(alive: Alive, func: Function, args: Any, kwargs: Any) -> Any:
    """A unit of which all weights are zero stays at zero."""
    given = tree_map_only(Tensor, alive.zeroed, args)
    result = func(*given, **kwargs)
    if not isinstance(args[-1], bool):
        raise UnknownOpError("a recurrent layer on packed sequences")
    _, _, weights, biases, layers, _, _, both_ways, _ = args
    each = len(weights) // (layers * (1 + both_ways))  # parameters of one layer and direction
    if each > 2 + 2 * biases:
        raise UnknownOpError("a projected LSTM")
    units = [alive.whole(w).any(0) for w in weights[1::each]]  # columns of the recurrent weight
    last = torch.cat(units[-(1 + both_ways) :])
    alive.mark(result[0], last.expand(result[0].shape))
    for state in result[1:]:
        alive.mark(state, torch.stack(units)[:, None].expand(state.shape))
    return result
