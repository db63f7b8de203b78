"""One command for a GPU machine: sizes, speed and memory of LLaMA-7B's shapes, pruned as published.

``python -m benches.gpu --out gpu.json``. Random weights in bfloat16, made on the GPU; no network.
Sizes as in LLM-Pruner's table 3, generation as in Shortened LLaMA (12 tokens in, 128 out), both
beside the ideal; rewriting, Taylor scores and a step of recovery with LoRA, with their peaks of
memory. Ends within ``--minutes``: what does not fit in is skipped and says so. The file is written
after every part and is one of those that ``python -m benches.report`` takes.
``--device cpu --shape tiny`` runs all of it in seconds, to see that it works.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from benches.allocator import memory_estimate
from benches.published import published_macs
from benches.record import Record
from benches.session import Session
from benches.slicing import sliced, slices
from benches.turns import in_turns
from fxprune.costs import facts
from fxprune.measure import memory, report
from fxprune.measure.speed import generated
from fxprune.plan import Plan

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Attributes:
        config: of the Llama.
        blocks: by name, the fraction of the units that goes, and how many layers at the start and
            at the end stay whole.
        depth: numbers of blocks removed.
        batches: of generation.
        new: tokens generated.
        calibration: rows and tokens for Taylor scores.
        training: rows and tokens of a step of recovery.
        steps: of recovery, of which the first does not count.
        parameters: that the variants must have, where published.
        needs: seconds that a part takes at most, about.
    """

    config: dict[str, int]
    blocks: dict[str, tuple[float, int, int]]
    depth: tuple[int, ...]
    batches: tuple[int, ...]
    new: int
    calibration: tuple[int, int]
    training: tuple[int, int]
    steps: int
    parameters: dict[str, int] = field(default_factory=dict)
    needs: float = 0.0


