"""llama.cpp itself, through the package xllamacpp: what it continues a file with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def server(file: Path, context: int = 64) -> Any:
    """llama.cpp with a file, exact: one thread, keys and values in float32."""
    engine = pytest.importorskip("xllamacpp")
    parameters = engine.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup, parameters.fit_params, parameters.verbosity = False, False, -1
    parameters.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    return engine.Server(parameters)


def continued(file: Path, ids: list[int], count: int = 8, top: int = 20) -> list[dict[int, float]]:
    """What llama.cpp continues with: for each token the log-probabilities of the first ones."""
    asked = {
        "prompt": ids, "n_predict": count, "temperature": 0, "n_probs": top, "cache_prompt": False,
        "ignore_eos": True, "post_sampling_probs": False,
    }  # fmt: skip
    answer = server(file, len(ids) + count + 8).handle_completions(asked)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    content = answer["choices"][0]["logprobs"]["content"]
    return [{each["id"]: each["logprob"] for each in place["top_logprobs"]} for place in content]


@torch.no_grad()
def compare(
    model: Any,
    file: Path,
    ids: list[int],
    count: int = 8,
    within: float = 0.02,
    ignored: int | None = None,
) -> float:
    """The largest gap of log-probabilities along the continuation, which must be the model's own.

    Ties and what differs by less than ``within`` may be continued otherwise. The token ``ignored``,
    which ends a text, is not taken.
    """
    places, gap, given = continued(file, ids, count), 0.0, list(ids)
    assert len(places) == count, f"{len(places)} of {count} tokens"
    for place in places:
        output = model(input_ids=torch.tensor([given]))
        logits = output.logits if hasattr(output, "logits") else output[0]
        own = logits[0, -1].log_softmax(-1)
        gap = max(gap, *(abs(float(own[token]) - value) for token, value in place.items()))
        if ignored is not None:
            own[ignored] = place[ignored] = -torch.inf
        first = max(place, key=lambda token: place[token])
        assert float(own.max() - own[first]) <= within, (place, int(own.argmax()))
        given.append(first)
    return gap
