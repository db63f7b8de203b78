"""The built-in rules, one file per kind of op. Importing this package registers them."""

from fxprune.axes.rules import (
    attention,
    contraction,
    convolution,
    einsum,
    factory,
    indexing,
    normalisation,
    pointwise,
    recurrent,
    reduction,
    reshape,
    slicing,
    vision,
    writing,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "einsum",
    "factory",
    "indexing",
    "normalisation",
    "pointwise",
    "recurrent",
    "reduction",
    "reshape",
    "slicing",
    "vision",
    "writing",
]
