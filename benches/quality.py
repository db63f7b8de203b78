"""How far the default of ``fxprune prune`` is ahead of LLM-Pruner's uniform second-order Taylor.

``python -m benches.quality CALIBRATION EVALUATION ...`` prunes SmolLM2-135M to 105,747,264
parameters both ways, on draws of the same text, and prints a line of JSON for each: perplexity at
128 and 1024 tokens, and seconds. The reference sees 10 x 128 tokens, takes one of three KV groups
and 523 of 1536 MLP units from each of the layers 4 to 27, and is not compensated; ours sees as
many tokens as 128 x 128, half of them in crops of 1024. No retraining. With ``--methods
published-fold`` the reference with the query heads added to the KV heads that LLM-Pruner's code
adds them to (0, 3 and 6 to KV head 0).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import torch
from torch import nn

import fxprune
from benches import tables
from fxprune.data import text
from fxprune.data.draw import mixed_crops
from fxprune.groups.group import Group
from fxprune.hf.open.models import load_model

PARAMETERS, KINDS = 105_747_264, ("mlp", "attention")
UNIFORM = {"*.mlp:units": 523 / 1536, "*:heads": 1 / 3}
WINDOWS = {128: 48, 1024: 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--methods", nargs="+", default=["reference", "obs"])
    parser.add_argument("--scope", choices=("pruned", "all"), default="all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load_model("smollm2", dtype=getattr(torch, options.dtype))
    model, tokenizer = loaded.model, loaded.tokenizer
    assert tokenizer is not None
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    texts = {path: text.read(path) for path in options.evaluations}
    columns = tables.columns(tokenizer, texts, WINDOWS)

    def show(name: str, module: nn.Module, **facts: Any) -> None:
        line = {"name": name, **facts, **tables.measured(module, columns)}
        print(json.dumps(line), flush=True)

    show("dense", model)
    corpus = text.read(options.calibration)
    for seed in options.draws:
        many = mixed_crops(tokenizer, corpus, 128, (128, 1024), seed)
        few = text.crops(tokenizer, corpus, 10, 128, seed)
        scores = fxprune.estimate(model, graph, fxprune.Taylor(order=2), few, kinds=KINDS)
        if "reference" in options.methods:
            show("reference", fxprune.rewrite(traced, uniform(graph, scores)), draw=seed)
        if "published-fold" in options.methods:
            folded = fxprune.Scores(scores | published_fold(model, graph, few))
            plan = uniform(graph, folded)
            other = sum(plan.kept[g] != uniform(graph, scores).kept[g] for g in heads(plan))
            show("published fold", fxprune.rewrite(traced, plan), draw=seed, other_choices=other)
        if "obs" not in options.methods:
            continue
        start = time.perf_counter()
        scores = fxprune.estimate(model, graph, fxprune.OBS(), many, kinds=KINDS)
        estimated = time.perf_counter() - start
        plan = fxprune.select(
            graph,
            scores,
            budget=fxprune.Budget(params=PARAMETERS),
            ranking="global",
            normalise="none",  # heads count no more than MLP units, as the table has it
        )
        small = fxprune.rewrite(traced, plan)
        done = fxprune.compensate(
            traced, small, plan, many, scope=options.scope, damping=0.5, batch_size=None
        )
        show(
            f"obs, least squares, scope {options.scope}",
            small,
            draw=seed,
            parameters=plan.parameters_after,
            seconds=round(estimated + done.seconds),
        )


def uniform(graph: fxprune.DependencyGraph, scores: fxprune.Scores) -> fxprune.Plan:
    """One of three KV groups and 523 of 1536 MLP units from each of the layers 4 to 27."""
    plan = fxprune.select(
        graph,
        scores,
        budget=fxprune.Budget(units=0.1),
        overrides=UNIFORM,
        keep_first=4,
        keep_last=2,
    )
    assert plan.parameters_after == PARAMETERS
    return plan


def heads(plan: fxprune.Plan) -> list[str]:
    return [name for name in plan.kept if name.endswith(":heads")]


def published_fold(
    model: nn.Module, graph: fxprune.DependencyGraph, ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Scores of KV heads with query head q added to KV head ``q % heads``, as ``view(-1, kv)``.

    From the scores of single query heads: those of the query groups (heads that share their place
    within a KV group) and KV groups do not tell them apart, so the gradients are taken here.
    """
    found = {}
    sums: dict[str, torch.Tensor] = {}
    for row in ids:
        model.zero_grad()
        model(input_ids=row[None], labels=row[None]).loss.backward()
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "o_proj.weight", "k_proj.weight", "v_proj.weight")):
                assert parameter.grad is not None
                element = (parameter.detach().float() * parameter.grad.float()).square()
                rows = element.sum(0 if "o_proj" in name else 1).view(-1, 64).sum(1)
                sums[name] = sums.get(name, 0) + rows / len(ids)
    model.zero_grad()
    groups: list[Group] = [g for g in graph.groups if g.kind == "attention"]
    for group in groups:
        place = group.name.removesuffix(":heads")
        own = sum(sums[f"{place}.{p}_proj.weight"] for p in "kv")
        query = sum(sums[f"{place}.{p}_proj.weight"] for p in "qo")
        assert isinstance(query, torch.Tensor)
        found[group.name] = own + query.view(-1, group.size).sum(0)
    return found


if __name__ == "__main__":
    main()
