"""Peak memory of one thing; each of these runs in a process of its own. Linux only."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from benches import naive, peer
from benches.models import GIGABYTE, MODELS, QUARTER, THIN, filled, llama, thinned
from benches.slicing import sliced, slices
from fxprune.importance import by_name, estimate
from fxprune.measure import memory
from fxprune.stream.forecast import forecast

DEEP = {**GIGABYTE, "num_hidden_layers": 24}
SHAPES = {"2.9 GB": DEEP, "1.2 GB": GIGABYTE, "0.25 GB": QUARTER, "thin": THIN}
KEPT = 0.8


class Anonymous:
    """The most memory of this process that no file backs, above what there was.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._before = _anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, (_anonymous()) - self._before)

    def __enter__(self) -> Anonymous:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("RssAnon:"))


def rewriting(shape: str, kinds: list[str], how: str) -> dict[str, float]:
    """Peak of removing a fifth of the units of some kinds, the original included.

    Args:
        shape: of :data:`SHAPES`.
        kinds: of groups.
        how: ``copy`` or ``consume`` (:func:`fxprune.rewrite`), ``slicing`` (bare ``index_select``).

    Returns:
        Bytes of the ``weights``, of the ``kept`` ones and at the ``peak``.
    """
    with torch.device("meta"):
        fxprune.trace(llama(SHAPES[shape]))  # the compiler's own memory comes first
    model = filled(SHAPES[shape])
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    plan = thinned(graph, dict.fromkeys(kinds, KEPT))
    weights = _bytes(model)
    planned = slices(traced, plan)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: fxprune.rewrite(traced, plan),
        "consume": lambda: fxprune.rewrite(traced, plan, consume=True),
        "slicing": lambda: sliced(planned),
    }
    settle()
    before = memory.resident()
    _, grown = memory.peak(torch.device("cpu"), calls[how], before)
    assert grown is not None
    return {"weights": weights, "kept": 4 * plan.parameters_after, "peak": weights + grown}


def halving(name: str, layers: int, width: int, how: str) -> dict[str, float]:
    """Peak of removing half of the inner units of every layer, the original included.

    Args:
        name: of :data:`benches.models.MODELS`.
        layers: how many.
        width: of each.
        how: ``copy`` or ``consume`` (:func:`fxprune.rewrite`), or ``Torch-Pruning``, in place.

    Returns:
        As :func:`rewriting`; both tools keep the same number of weights.
    """
    made = MODELS[name](layers, width)
    weights = _bytes(made[0])
    traced, plan = peer.half(made)
    found = peer.dependencies(made) if how == peer.PEER else None
    calls: dict[str, Callable[[], nn.Module]] = {
        "copy": lambda: fxprune.rewrite(traced, plan),
        "consume": lambda: fxprune.rewrite(traced, plan, consume=True),
        peer.PEER: lambda: peer.halve(found),
    }
    settle()
    before = memory.resident()
    small, grown = memory.peak(torch.device("cpu"), calls[how], before)
    assert grown is not None
    assert _bytes(small) == 4 * plan.parameters_after
    return {"weights": weights, "kept": _bytes(small), "peak": weights + grown}


def importance(shape: str, criterion: str, how: str, rows: int, length: int) -> dict[str, float]:
    """Peak of scoring MLP units and heads, above the weights.

    Args:
        shape: of :data:`SHAPES`.
        criterion: its name.
        how: ``fxprune``; ``naive``, see :mod:`benches.naive`; or ``activations``: what forward and
            backward pass take at most where no parameter requires a gradient and the embedded input
            does. They grow with the tokens and not with the method.
        rows: of calibration data.
        length: tokens in each.

    Returns:
        Bytes of the ``weights``, and the ``growth`` at the peak.
    """
    with torch.device("meta"):
        graph = fxprune.discover(fxprune.trace(llama(SHAPES[shape])))
    model = filled(SHAPES[shape])
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(0, SHAPES[shape]["vocab_size"], (rows, length))
    asked = by_name(criterion)
    calls: dict[str, Callable[[torch.Tensor], object]] = {
        "fxprune": lambda data: estimate(model, graph, asked, data, kinds=naive.KINDS),
        "naive": lambda data: naive.scores(model, criterion, data),
        "activations": lambda data: _activations(model, data, naive.by_sample(criterion)),
    }
    calls[how](ids[:1, :8])
    settle()
    before = memory.resident()
    _, growth = memory.peak(torch.device("cpu"), lambda: calls[how](ids), before)
    assert growth is not None
    return {"weights": _bytes(model), "growth": growth}


