"""Tiny configs of causal language models, made by rule from the default config of their type.

A field of the default config is made small by its name: what the name says (a hidden size, a number
of heads, of experts, of positions) decides the number. What the class counts for itself, a field
that is None where it is declared, is left to the class. Fields that no rule knows keep their value.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

VOCABULARY, HIDDEN, INNER, EXPERT_INNER = 128, 64, 96, 48
HEADS, KV_HEADS, HEAD_DIM, EXPERTS, CHOSEN = 4, 2, 16, 8, 2
POSITIONS, WINDOW, MOST_LAYERS, STATE = 128, 8, 4, 8

_COUNT_OF_LAYERS = re.compile(
    r"(.*_)?num_(hidden_)?layers|n_layers?|(.*_)?(en|de)coder_layers|num_(en|de)coder_layers"
    r"|num_layers_per_stack|depth|num_blocks|num_global_layers"
)
_NUMBERS: tuple[tuple[str, int], ...] = (
    (r"(decoder_|pronunciation_|shape_|audio_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"encoder_hash_byte_group_vocab|ngram_vocab_size_base", VOCABULARY),
    (r"codebook_size|num_centroids", VOCABULARY),
    (r"unpadded_vocab_size", VOCABULARY - 8),
    # sizes of hidden states
    (r"hidden_size(_global)?|d_model|n_embd|(.*_)?emb(ed)?_dim|embedding_dim|lru_width", HIDDEN),
    (r"(.*_)?embedding_size|word_embed_proj_dim|attention_hidden_size|latent_channels", HIDDEN),
    (r"(backbone_|out_)hidden_size|projector_(in|out)put_dim|vision_output_dim", HIDDEN),
    (r"adapter_(in|out)_dim|adapter_input_size|output_channels|downsample_hidden_size", HIDDEN),
    (r"(ext_pw|depthwise_separable)_out_channel|nemo_conv_channels|base_channels", HIDDEN),
    (r"hidden_size_per_layer_input", 20),
    # inside of MLPs
    (r".*(moe|expert|shared).*(intermediate|ffn_hidden)_size", EXPERT_INNER),
    (r"(.*_)?intermediate_size(_mlp)?|(.*_)?ffn_dim|ffn_hidden_size|d_ff|dff|d_inner", INNER),
    (r"dim_ff|feed_forward_size|mlp_dim|prompt_mid_dim", INNER),
    # heads
    (r"(.*_)?num_(attention_)?heads|n_heads?|(.*_)?attention_heads|index_n_heads", HEADS),
    (r"num_attention_heads_per_layer|linear_num_value_heads|linear_num_heads", HEADS),
    (r"(.*_)?num_key_value_heads|kv_n_heads|linear_num_key_heads", KV_HEADS),
    (r"(q|kv|o)_lora_rank|hc_lowrank|gated_norm_rank|router_hidden_size", 24),
    (r"adapter_rank|laurel_rank|d_rel", 8),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"(.*_)?head_dim|d_kv|dim_head|d_head|attention_head_size|kv_channels", HEAD_DIM),
    # experts
    (r"(moe_)?(num|n)_(local_|routed_)?experts|moe_num_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|zero_expert_num", CHOSEN),
    (r"n_group|num_expert_group|o_groups|(mamba_)?n_groups", 2),
    (r"topk_group", 1),
    (r"num_kv_shared_layers", 2),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    # states
    (r"(mamba_d_|ssm_)?state(_size)?", STATE),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"mamba_d_head", HEAD_DIM),
    (r"mamba_d_ssm", 2 * HIDDEN),
    # positions
    (r"(original_)?max_position_embeddings|n_positions|n_ctx|max_seq_len", POSITIONS),
    (r"model_max_length", POSITIONS),
    (r"max_(source|target)_positions|context_length|rel_extent", POSITIONS),
    (r"(local_)?(sliding_|attention_)?window(_size|_len)?|attention_window_size", WINDOW),
    (r"sliding_window_size|attention_chunk_size|(mamba_)?chunk_size|local_attention", WINDOW),
    (r"local_attention_window_len|(local|lsh)_attn_chunk_length|index_block_size", WINDOW),
    (r"index_topk", 6),
    (r"index_topk_blocks", 1),
    # how often a kind of layer comes
    (r".*(_period|_interval|_pattern|_every_n_layers|layer_group_size)", 2),
    (r".*_layer_offset", 1),
)  # fmt: skip
_RULES = tuple((re.compile(pattern), number) for pattern, number in _NUMBERS)
_TOKEN = re.compile(r"(.*_)?token_(id|index)")
_PERIOD = re.compile(r".*(_period|_interval|_pattern|_every_n_layers|layer_group_size)")
_PLACES = re.compile(r".*(_layers|_indexes|_indices|_idxs)")
# Declared as None, which means as many as there are query heads, or everything.
_GIVEN_ALL_THE_SAME = re.compile(r"num_key_value_heads|sliding_window")

# Declared as None, and the class does not count it: its default config makes no model that runs.
_MISSING: tuple[tuple[str, Any], ...] = (
    (r"head_dim", HEAD_DIM),
    (r"num_key_value_heads", KV_HEADS),
    (r"n_routed_experts", EXPERTS),
    (r"num_experts_per_tok", CHOSEN),
    (r"n_shared_experts", 1),
)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_FOUR = {"num_hidden_layers": 4}
_WIDE = {"global_head_dim": 2 * HEAD_DIM}
_SLIDING = {
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 24,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": HEAD_DIM,
}
_INDEXER = {
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}
# What no rule can know.
EXCEPTIONS: Mapping[str, Mapping[str, Any]] = {
    # It reads rotary settings by kind of layer, and the default config has none.
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    # The attention reads a field that the config has no more, and by default one expert is chosen.
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": KV_HEADS},
        "ffn_config": {"moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    },
    # Sizes of one kind of layers are no fields, but numbers in the code of the config.
    "dots3_note": {"text_config": _SLIDING},
    "dots3_note_text": _SLIDING,
    "gemma4": {"text_config": _WIDE},
    "gemma4_text": _WIDE,
    "gemma4_unified": {"text_config": _WIDE},
    "gemma4_unified_text": _WIDE,
    # Kinds of layers are said in a language of its own.
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    # Hybrids whose default config says of all layers the same, or of no layer anything.
    "bamba": {"attn_layer_indices": [1, 3], **_FOUR},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, **_FOUR},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, **_FOUR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, **_FOUR},
    # The indexer of full attention is not there by default, and the layer asks for it.
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    # Positions are a product of two factors, their embedding a sum.
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, HIDDEN - 16)},
    # Sizes inside are rounded up to a multiple of 64.
    "xlstm": {"hidden_size": 2 * HIDDEN},
    # It halves the key/value heads.
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4},
    # One of several adapters, and none is chosen by default.
    "xmod": {"default_language": "en_XX"},
}
# The class is only that part of the model that the config is of.
_PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}


def tiny(model_type: str) -> Any:
    """The config of a small model of that type, with every kind of layer of the default one.

    Raises:
        Exception: whatever transformers raises where it builds no default config.
    """
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[model_type]()
    if model_type in _PARTS:
        default = getattr(default, _PARTS[model_type])
    settings = shrunk(default)
    for name, value in EXCEPTIONS.get(model_type, {}).items():
        nested = isinstance(settings.get(name), dict) and hasattr(default, name)
        settings[name] = {**settings[name], **value} if nested else value
    return type(default)(**settings)


def shrunk(config: Any) -> dict[str, Any]:
    """The fields of a config that are made small, nested configs as dictionaries."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    own, other = vars(config), config.attribute_map
    values = {name: own.get(name, own.get(other.get(name, name))) for name in fields}
    lists = _per_layer(values)
    several = any(len(set(each)) > 1 for each in lists.values()) or _alternates(values)
    count = MOST_LAYERS if several else 2
    result: dict[str, Any] = {**_names(values), **_columns(lists, count)}
    for name, value in values.items():
        derived = fields[name].default is None and not _GIVEN_ALL_THE_SAME.fullmatch(name)
        if hasattr(value, "model_type"):
            result[name] = {"model_type": value.model_type, **shrunk(value)}
        elif value is None:
            small = _missing(name, values)
        elif not derived and name not in result and not isinstance(value, bool):
            small = _small(name, value, values, count)
        else:
            continue
        if name not in result and small is not None:
            result[name] = small
    if "is_decoder" in fields and not values.get("is_encoder_decoder"):
        result["is_decoder"] = True
    return result


