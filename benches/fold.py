"""Which KV head of LLM-Pruner's loses the query heads that it is scored with.

``python -m benches.fold CALIBRATION EVALUATION ...`` prunes SmolLM2-135M to 105,747,264 parameters
by LLM-Pruner's uniform second-order Taylor on draws of the same text, and prints a line of JSON for
each: perplexity at 128 and 1024 tokens. It sees 10 x 128 tokens, takes one of three KV groups and
523 of 1536 MLP units from each of the layers 4 to 27, and is not compensated: ``reference``, which
is the way ``llm-pruner`` of :mod:`benches.quality`; and ``published fold``, where the query heads
are added to the KV heads that LLM-Pruner's code adds them to (0, 3 and 6 to KV head 0).
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import torch
from torch import nn

import fxprune
from benches import tables
from benches.quality import UNIFORM, WINDOWS
from fxprune.data import text
from fxprune.groups.group import Group
from fxprune.hf.open.models import load_model

PARAMETERS, KINDS = 105_747_264, ("mlp", "attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load_model("smollm2", dtype=torch.float32)
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
        few = text.crops(tokenizer, corpus, 10, 128, seed)
        scores = fxprune.estimate(model, graph, fxprune.Taylor(order=2), few, kinds=KINDS)
        plan = uniform(graph, scores)
        show("reference", fxprune.rewrite(traced, plan), draw=seed)
        folded = uniform(graph, fxprune.Scores(scores | published_fold(model, graph, few)))
        other = sum(folded.kept[name] != plan.kept[name] for name in plan.kept if is_heads(name))
        show("published fold", fxprune.rewrite(traced, folded), draw=seed, other_choices=other)


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


def is_heads(name: str) -> bool:
    return name.endswith(":heads")


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
