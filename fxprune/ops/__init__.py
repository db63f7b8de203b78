"""What is known of ops, one file for each kind. Importing this package registers them."""

from fxprune.ops import (
    attention,
    choosing,
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
    taken,
    vision,
    writing,
)

__all__ = [
    "attention",
    "choosing",
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
    "taken",
    "vision",
    "writing",
]
