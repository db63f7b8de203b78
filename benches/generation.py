"""Greedy generation of a fixed number of tokens with a key/value cache."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.hf.quiet import quiet


@torch.no_grad()
def generate(model: Any, ids: torch.Tensor, new: int) -> torch.Tensor:
    """The tokens in and ``new`` more of each row; the end of text is not taken."""
    with quiet():
        written: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
    assert written.shape == (ids.shape[0], ids.shape[1] + new)
    return written
