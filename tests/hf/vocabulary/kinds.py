"""Small tokenizers, made as those of well-known models are, of prose that Python carries."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from fxprune.data.text import builtin

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZE = 900


@functools.cache
def prose() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paragraphs to train on and to choose by, and others."""
    parts = [p for text in builtin() for record in text.records for p in record.split("\n\n")]
    parts = [" ".join(p.split()) for p in parts if len(p) > 80]
    return tuple(parts[:250]), tuple(parts[250:300])


def _byte_level(
    tokenizer: Tokenizer, special: list[str], size: int = SIZE, first: bool = False
) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special if first else [],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(prose()[0], trainer)
    if not first:
        tokenizer.add_special_tokens(special)
    return tokenizer


def gpt2() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _byte_level(made, ["<|endoftext|>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end)


def llama3() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    _byte_level(made, [begin, end, "<|eot_id|>"])
    number = made.token_to_id(begin)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, number)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=begin,
        eos_token=end,
        chat_template="{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}",
    )


def qwen2() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _byte_level(made, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken("<tool_call>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def gemma_bpe() -> PreTrainedTokenizerFast:
    """Converted from SentencePiece: every way to halve a token is a merge."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    made.train_from_iterator(prose()[0], trainer)
    old = made.get_vocab()
    order = sorted(old, key=old.__getitem__)
    texts = [*order[:4], *BYTES, *order[4:]]
    vocabulary = {text: number for number, text in enumerate(texts)}
    merges = [
        (text[:cut], text[cut:])
        for text in order[4:]
        for cut in range(1, len(text))
        if text[:cut] in old and text[cut:] in old
    ]
    again = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    again.normalizer = made.normalizer
    again.pre_tokenizer = made.pre_tokenizer
    again.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    again.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    again.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=again,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _unigram(special: list[str], **options: object) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(prose()[0], trainer)
    read = json.loads(made.to_str())
    read["model"] |= options
    if options:
        read["model"]["vocab"] += [[text, -20.0] for text in BYTES]
    made = Tokenizer.from_str(json.dumps(read))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return made


def gemma() -> PreTrainedTokenizerFast:
    made = _unigram(["<pad>", "<eos>", "<bos>", "<unk>"], byte_fallback=True)
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def t5() -> PreTrainedTokenizerFast:
    made = _unigram(["<pad>", "</s>", "<unk>"])
    made.add_special_tokens([f"<extra_id_{number}>" for number in range(3)])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def xlm_r() -> PreTrainedTokenizerFast:
    made = _unigram(["<s>", "<pad>", "</s>", "<unk>"])
    made.add_special_tokens(["<mask>"])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def bert() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(prose()[0], trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    each.__name__: each for each in (gpt2, llama3, qwen2, gemma, gemma_bpe, bert, t5, xlm_r)
}