def _saved(shape: str, folder: str | Path) -> float:
    """A checkpoint of random weights; their bytes."""
    model = filled(SHAPES[shape])
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder, max_shard_size="500MB")
    return _bytes(model)


def pieces(shape: str, criterion: str, how: str, rows: int, length: int) -> dict[str, float]:
    """Peak and seconds of scoring a checkpoint, what the weights take included.

    Args:
        shape: of :data:`SHAPES`.
        criterion: its name.
        how: ``memory``, or ``pieces``.
        rows: of calibration data.
        length: tokens in each.

    Returns:
        Bytes of the ``weights`` and at the ``peak``, and CPU ``seconds``, reading included;
        ``first`` and ``last`` scores, to compare.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = _saved(shape, folder)
        with torch.device("meta"):
            twin = llama(SHAPES[shape])
            graph = fxprune.discover(fxprune.trace(twin))
        ids = torch.randint(0, SHAPES[shape]["vocab_size"], (rows, length))
        seconds = [0.0]

        def call() -> fxprune.Scores:
            start = time.process_time()
            source = fxprune.Weights(folder) if how == "pieces" else None
            loaded = twin if source else type(twin).from_pretrained(folder, dtype=torch.float32)
            if source is None:  # what is mapped from the file is counted, once it was read
                for parameter in loaded.parameters():
                    parameter.data = parameter.data.clone()
            found = estimate(
                loaded, graph, by_name(criterion), ids, batch_size=2, kinds=naive.KINDS,
                stream=source,
            )  # fmt: skip
            seconds[0] = time.process_time() - start
            return found

        settle()
        before = memory.resident()
        scores, peak = memory.peak(torch.device("cpu"), call, before)
    assert peak is not None
    sums = [float(each.double().sum()) for each in scores.values()]
    return {
        "weights": weights, "peak": peak, "seconds": seconds[0],
        "first": sums[0], "last": sums[-1],
    }  # fmt: skip


def pruning(shape: str, criterion: str, how: str, rows: int, length: int) -> dict[str, Any]:
    """Pruning a checkpoint from end to end: score, 20 %, least squares, proof, save.

    Args:
        shape: of :data:`SHAPES`.
        criterion: its name.
        how: ``memory``, or ``pieces``.
        rows: of calibration data.
        length: tokens in each.

    Returns:
        Bytes of the ``weights``, of the stated ``activations``, and of anonymous memory at the
        ``peak``, above what there was; CPU ``seconds`` of all, and of compensation; ``digest`` of
        the weights that are saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        dense, out = Path(folder, "dense"), Path(folder, "out")
        weights = _saved(shape, dense)
        with torch.device("meta"):
            graph = fxprune.discover(fxprune.trace(llama(SHAPES[shape])))
        ids = torch.randint(0, SHAPES[shape]["vocab_size"], (rows, length))
        config = fxprune.PruneConfig(criterion=criterion, batch_size=2, stream=how == "pieces")
        told = forecast(graph, config, by_name(criterion).needs, ids, ids)
        settle()
        with Anonymous() as seen:
            start = time.process_time()
            result = fxprune.prune(
                dense, config=config, calibration=ids, state=Path(folder, "state")
            )
            result.save(out)
            seconds = time.process_time() - start
        digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert result.report is not None
    assert result.compensation is not None
    return {
        "weights": weights, "peak": seen.peak, "seconds": seconds, "digest": digest,
        "compensation": result.compensation.seconds,
        "activations": max(stage.activations + stage.stream for stage in told.stages),
    }  # fmt: skip


def inspect(config: str) -> dict[str, float]:
    """Seconds and peak of ``fxprune inspect config.json``, which loads no weights."""
    from fxprune.cli.app import main

    sys.argv = ["fxprune", "inspect", config]
    start = time.perf_counter()

    def call() -> None:
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise

    _, growth = memory.peak(torch.device("cpu"), call, 0)
    assert growth is not None
    return {"seconds": time.perf_counter() - start, "peak": growth}


def _activations(model: nn.Module, ids: torch.Tensor, apart: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for part in ids.split(1 if apart else len(ids)):
        embedded = model.model.embed_tokens(part).requires_grad_()
        model(inputs_embeds=embedded, labels=part, use_cache=False).loss.backward()


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def settle() -> None:
    """Give freed memory back, as what is taken later would else go unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
