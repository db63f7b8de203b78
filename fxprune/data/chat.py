"""Conversations: read from the rows that people have, and written in a tokenizer's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = tuple[str, str]  # role and content

# Alpaca's templates (Taori et al. 2023), for an instruction alone and for one with an input.
PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
_ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}


class Chat(str):
    """A conversation as a record of text: its contents, a line break between them.

    Args:
        turns: role (``system``, ``user``, ``assistant`` or ``tool``) and content of each.
        plain: the turns before the first answer as one text, for a tokenizer without a template;
            None if there is none (Alpaca's rows have one).
    """

    turns: tuple[Turn, ...]
    plain: str | None

    def __new__(cls, turns: Sequence[Turn], plain: str | None = None) -> Chat:
        """A record with its turns."""
        made = super().__new__(cls, "\n".join(content for _, content in turns))
        made.turns, made.plain = tuple(turns), plain
        return made


def instruction(task: str, given: str, output: str) -> Chat:
    """A row of Alpaca: a task, what it is to be done with (may be empty), and the answer."""
    asked = f"{task}\n\n{given}" if given.strip() else task
    template = PROMPT_WITH_INPUT if given.strip() else PROMPT
    plain = template.format(instruction=task, input=given)
    return Chat((("user", asked), ("assistant", output)), plain)


def is_chat(row: Mapping[str, Any]) -> bool:
    """Whether a row holds ``messages``, or ``conversations`` as ShareGPT has them."""
    return any(isinstance(row.get(name), list) for name in ("messages", "conversations"))


def read_chat(row: Mapping[str, Any]) -> Chat | str:
    """The conversation of such a row, or what is wrong with it."""
    name = "messages" if isinstance(row.get("messages"), list) else "conversations"
    turns = []
    for number, each in enumerate(row[name], start=1):
        where = f'number {number} of its "{name}"'
        if not isinstance(each, Mapping):
            return f"{where} is not an object"
        given, content = each.get("role", each.get("from")), each.get("content", each.get("value"))
        if isinstance(content, list) and all(_is_text(part) for part in content):
            content = "".join(part["text"] for part in content)
        role = _ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            return f"{where} has the role {given!r}: {', '.join(sorted(_ROLES))} are known"
        if not isinstance(content, str):
            return f"{where} has no text as its content"
        turns.append((role, content))
    if not any(role == "assistant" and content.strip() for role, content in turns):
        return f'its "{name}" have no answer of an assistant'
    plain = row.get("plain")
    return Chat(turns, plain if isinstance(plain, str) else None)


def encode(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation in the tokenizer's template, and which are the assistant's.

    What follows an answer up to the next turn (the token that ends it) is a part of it. A
    conversation with a plain form takes that where there is no template: the form, the answer, and
    the token that ends texts.

    Raises:
        CalibrationError: there is no template, it refuses the conversation, or it writes turns
            otherwise once others follow, so that nobody can say whose a token is.
    """
    if not getattr(tokenizer, "chat_template", None):
        if chat.plain is None:
            raise CalibrationError(
                "the tokenizer has no chat template, which conversations need: give it one "
                "(tokenizer.chat_template), or rows with a text"
            )
        parts = [(chat.plain, False), (chat.turns[-1][1], True)]
        ids, mask = _encoded(tokenizer, parts)
        ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        return ids + ends, mask + [True] * len(ends)
    whole, place = _written(tokenizer, chat.turns), 0
    parts = []
    for number, (role, _) in enumerate(chat.turns):
        if role != "assistant":
            continue
        begin = _written(tokenizer, chat.turns[:number], prompt=True)
        end = _written(tokenizer, chat.turns[: number + 1])
        if not (whole.startswith(begin) and whole.startswith(end) and len(end) >= len(begin)):
            raise CalibrationError(
                "the chat template writes a turn otherwise once others follow: give conversations "
                "of one answer each"
            )
        parts += [(whole[place : len(begin)], False), (whole[len(begin) : len(end)], True)]
        place = len(end)
    return _encoded(tokenizer, [*parts, (whole[place:], False)])


def begun(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> list[int]:
    """Token ids of all that comes before the last answer of a conversation, which ends in one.

    Raises:
        CalibrationError: there is no template, and no plain form; or it refuses the conversation.
    """
    ids, said = encode(tokenizer, Chat((*chat.turns[:-1], ("assistant", "x")), chat.plain))
    place = len(said) - 1
    while place and not said[place]:
        place -= 1
    while place and said[place - 1]:
        place -= 1
    return ids[:place]


def _written(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], prompt: bool = False
) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        found = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # what a template raises is its own
        raise CalibrationError(f"the chat template refuses a conversation: {error}") from error
    return str(found)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, bool]]
) -> tuple[list[int], list[bool]]:
    """Each part by itself, so that no token belongs to two."""
    ids: list[int] = []
    mask: list[bool] = []
    for text, said in parts:
        if text:
            found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += found
            mask += [said] * len(found)
    return ids, mask


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Token ids of a record, no special tokens but those of a template; int64 of shape (n,)."""
    if isinstance(text, Chat):
        return torch.tensor(encode(tokenizer, text)[0], dtype=torch.long)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return torch.tensor(encoded["input_ids"], dtype=torch.long)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )
