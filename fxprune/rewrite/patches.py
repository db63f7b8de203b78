"""Integers in the graph that stand for sizes, recomputed from the output layout of their node.

One small function per kind of op, in a table like that of the axis rules. An op without a patch is
left as it is: most take their sizes from their operands.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Layout
from fxprune.errors import RewriteError, RuleError
from fxprune.rewrite.resize import Resizer
from fxprune.trace.arguments import END, argument, axis_of

aten = torch.ops.aten
_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv}

# patch(resizer, old node, new node) mends the new node's arguments in place; where it must add a
# node behind it, it returns the one that now stands for the value.
Patch = Callable[[Resizer, fx.Node, fx.Node], "fx.Node | None"]
PATCHES: dict[Any, Patch] = {}


def register_patch(*targets: Any) -> Callable[[Patch], Patch]:
    """Register what rewriting does to an op's size arguments.

    The function takes the :class:`~fxprune.rewrite.resize.Resizer`, the original node and its copy
    in the new graph, whose arguments it mends.

    Raises:
        RuleError: an op has a patch already.
    """

    def register(patch: Patch) -> Patch:
        for target in targets:
            if target in PATCHES:
                raise RuleError(f"{target} has a patch already: {PATCHES[target].__name__}")
            PATCHES[target] = patch
        return patch

    return register


def find_patch(target: Any) -> Patch | None:
    """The patch of an op: its overload's, else its packet's."""
    return PATCHES.get(target) or PATCHES.get(getattr(target, "overloadpacket", None))


def _resized(resize: Resizer, node: fx.Node, layout: Layout, size: Any, before: Any) -> Any:
    """A size argument for an axis of the given layout.

    Args:
        resize: sizes under the plan.
        node: the new node.
        layout: layout of the axis.
        size: the argument in the new graph.
        before: the argument in the original graph.
    """
    if not resize.changed(layout) or size == -1:
        return size
    if isinstance(size, int):
        return resize.size(layout)
    now = _evaluated(resize, before)
    if now == resize.size(layout):
        return size  # read off a value that is smaller already
    if now != layout.size:
        raise RewriteError(f"the size {size} of {node.name} cannot be followed")
    # A symbolic product such as batch * heads: exchange its static part.
    old, new = resize.static_factor(layout)
    with node.graph.inserting_before(node):
        symbolic = node.graph.call_function(operator.floordiv, (size, old))
        return node.graph.call_function(operator.mul, (symbolic, new))


def _evaluated(resize: Resizer, size: Any) -> int:
    """What a size expression of the original graph gives in the rewritten one, in stand-ins."""
    if not isinstance(size, fx.Node):
        return int(size)
    source: Any = size.args[0]
    if size.target is aten.sym_size.int:
        axis: Any = size.args[1]
        return resize.size(resize.axes(source)[axis])
    if size.target in _ARITHMETIC:
        assert callable(size.target)
        return int(size.target(*(_evaluated(resize, x) for x in size.args)))
    return resize.sizes.value(size.meta["val"])


def _sizes(place: int) -> Patch:
    def sizes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
        """A list with one size for each output axis."""
        given: Any = new.args[place]
        before: Any = old.args[place]
        triples = zip(resize.axes(old), given, before, strict=True)
        new.update_arg(place, [_resized(resize, new, *each) for each in triples])

    return sizes


register_patch(
    aten.view.default, aten.reshape, aten._unsafe_view, aten._reshape_alias, aten.expand,
    aten.broadcast_to, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
)(_sizes(1))  # fmt: skip
register_patch(aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn)(_sizes(0))


@register_patch(aten.unflatten)
def unflatten(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Sizes of the axes that one axis is split into."""
    layouts = resize.axes(old)
    given: Any = new.args[2]
    before: Any = old.args[2]
    start = int(new.args[1]) % (len(layouts) - len(given) + 1)  # type: ignore[arg-type]
    triples = zip(layouts[start : start + len(given)], given, before, strict=True)
    new.update_arg(2, [_resized(resize, new, *each) for each in triples])


