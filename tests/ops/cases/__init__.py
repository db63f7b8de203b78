"""The table of single-op models, one file per family of ops."""

from tests.ops.cases import (
    attention,
    convolution,
    lookup,
    matrix,
    pointwise,
    recurrent,
    reductions,
    sharing,
    slices,
    views,
    vision,
    writing,
)

CASES = [
    *attention.CASES,
    *convolution.CASES,
    *lookup.CASES,
    *matrix.CASES,
    *pointwise.CASES,
    *recurrent.CASES,
    *reductions.CASES,
    *sharing.CASES,
    *slices.CASES,
    *views.CASES,
    *vision.CASES,
    *writing.CASES,
]
