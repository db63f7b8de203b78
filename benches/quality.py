"""The default of ``fxprune prune`` against other ways to prune, and the best recipes of peers.

``python -m benches.quality CALIBRATION EVALUATION ... --out FOLDER`` prunes SmolLM2-135M to
105,747,264 parameters (or to each of ``--parameters``) in every way below, on three draws of the
calibration text, and measures perplexity in 128 windows of 128 tokens and 32 of 1024 of each text.
Nothing is retrained. It is ``fxprune compare`` with a list of configurations: a run that was ended
goes on, and results.md has ratios to the first way with their standard errors.
"""

from __future__ import annotations

import argparse
from typing import Any

from fxprune.cli.compare import comparison
from fxprune.cli.compare.data import read
from fxprune.config import PruneConfig
from fxprune.select.budget import Budget

WINDOWS = {128: 128, 1024: 32}
UNIFORM = {"*.mlp:units": 523 / 1536, "*:heads": 1 / 3}
FEW = {"calibration_samples": 10, "calibration_lengths": (128,), "compensation_samples": 10}
SQUARES = {"compensation": "least-squares"}
WAYS: dict[str, dict[str, Any]] = {
    # The user's text alone, as it was by default until 2026-11-29 (with one weight for all kinds).
    "text": {"written_samples": 0, "normalise": "none", **SQUARES},
    "default": {},
    "mlp": {"kinds": ("mlp",)},
    "one": {"written_samples": 128, **SQUARES},  # for each crop, as by default until 2026-11-30
    "three": SQUARES,  # as by default at 105.7 M until 2026-11-30
    "measured": {"search": "measured"},
    "blockwise": {"compensation": "blockwise"},
    # The best peer's: ranges of weights times norms of inputs, the same width in all layers.
    "peer": {
        "kinds": ("mlp",),
        "criterion": "peak-to-peak",
        "ranking": "uniform",
        "compensation": None,
        **FEW,
    },
    # LLM-Pruner's: one of three KV groups and 523 of 1536 MLP units from each of layers 4 to 27,
    # which is 105,747,264 parameters, by second-order Taylor.
    "llm-pruner": {
        "kinds": ("mlp", "attention"),
        "criterion": "taylor2",
        "overrides": UNIFORM,
        "keep_first": 4,
        "keep_last": 2,
        "compensation": None,
        **FEW,
    },
    "few": {"written_samples": 384, **FEW},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.quality", description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--parameters", nargs="+", type=int, default=[105_747_264])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    done = comparison.run(
        "smollm2",
        [
            PruneConfig(budget=Budget(params=parameters), seed=seed, **WAYS[way])
            for way in options.ways
            for seed in range(options.draws)
            for parameters in options.parameters
        ],
        read(options.calibration, options.evaluations),
        options.out,
        lengths=WINDOWS,
        dtype="float32",
    )
    print((done.folder / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
