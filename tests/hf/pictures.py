"""Tiny models that read pictures beside text, each with inputs of both and of text alone."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.zoo import disturb

PICTURE = 60  # the token in whose place a piece of a picture stands
Inputs = dict[str, torch.Tensor]
TEXT: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 80,
    "num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
TOKENS = {"image_token_id": PICTURE, "video_token_id": 61}


def of_pieces(count: int) -> torch.Tensor:
    """Two rows of token ids, ``count`` of them in a row pieces of a picture."""
    ids = torch.randint(3, PICTURE, (2, count + 7), generator=torch.Generator().manual_seed(1))
    ids[:, 2 : 2 + count] = PICTURE
    return ids


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def disturbed(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    disturb(model)
    return model


def seen_whole() -> tuple[Any, Inputs]:
    """Gemma 3: the pieces of a picture see one another, and text what came before it."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    text = transformers.Gemma3TextConfig(**TEXT, head_dim=8, query_pre_attn_scalar=8)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=PICTURE
    )
    ids = of_pieces(4)
    given = {"pixel_values": pixels(2, 3, 16, 16), "token_type_ids": (ids == PICTURE).long()}
    return disturbed(transformers.Gemma3ForConditionalGeneration, config), {
        "input_ids": ids, **given
    }  # fmt: skip


def of_any_size() -> tuple[Any, Inputs]:
    """Qwen2-VL: numbers of rows and columns are read out of an input."""
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 4, "mlp_ratio": 2,
        "patch_size": 4, "temporal_patch_size": 2,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = transformers.Qwen2VLTextConfig(**TEXT, rope_parameters=rope)
    config = transformers.Qwen2VLConfig(
        text_config=text.to_dict(), vision_config=vision, vision_start_token_id=62, **TOKENS
    )
    ids = of_pieces(4)
    given = {
        "pixel_values": pixels(2 * 16, 3 * 2 * 16),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (ids == PICTURE).long(),
    }
    return disturbed(transformers.Qwen2VLForConditionalGeneration, config), {
        "input_ids": ids, **given
    }  # fmt: skip


def text_of(inputs: Inputs) -> Inputs:
    """The same rows without pictures."""
    ids = inputs["input_ids"].clone()
    ids[ids == PICTURE] = 5
    kinds = {name: torch.zeros_like(ids) for name in inputs if name.endswith("token_type_ids")}
    return {"input_ids": ids, **kinds}