def _small(name: str, value: Any, values: Mapping[str, Any], layers: int) -> Any:
    """What a field is in a small model, None to leave it as it is."""
    if isinstance(value, int) and _COUNT_OF_LAYERS.fullmatch(name):
        return min(value, layers)
    if isinstance(value, int):
        return _number(name, value, values)
    if isinstance(value, list) and name == "intermediate_size":  # one for each layer
        return INNER
    if isinstance(value, list | tuple) and len(value) > 1 and _PLACES.fullmatch(name):
        return [min(*value, 1)] if _whole(value) else None
    return None


def _number(name: str, value: int, values: Mapping[str, Any]) -> int | None:
    """The small number for a field, None to leave it as it is; never more than it was."""
    if value <= 1:
        return None
    width = values.get("expand") or values.get("mamba_expand")
    if width and re.fullmatch(r"mamba_n(um)?_heads|num_heads", name):
        size = values.get("mamba_d_head") or values.get("mamba_head_dim") or HEAD_DIM
        return int(width * HIDDEN) // (min(size, HEAD_DIM) if isinstance(size, int) else HEAD_DIM)
    if name == "head_dim" and value == values.get("qk_rope_head_dim"):
        name = "qk_rope_head_dim"
    if name == "num_key_value_heads" and values.get("kv_lora_rank"):
        return HEADS  # of latent attention, whose keys and values every query head has for itself
    number = next((number for rule, number in _RULES if rule.fullmatch(name)), None)
    return None if number is None else min(value, number)


