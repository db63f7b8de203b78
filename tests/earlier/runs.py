"""Ten runs whose scores and plans are recorded: ``python -m tests.earlier.runs FILE`` writes them.

A move of code changes none of them. Run it before and after on one machine, and the files are equal
to the last digit; ``test_runs.py`` holds them against what is committed, with room for other
machines' arithmetic.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from tests.hf import tiny
from tests.zoo import BY_NAME

COMMITTED = Path(__file__).with_name("runs.json")


def _llama() -> nn.Module:
    return tiny.llama(num_hidden_layers=3)


def _of_the_zoo(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = BY_NAME[name].make("eager")
        return model.eval()

    return make


def _tokens() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, tiny.VOCABULARY, (2, 16), generator=generator) for _ in range(3)]


# What was the default when they were recorded.
EARLIER: dict[str, Any] = {"ranking": "local", "compensation": None}

RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "magnitude": (_llama, {"criterion": fxprune.Magnitude(), "pruning_ratio": 0.3}),
    "taylor": (_llama, {"criterion": fxprune.Taylor(), "pruning_ratio": 0.25}),
    "flap": (_llama, {"criterion": fxprune.FLAP(), "pruning_ratio": 0.2, "ranking": "global"}),
    "wanda-sp": (_llama, {"criterion": fxprune.WandaSP(), "pruning_ratio": 0.2}),
    "obs": (
        _llama,
        {
            "criterion": fxprune.OBS(), "pruning_ratio": 0.2, "ranking": "global",
            "compensation": "least-squares",
        },
    ),
    "activation-norm": (_llama, {"criterion": fxprune.ActivationNorm(), "pruning_ratio": 0.2}),
    "depth": (
        _llama,
        {
            "depth": fxprune.Depth(remove=1, unit="block", keep_first=0, keep_last=0),
            "depth_criterion": fxprune.BlockInfluence(),
        },
    ),
    "gpt2": (_of_the_zoo("gpt2"), {"criterion": fxprune.Magnitude(), "pruning_ratio": 0.2}),
    "resnet": (
        _of_the_zoo("resnet"),
        {"criterion": fxprune.Magnitude(), "pruning_ratio": 0.3, "kinds": ("channel",)},
    ),
    "t5": (_of_the_zoo("t5"), {"criterion": fxprune.Random(seed=3), "pruning_ratio": 0.2}),
}  # fmt: skip


def recorded(name: str) -> dict[str, Any]:
    """What a run chose: scores, kept units, removed branches, parameters, and a digest of all."""
    make, options = RUNS[name]
    options = ({"compensation": None} if "depth" in options else EARLIER) | options
    model = make()
    example: Any = {}
    if name in BY_NAME:
        args, kwargs = BY_NAME[name].example()
        example = {"args": args, "kwargs": kwargs}
    data = [{"input_ids": ids} for ids in _tokens()] if make is _llama else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)
        result = fxprune.prune(model, calibration=data, **example, **options)
    plan = result.plan
    values = {group: scores.tolist() for group, scores in sorted((result.scores or {}).items())}
    small = result.graph_module
    digest = hashlib.sha256()
    for tensor_name, tensor in sorted(small.state_dict().items()):
        digest.update(tensor_name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "parameters": [plan.parameters_before, plan.parameters_after],
        "removed": list(plan.removed),
        "kept": {group: list(units) for group, units in plan.kept.items()},
        "scores": values,
        "digest": digest.hexdigest(),
    }


if __name__ == "__main__":
    found = {name: recorded(name) for name in RUNS}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
