"""Methods of recovery side by side on SmolLM2-135M, pruned in width and in depth.

``python -m benches.recovery TRAINING EVALUATION ... --out RESULTS.jsonl`` prunes 20 % of the
parameters by Taylor importance, and removes 6 blocks by perplexity, each calibrated on 10 crops of
128 tokens of TRAINING; ``--prunings half half-text`` leaves half of the parameters, as the ways
``one`` and ``text`` of :mod:`benches.quality` do. Every method then trains on the same 150 steps of
8 x 128 tokens of TRAINING, of which a twentieth of the documents validates. A line of JSON
each: perplexity at 128 and 1024 tokens, the course of the validation loss, seconds per step. Lines
that are in RESULTS already are not measured again, and a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fxprune
from benches import tables
from benches.quality import WAYS
from fxprune import Budget, Depth, PruneConfig
from fxprune.data import text
from fxprune.hf.open.models import load_model
from fxprune.recover.methods import Distillation, FullTraining, LoRA
from fxprune.recover.recover import recover
from fxprune.recover.settings import Training

PRUNINGS = ("width", "depth")
HALF = {"half": "one", "half-text": "text"}  # the ways of benches.quality
RATES = {"LoRA": 3e-3, "full": 3e-4, "scratch": 1e-3}
METHODS = ("LoRA", "full", "LoRA + distillation", "full + distillation", "scratch")


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")
    texts = [text.read(path) for path in options.evaluations]
    loaded = load_model("smollm2", dtype=torch.float32)
    assert loaded.tokenizer is not None
    most = dict(zip((128, 1024), options.windows, strict=True))
    columns = tables.columns(loaded.tokenizer, {each.name: each for each in texts}, most)
    done = {key(line) for line in tables.lines(options.out)}
    corpus = text.read(options.training)
    for asked in jobs(options):
        if key(asked) in done:
            continue
        done.add(key(asked))
        small = pruned(asked["pruning"], loaded, corpus, options.out.with_suffix(""))
        facts = {"parameters": count(small)}
        # A run that was killed goes on from here.
        run = options.out.with_suffix("") / "-".join(str(each) for each in asked.values())
        if asked["method"] != "none":
            facts = trained(small, asked, options.precision, loaded, corpus, texts, run)
        tables.keep(options.out, {**asked, **tables.measured(small, columns), **facts})
        shutil.rmtree(run, ignore_errors=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prunings", nargs="+", choices=(*PRUNINGS, *HALF), default=PRUNINGS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, help="Learning rate, instead of the method's.")
    parser.add_argument("--precision", default="auto", help="As in fxprune.recover.Training.")
    parser.add_argument("--weight", type=float, default=0.5, help="Of the teacher.")
    parser.add_argument("--windows", type=int, nargs=2, default=[24, 3])
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What to measure, one after the other."""
    for pruning in options.prunings:
        yield {"pruning": pruning, "method": "none", "seed": 0}
        for seed in options.seeds:
            for method in options.methods:
                asked = {"pruning": pruning, "method": method, "seed": seed, "steps": options.steps}
                asked["rate"] = options.rate or RATES[method.partition(" ")[0]]
                if "+" in method:
                    asked["weight"] = options.weight
                yield asked


def trained(
    small: Any,
    asked: dict[str, Any],
    precision: str,
    loaded: Any,
    corpus: text.Text,
    texts: list[text.Text],
    run: Path,
) -> dict[str, Any]:
    """Train in place; the course of the losses, and the time of a step."""
    found = recover(
        small,
        corpus,
        chosen(asked["method"], loaded.model, asked.get("weight", 0.0)),
        training=Training(
            steps=asked["steps"],
            batch_size=8,
            micro_batch_size=8,
            length=128,
            learning_rate=asked["rate"],
            evaluate_every=25,
            precision=precision,
            seed=asked["seed"],
        ),
        tokenizer=loaded.tokenizer,
        evaluation=texts,
        out=run,
        progress=True,
    )
    history = found.history
    return {
        "trained": found.trained,
        "validation": [(each.step, round(each.loss, 4)) for each in history.evaluations],
        "loss": [round(each.loss, 3) for each in history.steps],
        "step": found.step,
        "seconds": round(statistics.median(each.seconds for each in history.steps), 2),
    }


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    names = ("pruning", "method", "seed", "steps", "rate", "weight")
    return tuple(line.get(name) for name in names)


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pruned(pruning: str, loaded: Any, corpus: text.Text, folder: Path) -> Any:
    """SmolLM2 without a fifth of its parameters, 6 of its 30 blocks, or half of its parameters."""
    if pruning in HALF:
        kept = folder / pruning
        if not (kept / "config.json").exists():
            config = PruneConfig(budget=Budget(params=67_257_504), **WAYS[HALF[pruning]])
            fxprune.prune(
                loaded.model, config=config, calibration=corpus, tokenizer=loaded.tokenizer,
                verify=False, progress=True,
            ).save(kept)  # fmt: skip
        return fxprune.load(kept)
    crops = text.crops(loaded.tokenizer, corpus, 10, 128, 0)
    if pruning == "width":
        result = fxprune.prune(
            loaded.model, pruning_ratio=0.2, criterion="taylor", calibration=crops, verify=False,
            ranking="local", compensation=None,
        )  # fmt: skip
    else:
        result = fxprune.prune(
            loaded.model, depth=Depth(remove=6), calibration=crops, verify=False, compensation=None
        )
    return fxprune.shrink(loaded.model, result.plan, result.graph_module)


def chosen(method: str, teacher: Any, weight: float) -> LoRA | FullTraining:
    distilled = Distillation(teacher, weight=weight) if "distillation" in method else None
    if method.startswith("LoRA"):
        return LoRA(teacher=distilled)
    return FullTraining(teacher=distilled, reinitialise=method == "scratch")


if __name__ == "__main__":
    main()
