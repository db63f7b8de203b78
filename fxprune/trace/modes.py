"""Evaluation mode for a while, and what else a model is captured in."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    # Not model.eval(): a class may override it, and a GraphModule may refuse it.
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def as_captured(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without key/value caches and without torch's own export warnings.

    Nor with the fused encoder layers of ``nn.TransformerEncoder``, which torch does not export and
    which give zeros where a padding mask is: the graph has what the layers are in training.
    """
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caches = [(c, c.use_cache) for c in configs.values() if getattr(c, "use_cache", False)]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config, _ in caches:
            config.use_cache = False
        with evaluation(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for config, flag in caches:
            config.use_cache = flag


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """The same random numbers in every block, and those of the caller untouched."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    with torch.random.fork_rng(devices):
        if used or torch.backends.mps.is_available():
            torch.manual_seed(seed)
        else:  # which would also seed a GPU, later, once it is in use
            torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def quick_products() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices on CPUs, where its results are as exact as float32.

    It does so only where torch may take bfloat16 inside (``torch.backends.fp32_precision``), and
    on CPUs without AMX it then takes float32 all the same, on AMD at twice the speed of MKL. Where
    the user chose a precision, that stays.
    """
    chosen = torch.backends.mkldnn.matmul.fp32_precision != "none"  # type: ignore[attr-defined]
    with contextlib.nullcontext() if chosen or not _exact() else _allowed():
        yield


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@functools.cache
def _exact() -> bool:
    """Whether oneDNN's products are those of float32 when it may take bfloat16."""
    generator = torch.Generator().manual_seed(0)
    # The caller may have other defaults.
    a, b = torch.randn(2, 256, 256, generator=generator, device="cpu", dtype=torch.float32)
    with _allowed(), torch.autocast("cpu", enabled=False):
        found = a @ b
    return float((found - a.double() @ b.double()).abs().max()) < 1e-4  # bfloat16: 0.2


@contextlib.contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Keep one of torch's loggers silent: it shouts about what is caught and said better."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def unprinted() -> Iterator[None]:
    """Keep ``torch.export`` from printing its whole graph where it ends in an error."""
    silent = contextlib.redirect_stderr(io.StringIO())
    with unlogged("torch.fx.experimental.symbolic_shapes"), silent:
        yield