def _missing(name: str, values: Mapping[str, Any]) -> Any:
    if name == "head_dim" and "qk_rope_head_dim" in values:
        return None
    return next((given for rule, given in _MISSING if re.fullmatch(rule, name)), None)


def _names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of special tokens that the small vocabulary has, and that no example input has."""
    usual, last = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, VOCABULARY
    result: dict[str, Any] = {}
    for name, value in values.items():
        if not _TOKEN.fullmatch(name) or value is None:
            continue
        if name in usual:
            if isinstance(value, list) or value >= VOCABULARY:
                result[name] = usual[name]
        elif isinstance(value, int) and value > 2:
            last -= 1
            result[name] = last
    return result


def _per_layer(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists that say of each layer of what kind it is."""
    counts = {v for name, v in values.items() if _is_count(name, v)}
    return {
        name: list(value)
        for name, value in values.items()
        if isinstance(value, list | tuple)
        and (len(value) in counts or (not counts and name.endswith("_layers")))
        and value
        and all(isinstance(v, str | float | bool) or v in (0, 1) for v in value)
    }


def _is_count(name: str, value: Any) -> bool:
    return isinstance(value, int) and _COUNT_OF_LAYERS.fullmatch(name) is not None and value > 1


def _alternates(values: Mapping[str, Any]) -> bool:
    """Whether kinds of layers come in turns though no list of all layers says so."""
    return any(
        (_PERIOD.fullmatch(name) and isinstance(value, int) and value > 1)
        or (name.endswith("block_types") and len(set(value or ())) > 1)
        for name, value in values.items()
    )


def _whole(value: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) for v in value)


def _columns(lists: Mapping[str, list[Any]], count: int) -> dict[str, list[Any]]:
    """A few layers instead of many: each run of like layers is one, and every kind occurs."""
    if not lists:
        return {}
    runs = [column for column, _ in itertools.groupby(zip(*lists.values(), strict=True))]
    chosen = runs[:count]
    if any(set(a) != set(b) for a, b in zip(_turned(runs), _turned(chosen), strict=True)):
        seen: set[tuple[int, Any]] = set()
        chosen, rest = [], []
        for column in runs:
            if not seen.issuperset(enumerate(column)):
                chosen.append(column)
                seen.update(enumerate(column))
                rest = []
            else:
                rest.append(column)
        chosen = [*chosen, *rest][:count]
    chosen += [chosen[-1]] * (count - len(chosen))
    return {name: list(each) for name, each in zip(lists, _turned(chosen), strict=True)}


def _turned(columns: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))
