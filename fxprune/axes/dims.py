"""The axis algebra: dims, layouts, unification. Plain Python, no torch.

A :class:`Dim` is a set of interchangeable units. A *layout* says how one tensor axis is made of
dims: a dim, a :class:`Product` (outer to inner, what a reshape merges) or a :class:`Sum` (what a
concatenation makes). :func:`unify` states that two layouts are the same axis; it merges dims as in
Hindley-Milner type inference and splits them into products or sums where the other side is finer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod


class Dim:
    """A set of ``size`` interchangeable units; a node of the union-find forest.

    Args:
        size: number of units (at least 1). A symbolic axis carries a stand-in number.
        free: the size is symbolic (batch, sequence), so the dim is never pruned. None: a factor of
            a symbolic size, of which it is not known yet whether it is the symbolic one.
    """

    __slots__ = ("binding", "free", "reason", "size")

    def __init__(self, size: int, free: bool | None = False, reason: str | None = None) -> None:
        self.size = size
        self.free = free
        self.reason = reason
        self.binding: Layout | None = None

    @property
    def frozen(self) -> bool:
        """Whether units of this dim must stay (``reason`` says why)."""
        return bool(self.free) or self.reason is not None

    def __repr__(self) -> str:
        mark = "*" if self.free else "!" if self.reason else ""
        return f"{self.size}{mark}#{id(self) % 9973}"


class Product:
    """An axis indexed by several dims, outer to inner: ``index = outer * inner.size + inner``."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Layout, ...] = ()) -> None:
        self.parts = parts
        self.size: int = prod(p.size for p in parts)

    def __repr__(self) -> str:
        return "(" + " x ".join(map(repr, self.parts)) + ")" if self.parts else "1"