SHAPES = {
    "llama-7b": Shape(
        config={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
        blocks={"block 20 %": (0.25, 4, 2), "block 50 %": (0.6, 3, 1)},
        depth=(6, 9, 11),
        batches=(1, 8, 32, 64, 128),
        new=128,
        calibration=(10, 128),
        training=(8, 128),
        steps=6,
        parameters={
            "dense": 6_738_415_616,
            "block 20 %": 5_422_977_024,
            "block 50 %": 3_350_188_032,
            "depth 6": 5_524_115_456,
            "depth 9": 4_916_965_376,
            "depth 11": 4_512_198_656,
        },
        needs=40.0,
    ),
    "tiny": Shape(
        config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "vocab_size": 96,
        },
        blocks={"block 20 %": (0.25, 2, 1)},
        depth=(1,),
        batches=(1, 3),
        new=2,
        calibration=(3, 9),
        training=(2, 9),
        steps=2,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --device cpu --shape tiny shows what would run")
    warnings.simplefilter("ignore")
    session = Session(
        options.out,
        options.minutes,
        f"{options.shape} on a {device.type} device, bfloat16",
        "quick" if options.shape == "tiny" else "full",
        f"python -m benches.gpu --shape {options.shape} --minutes {options.minutes:g}"
        " --out gpu.json",
    )
    Parts(SHAPES[options.shape], device, session).run()
    session.show()
    if session.failed:
        sys.exit(f"failed: {', '.join(session.failed)}")


class Parts:
    """The parts and the models that they share."""

    def __init__(self, shape: Shape, device: torch.device, session: Session) -> None:
        self._shape, self._device, self._session = shape, device, session
        self._needs = shape.needs
        self.plans: dict[str, Plan] = {}
        self.models: dict[str, Any] = {}
        self.macs: dict[str, int | None] = {}

    def run(self) -> None:
        """All parts, those that others need first."""
        part, needs = self._session.part, self._needs
        part("sizes", self.sizes, 2 * needs)
        if not self.plans:
            return
        part("rewriting", self.rewriting, needs)
        part("models", self.shrink, needs)
        part("forward", self.forward, needs / 2)
        part("taylor", self.taylor, needs)
        part("recovery", self.recovery, needs)
        part("generation", self.generation)

    def sizes(self, record: Record) -> None:
        """Parameters, MACs and memory of every variant, and the model itself."""
        dense, seconds = timed(lambda: build(self._shape.config, self._device))
        self.models["dense"] = dense
        record.row("The dense model", {"making it, s": seconds, "weights, GiB": size(dense) / GIB})
        self.traced, seconds = timed(lambda: fxprune.trace(dense))
        self.graph, more = timed(lambda: fxprune.discover(self.traced))
        record.row("From module to groups", {"trace, s": seconds, "discover, s": more})
        self.plans = dict(variants(self.graph, self._shape))
        for name, plan in self.plans.items():
            graph = fxprune.discover(fxprune.bypass(self.traced, plan.removed))
            counts = plan.kept_counts(graph)
            found = facts(graph, counts)
            self.macs[name] = found["macs"]
            assert found["parameters"] == plan.parameters_after
            assert self._shape.parameters.get(name, plan.parameters_after) == plan.parameters_after
            bare = memory_estimate(graph, counts, torch.bfloat16, context=None)
            record.row(
                "Sizes from the graph alone: MACs of 64 tokens; memory in two bytes a number,"
                " without and with the rotary tables of LLM-Pruner's table 3",
                {
                    "model": name,
                    "parameters": plan.parameters_after,
                    "MACs, matrix products": found["macs"],
                    "MACs as published": published_macs(graph, counts),
                    "memory, MiB": bare / 2**20,
                    "memory as published, MiB": memory_estimate(graph, counts) / 2**20,
                },
            )
        if self._device.type == "cuda":
            held = torch.cuda.memory_allocated(self._device) / 2**20
            record.row("Memory that torch says is allocated", {"dense, MiB": held})

    def rewriting(self, record: Record) -> None:
        """Seconds and peak of a rewrite against bare slicing."""
        for name in self._shape.blocks:
            plan = self.plans[name]
            planned = slices(self.traced, plan)
            calls: dict[str, Callable[[], Any]] = {
                "rewrite": lambda plan=plan: fxprune.rewrite(self.traced, plan),
                "bare slicing": lambda planned=planned: sliced(planned),
            }
            times = in_turns(calls, 3 if self._needs else 1)
            small = times.results["rewrite"]
            assert report.parameters(small) == plan.parameters_after
            ratio = times.ratio("rewrite", "bare slicing")
            seconds = {each: times.median(each) for each in calls}
            del times, small
            for each, call in calls.items():
                peak = self._peak(call, self.models["dense"])
                record.row(
                    "Rewriting; peak with the original",
                    {
                        "model": name,
                        "how": each,
                        "s": seconds[each],
                        "x bare slicing": ratio if each == "rewrite" else 1.0,
                        "peak, GiB": peak / GIB,
                    },
                )

    def shrink(self, record: Record) -> None:
        """The variants as models that generate; all stay on the device."""
        dense = self.models["dense"]
        for name, plan in self.plans.items():
            if name == "dense":
                continue
            graph = fxprune.rewrite(self.traced, plan) if plan.kept else None
            small, seconds = timed(
                lambda plan=plan, graph=graph: fxprune.shrink(dense, plan, graph)
            )
            assert report.parameters(small) == plan.parameters_after
            record.row("shrink, outputs compared with the graph's", {"model": name, "s": seconds})
            self.models[name] = small
        for model in self.models.values():
            model.config.use_cache = True

    def forward(self, record: Record) -> None:
        """One pass over 64 tokens, in turns."""
        ids = self._ids(1, 64)
        calls = {name: report.forward(m, (), {"input_ids": ids}) for name, m in self.models.items()}
        times = in_turns(calls, 10 if self._needs else 2, warm_up=2)
        for name in calls:
            record.row(
                "A forward pass of 1 x 64 tokens",
                {
                    "model": name,
                    "ms": 1000 * times.median(name),
                    "speed-up": times.ratio("dense", name),
                    **self._ideal(name),
                },
            )

    def taylor(self, record: Record) -> None:
        """Scores of MLP units and heads of the dense model."""
        dense = self.models["dense"]
        ids = self._ids(*self._shape.calibration)
        for order in (1, 2):
            criterion = fxprune.Taylor(order=order)
            call = functools.partial(
                fxprune.estimate, dense, self.graph, criterion, kinds=("mlp", "attention")
            )
            call(ids[:1, :8])  # warms up
            found, seconds = timed(lambda call=call: call(ids))
            assert all(bool(scores.isfinite().all()) for scores in found.values())
            peak = self._peak(lambda call=call: call(ids), dense)
            record.row(
                f"Taylor scores of {ids.shape[0]} x {ids.shape[1]} tokens",
                {
                    "order": order,
                    "s": seconds,
                    "peak, GiB": peak / GIB,
                    "x weights": peak / size(dense),
                },
            )

    def recovery(self, record: Record) -> None:
        """A step with LoRA, dense against block 20 %; each on a copy of its own."""
        rows, length = self._shape.training
        for name in ("dense", next(iter(self._shape.blocks))):
            if name not in self.models:
                continue
            module = copy.deepcopy(self.models[name])
            data = self._ids(rows * self._shape.steps, length).cpu()
            trained: list[fxprune.Recovery] = []

            def call(module: Any = module, data: Any = data, to: Any = trained) -> None:
                to.append(self._recover(module, data))

            peak = self._peak(call, module)
            done = trained.pop()
            steps = [each.seconds for each in done.history.steps[1:]]
            losses = [each.loss for each in done.history.steps]
            assert len(losses) == self._shape.steps
            assert all(loss < 30 for loss in losses)  # NaN is not
            record.row(
                f"A step of recovery, LoRA of rank 8 on {rows} x {length} tokens",
                {
                    "model": name,
                    "trained": done.trained,
                    "s": statistics.median(steps),
                    "tokens/s": rows * length / statistics.median(steps),
                    "peak, GiB": peak / GIB,
                },
            )
            del module, done, call
            self._free()

    def _recover(self, module: nn.Module, data: torch.Tensor) -> fxprune.Recovery:
        rows, length = self._shape.training
        training = fxprune.Training(
            steps=self._shape.steps,
            batch_size=rows,
            micro_batch_size=rows,
            length=length,
            learning_rate=1e-4,
            evaluate_every=self._shape.steps,
        )
        return fxprune.recover(
            module,
            data,
            fxprune.LoRA(),
            training=training,
            validation=0.0,
            device="cpu" if self._device.type == "cpu" else None,
        )

    def generation(self, record: Record) -> None:
        """All models in turns, batch after batch, each with its share of the time."""
        batches = self._shape.batches
        for place, batch in enumerate(batches):
            left = self._session.left()
            self._batch(record, batch, left - left / (len(batches) - place))
            self._session.write()

    def _batch(self, record: Record, batch: int, until: float) -> None:
        """One batch, round after round until so many seconds of the session are left.

        The first round does not count: a GPU may plan attention anew for every length of the cache,
        which takes longer than all else (two thirds of a first run on an H100).
        """
        ids = self._ids(batch, 12)
        times: dict[str, list[float]] = {name: [] for name in self.models}
        peaks: dict[str, int] = {}
        for number in range(21 if self._needs else 2):
            spent = sum(max(seconds, default=0.0) for seconds in times.values())
            if number > 1 and self._session.left() - spent < until:
                break
            for name, model in self.models.items():
                if self._session.left() < max(times[name], default=self._needs / 4):
                    break
                seconds, peaks[name] = self._once(model, ids)
                if number:
                    times[name].append(seconds)
        self._told(record, batch, times, peaks)

    def _once(self, model: nn.Module, ids: torch.Tensor) -> tuple[float, int]:
        """Seconds and peak memory."""
        seconds = [0.0]

        def call() -> None:
            seconds[0] = timed(lambda: generated(model, ids, self._shape.new))[1]

        peak = self._peak(call, model)
        return seconds[0], peak

    def _told(
        self,
        record: Record,
        batch: int,
        times: Mapping[str, list[float]],
        peaks: Mapping[str, int],
    ) -> None:
        if skipped := [name for name, spent in times.items() if not spent]:
            record.note(f"generation: no time was left at batch {batch} for {', '.join(skipped)}")
        for name, spent in times.items():
            if not spent:
                continue
            seconds, dense = statistics.median(spent), times["dense"]
            record.row(
                f"Generation with a cache, 12 + {self._shape.new} tokens, in turns",
                {
                    "batch": batch,
                    "model": name,
                    "rounds": len(spent),
                    "s": seconds,
                    "tokens/s": batch * self._shape.new / seconds,
                    "speed-up": statistics.median(dense) / seconds if dense else None,
                    **self._ideal(name),
                    "peak, GiB": peaks[name] / GIB,
                },
            )

    def _ideal(self, name: str) -> dict[str, float | None]:
        """What the speed-up would be if time went with the MACs, or with the bytes of weights."""
        dense, macs = self.macs["dense"], self.macs[name]
        weights = size(self.models["dense"]) / size(self.models[name])
        return {
            "ideal by MACs": dense / macs if dense and macs else None,
            "ideal by bytes": weights,
        }

    def _peak(self, call: Callable[[], Any], model: nn.Module) -> int:
        """Bytes at the peak of a call: the weights of the model, and what is taken beside them.

        Other models that lie on the device do not count.
        """
        self._free()
        if self._device.type == "cuda":
            before = torch.cuda.memory_allocated(self._device)
            most = memory.peak(self._device, call, None)[1]
            assert most is not None
            return size(model) + most - before
        growth = memory.peak(self._device, call, memory.resident())[1]
        return size(model) + (growth or 0)

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _ids(self, rows: int, length: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        high = self._shape.config["vocab_size"]
        return torch.randint(0, high, (rows, length), generator=draw).to(self._device)


def build(config: dict[str, int], device: torch.device) -> LlamaForCausalLM:
    """A Llama of random weights in bfloat16, made on the device without a copy elsewhere."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            made = LlamaForCausalLM(LlamaConfig(**config, dtype="bfloat16", use_cache=False))
    finally:
        torch.set_default_dtype(before)
    return made.eval()


def variants(graph: fxprune.DependencyGraph, shape: Shape) -> Iterator[tuple[str, Plan]]:
    """The plans by name: LLM-Pruner's blocks, and whole blocks as in Shortened LLaMA."""
    yield "dense", Plan.of(graph, {})
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in graph.groups}
    for name, (units, first, last) in shape.blocks.items():
        budget = fxprune.Budget(units=units)
        yield name, fxprune.select(graph, scores, budget=budget, keep_first=first, keep_last=last)
    for count in shape.depth:
        chosen = fxprune.choose_depth(
            graph.traced, fxprune.Depth(remove=count), fxprune.Random(0)
        ).removed
        shorter = fxprune.discover(fxprune.bypass(graph.traced, chosen))
        yield f"depth {count}", Plan.of(shorter, {})


def size(model: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives and the seconds that it takes, until the device has finished."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    start = time.perf_counter()
    result = call()
    finish()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