@register_patch(aten.repeat, aten.tile)
def repeat(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Copies of each axis: what the output has over the input."""
    source: Any = old.args[0]
    given: Any = new.args[1]
    layouts, inner = resize.axes(old), resize.axes(source)
    lead = len(layouts) - len(inner)
    given = [*[1] * (len(layouts) - len(given)), *given]  # tile may name the last axes only
    copies = []
    for place, (layout, count) in enumerate(zip(layouts, given, strict=True)):
        mine = resize.size(inner[place - lead]) if place >= lead else 1
        copies.append(resize.size(layout) // mine if isinstance(count, int) else count)
    new.update_arg(1, copies)


@register_patch(aten.repeat_interleave.self_int)
def repeat_interleave(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Copies of each unit of one axis."""
    source: Any = old.args[0]
    given = argument(new, "dim")
    inner = resize.axes(source)
    if isinstance(new.args[1], int):
        place = 0 if given is None else given % len(inner)
        mine = 1
        for layout in inner if given is None else (inner[place],):
            mine *= resize.size(layout)
        new.update_arg(1, resize.size(resize.axes(old)[place]) // mine)
    if isinstance(new.kwargs.get("output_size"), int):
        new.update_kwarg("output_size", None)


@register_patch(aten.slice.Tensor)
def slice_(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A boundary moves to the number of kept units before it."""
    source: Any = old.args[0]
    axis = int(argument(new, "dim"))
    start, end, step = (argument(new, name) for name in ("start", "end", "step"))
    layout = resize.axes(source)[axis]
    if not resize.changed(layout):
        return
    if step != 1:
        # Every n-th unit of (outer x n): only the outer units can be gone.
        first, _, _ = slice(start, end, step).indices(layout.size)
        new.args = (new.args[0], axis, first, END, step)
        return
    first, last, _ = slice(start, end).indices(layout.size)
    new.args = (new.args[0], axis, resize.before(layout, first), resize.before(layout, last))


@register_patch(aten.narrow)
def narrow(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Start and length of a piece."""
    source, axis, start, length = old.args
    layout = resize.axes(source)[axis]  # type: ignore[arg-type, index]
    if resize.changed(layout) and isinstance(start, int) and isinstance(length, int):
        first = resize.before(layout, start % layout.size)
        last = resize.before(layout, start % layout.size + length)
        new.args = (new.args[0], axis, first, last - first)


@register_patch(
    aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk,
    aten.tensor_split, aten.split_copy, aten.split_with_sizes_copy,
)  # fmt: skip
def split(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Pieces may have lost different numbers of units, so their sizes are listed."""
    source: Any = old.args[0]
    place = axis_of(old, len(resize.axes(source)))
    if not resize.changed(resize.axes(source)[place]):
        return
    pieces = resize.inferred.axes[old]
    new.target = aten.split_with_sizes.default
    new.args = (new.args[0], [resize.size(axes[place]) for axes in pieces], place)  # type: ignore[index]
    new.kwargs = {}


@register_patch(aten.pad, aten.constant_pad_nd)
def pad(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Padding stands for units, of which some may be gone."""
    given: Any = new.args[1]
    notes = [resize.inferred.notes.get((old, f"pad{place}")) for place in range(len(given))]
    pairs = zip(notes, given, strict=True)
    new.update_arg(1, [amount if x is None else resize.size(x) for x, amount in pairs])


@register_patch(aten.layer_norm, aten.rms_norm, aten.native_layer_norm)
def layer_norm(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """``normalized_shape``."""
    source: Any = old.args[0]
    shape: Any = new.args[1]
    new.update_arg(1, [resize.size(layout) for layout in resize.axes(source)[-len(shape) :]])


@register_patch(aten.group_norm)
def group_norm(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The number of groups."""
    new.update_arg(1, resize.size(resize.inferred.notes[old, "groups"]))


@register_patch(
    aten.conv1d, aten.conv2d, aten.conv3d,
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d, aten.convolution,
    aten.channel_shuffle, aten.native_channel_shuffle,
)  # fmt: skip
def groups(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The number of groups."""
    blocks = resize.inferred.notes.get((old, "groups"))
    if blocks is None:
        return
    names = [parameter.name for parameter in new.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index("groups")
    if len(new.args) > place:
        new.update_arg(place, resize.size(blocks))
    else:
        new.update_kwarg("groups", resize.size(blocks))


@register_patch(aten.scaled_dot_product_attention)
def attention(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The implicit scale 1/sqrt(d) of the original head size becomes explicit."""
    query: Any = old.args[0]
    layout = resize.axes(query)[-1]
    if resize.changed(layout) and argument(new, "scale") is None:
        new.update_kwarg("scale", float(layout.size) ** -0.5)


@register_patch(aten.lstm.input)
def lstm(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A projection is told by its size, which must be another than the hidden one."""
    given: Any = old.args
    hidden, cell = (resize.axes(state)[-1] for state in given[1])
    if hidden.size != cell.size and resize.size(hidden) == resize.size(cell):
        raise RewriteError(
            f"{new.name} would project {resize.size(cell)} hidden units to as many outputs, and "
            "torch takes such an LSTM for one without a projection: keep more of its hidden units"
        )


@register_patch(aten.squeeze, aten.squeeze_)
def squeeze(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Name the axes that go: one pruned down to a single unit must stay."""
    source: Any = old.args[0]
    axes = resize.axes(source)
    named: Any = old.args[1] if len(old.args) > 1 else range(len(axes))
    gone = {a % len(axes) for a in ([named] if isinstance(named, int) else named)}
    packet = old.target.overloadpacket  # type: ignore[union-attr]
    new.target = packet.dims
    new.args = (new.args[0], sorted(a for a in gone if axes[a].size == 1))


@register_patch(aten.arange)
def arange(resize: Resizer, old: fx.Node, new: fx.Node) -> fx.Node | None:
    """Keep the numbers of the kept units (a slope of ALiBi belongs to its head)."""
    layout = resize.axes(old)[0]
    if not resize.changed(layout):
        return None
    module = new.graph.owning_module
    if module is None:
        raise RewriteError(f"{new.name}: the graph has no module to hold the kept numbers")
    name = f"_kept_{old.name}"
    module.register_buffer(name, resize.index(layout).to(old.meta["val"].device))
    with new.graph.inserting_after(new):
        index = new.graph.get_attr(name)
    with new.graph.inserting_after(index):
        picked = new.graph.call_function(aten.index_select.default, (new, 0, index))
    new.replace_all_uses_with(picked, delete_user_cb=lambda user: user is not picked)
    index.meta = dict(old.meta)
    picked.meta = dict(old.meta)
    return picked