class Sum:
    """An axis that is the concatenation of several layouts."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Layout, ...]) -> None:
        self.parts = parts
        self.size: int = sum(p.size for p in parts)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(repr, self.parts)) + ")"


Layout = Dim | Product | Sum
Axes = tuple[Layout, ...]  # of one tensor
ONE = Product()


def find(dim: Dim) -> Dim:
    """The representative of ``dim``: the last dim on its chain of bindings (path-compressed)."""
    root = dim
    while isinstance(root.binding, Dim):
        root = root.binding
    while dim is not root:
        following = dim.binding
        assert isinstance(following, Dim)
        dim.binding = root
        dim = following
    return root


def resolve(layout: Layout) -> Layout:
    """The layout in normal form over unbound dims.

    Nested products and sums are flattened; factors of size 1 and terms of size 0 are dropped; a sum
    inside a product stands last, ``(a + b) x c`` being ``a x c + b x c``. So two layouts that keep
    the same positions whatever is pruned have the same form.
    """
    if isinstance(layout, Dim):
        root = find(layout)
        if root.binding is None:
            return ONE if root.size == 1 else root
        root.binding = resolve(root.binding)
        return root.binding
    parts = _flat(layout)
    if len(parts) == 1:
        return parts[0]
    if isinstance(layout, Product) and (spread := _spread(parts)):
        return resolve(spread)
    if len(parts) == len(layout.parts) and all(
        a is b for a, b in zip(parts, layout.parts, strict=True)
    ):
        return layout
    return type(layout)(tuple(parts))


def _flat(layout: Product | Sum) -> list[Layout]:
    """The resolved parts, those of the same kind opened up, neutral ones dropped."""
    neutral = 1 if isinstance(layout, Product) else 0
    parts: list[Layout] = []
    for part in map(resolve, layout.parts):
        if not isinstance(part, Dim) and type(part) is type(layout):
            parts.extend(part.parts)
        elif part.size != neutral:
            parts.append(part)
    return parts


def _spread(factors: list[Layout]) -> Product | None:
    """``(a + b) x c`` as ``a x c + b x c``; None where no sum has a factor behind it."""
    for i, factor in enumerate(factors[:-1]):
        if isinstance(factor, Sum):
            terms = (Product((term, *factors[i + 1 :])) for term in factor.parts)
            return Product((*factors[:i], Sum(tuple(terms))))
    return None


def atoms(layout: Layout) -> Iterator[Dim]:
    """Every unbound dim of the layout, outer to inner and left to right, repeats included."""
    resolved = resolve(layout)
    if isinstance(resolved, Dim):
        yield resolved
    else:
        for part in resolved.parts:
            yield from atoms(part)


def freeze(layout: Layout, reason: str) -> None:
    """Forbid pruning anything in the layout. The first reason given is the one kept."""
    for dim in atoms(layout):
        if dim.reason is None:
            dim.reason = reason


def unify(a: Layout, b: Layout, reason: str = "two axes of different make") -> bool:
    """State that two layouts are the same axis.

    Symmetric and idempotent. Where the two cannot be aligned (a *clash*), both are frozen.

    Args:
        a: one layout.
        b: the other, of the same size.
        reason: what a frozen group says if the two clash.

    Returns:
        Whether the two now agree.
    """
    if _unify(a, b):
        return True
    freeze(a, reason)
    freeze(b, reason)
    return False


def _unify(a: Layout, b: Layout) -> bool:
    a, b = resolve(a), resolve(b)
    if a is b:
        return True
    if a.size != b.size:
        return False
    if isinstance(a, Dim):
        return _bind(a, b)
    if isinstance(b, Dim):
        return _bind(b, a)
    if isinstance(a, Product) and isinstance(b, Product):
        return _unify_parts(a, b, split_product)
    if isinstance(a, Sum) and isinstance(b, Sum):
        return _unify_parts(a, b, split_sum)
    if isinstance(a, Sum) and isinstance(b, Product):
        return _unify_sum_product(a, b)
    assert isinstance(a, Product)
    assert isinstance(b, Sum)
    return _unify_sum_product(b, a)


def _bind(dim: Dim, layout: Layout) -> bool:
    if isinstance(layout, Dim) and dim.free != layout.free:
        if layout.free is None:
            layout.free = dim.free
        elif dim.free is not None:
            return False
    if not isinstance(layout, Dim) and any(atom is dim for atom in atoms(layout)):
        return False
    dim.binding = layout
    if dim.reason is not None:
        freeze(layout, dim.reason)
    return True


def _unify_parts(
    a: Product | Sum,
    b: Product | Sum,
    split: Callable[[Layout, int], tuple[Layout, Layout] | None],
) -> bool:
    left, right = list(reversed(a.parts)), list(reversed(b.parts))
    while left and right:
        x, y = resolve(left.pop()), resolve(right.pop())
        if x.size == y.size:
            if not _unify(x, y):
                return False
            continue
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        halves = split(x, y.size)
        if halves is None:
            return False
        left.append(halves[1])
        if not _unify(halves[0], y):
            return False
    return not left and not right


def _unify_sum_product(a: Sum, b: Product) -> bool:
    for cut in range(1, len(b.parts)):
        outer, inner = Product(b.parts[:cut]), Product(b.parts[cut:])
        if _blocks(a, inner.size) is not None:
            halves = split_product(a, outer.size)
            return halves is not None and _unify(halves[0], outer) and _unify(halves[1], inner)
    return False


def split_product(layout: Layout, outer: int) -> tuple[Layout, Layout] | None:
    """Split an axis into ``outer`` blocks of ``size // outer`` units.

    Returns:
        The outer and the inner layout, or None where the axis has no such blocks.
    """
    layout = resolve(layout)
    if layout.size % outer:
        return None
    inner = layout.size // outer
    if outer == 1:
        return ONE, layout
    if inner == 1:
        return layout, ONE
    if isinstance(layout, Dim):
        # In batch * heads, say, one half is symbolic and the other is not.
        free = None if layout.free else layout.free
        halves = (Dim(outer, free, layout.reason), Dim(inner, free, layout.reason))
        layout.binding = Product(halves)
        return halves
    if isinstance(layout, Product):
        return _split_factors(layout, outer)
    return _split_terms(layout, inner)


def _split_factors(layout: Product, outer: int) -> tuple[Layout, Layout] | None:
    done = 1
    for i, part in enumerate(layout.parts):
        if done * part.size <= outer:
            done *= part.size
            continue
        if done == outer:
            return Product(layout.parts[:i]), Product(layout.parts[i:])
        if outer % done:
            return None
        middle = split_product(part, outer // done)
        if middle is None:
            return None
        return (
            Product((*layout.parts[:i], middle[0])),
            Product((middle[1], *layout.parts[i + 1 :])),
        )
    return None


def _split_terms(layout: Sum, inner: int) -> tuple[Layout, Layout] | None:
    terms = _blocks(layout, inner)
    if terms is None:
        return None
    pairs = [split_product(term, term.size // inner) for term in terms]
    whole = [pair for pair in pairs if pair is not None]
    if len(whole) < len(pairs):
        return None
    if not all(_unify(whole[0][1], pair[1]) for pair in whole[1:]):
        return None
    return Sum(tuple(pair[0] for pair in whole)), whole[0][1]


def _blocks(layout: Sum, inner: int) -> list[Layout] | None:
    """The terms of a sum as whole blocks of ``inner`` units, or None where there are none.

    Normal form flattens a block that is itself a sum (``[h, h]`` inside ``[q, h, h]``), so terms
    that fill a block only together are joined again.
    """
    blocks: list[Layout] = []
    run: list[Layout] = []
    for term in layout.parts:
        run.append(term)
        size = sum(part.size for part in run)
        if len(run) == 1 and size % inner == 0:
            blocks.append(term)
        elif size == inner:
            blocks.append(Sum(tuple(run)))
        elif size > inner:
            return None
        else:
            continue
        run = []
    return None if run else blocks


def split_sum(layout: Layout, at: int) -> tuple[Layout, Layout] | None:
    """Split an axis at a boundary into its first ``at`` units and the rest.

    Returns:
        The left and the right layout, or None where the boundary cuts through a block.
    """
    layout = resolve(layout)
    if at == 0:
        return Sum(()), layout
    if at == layout.size:
        return layout, Sum(())
    if isinstance(layout, Dim):
        halves = (Dim(at, reason=layout.reason), Dim(layout.size - at, reason=layout.reason))
        layout.binding = Sum(halves)
        return halves
    if isinstance(layout, Sum):
        done = 0
        for i, part in enumerate(layout.parts):
            if done + part.size <= at:
                done += part.size
                continue
            middle = split_sum(part, at - done)
            if middle is None:
                return None
            return Sum((*layout.parts[:i], middle[0])), Sum((middle[1], *layout.parts[i + 1 :]))
        return None
    return _split_blocks(layout.parts[0], Product(layout.parts[1:]), at)


def _split_blocks(outer: Layout, inner: Layout, at: int) -> tuple[Layout, Layout] | None:
    """Cut ``outer`` blocks at a boundary; a block that it runs through stands alone from then on.

    That block is one unit of ``outer``, so it is in no dim any more and stays whatever is pruned.
    """
    before, through = divmod(at, inner.size)
    halves = split_sum(outer, before)
    if halves is None or not through:
        return halves and (Product((halves[0], inner)), Product((halves[1], inner)))
    rest = split_sum(halves[1], 1)
    pieces = split_sum(inner, through)
    if rest is None or pieces is None:
        return None
    return (
        Sum((Product((halves[0], inner)), pieces[0])),
        Sum((pieces[1], Product((rest[1], inner)))),
    )
