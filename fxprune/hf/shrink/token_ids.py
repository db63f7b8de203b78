"""Numbers of tokens that configs name, when tokens go and the others move up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fxprune.errors import ShrinkError

# One token, several, or words of several tokens, as transformers calls them.
_IDS = re.compile(r"token_(?:ids?|index|idx)$|^(?:lang|task)_to_id$|^forced_decoder_ids$")
_LISTS = re.compile(r"suppress_tokens$|^(?:bad|force)_words_ids$|^sequence_bias$")


class Numbers:
    """New numbers of tokens, by their old ones.

    Args:
        kept: the tokens that stay, ascending: token ``kept[n]`` gets the number ``n``.
        size: how many there were. What lies outside stands for no token, and stays as it is.
    """

    def __init__(self, kept: tuple[int, ...], size: int) -> None:
        self.size = size
        self._new = {old: new for new, old in enumerate(kept)}

    def of(self, value: Any) -> int | None:
        """The new number of a token; None for one that goes, or for no token."""
        return self._new.get(value) if type(value) is int else None

    def renumber(self, config: Any) -> None:
        """Change the numbers in a config, in the configs nested in it, or in one of generation.

        Words and suppressed tokens that are gone are left out.

        Raises:
            ShrinkError: the config names a token that goes.
        """
        for holder, name, value in _entries(config):
            if _LISTS.search(name):
                new = self._left(value)
            elif self._gone(_last(name, value)):
                raise ShrinkError(f"{name}={value!r} of the config names a token that goes")
            else:
                new = self._mapped(value, name == "forced_decoder_ids")
            holder.__dict__[name] = new

    def _mapped(self, value: Any, pairs: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: self._mapped(item) for key, item in value.items()}
        if pairs:  # of a place and a token
            return [[place, self._mapped(token)] for place, token in value]
        if isinstance(value, list | tuple):
            return type(value)(self._mapped(item) for item in value)
        return value if self._outside(value) else self._new[value]

    def _gone(self, value: Any) -> bool:
        return any(not self._outside(n) and n not in self._new for n in ids(value))

    def _left(self, value: Any) -> Any:
        """Of a list the entries of which every token stays."""
        entries = list(value.items()) if isinstance(value, dict) else list(value)
        stay = [each for each in entries if not self._gone(_tokens(each))]
        if isinstance(value, dict):
            return {self._mapped(key): bias for key, bias in stay}
        biased = [isinstance(e, list | tuple) and isinstance(e[-1], float) for e in stay]
        mapped = [
            [self._mapped(e[0]), e[1]] if bias else self._mapped(e)
            for e, bias in zip(stay, biased, strict=True)
        ]
        return mapped or None

    def _outside(self, value: Any) -> bool:
        return type(value) is not int or not 0 <= value < self.size


def named(config: Any) -> frozenset[int]:
    """The tokens that a config, the configs nested in it, or one of generation cannot lack."""
    found: set[int] = set()
    for _, name, value in _entries(config):
        if not _LISTS.search(name):
            found.update(ids(_last(name, value)))
    return frozenset(found)


def ids(value: Any) -> Iterator[int]:
    """Every whole number in nested lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from ids(item)
    elif type(value) is int and value >= 0:
        yield value


def _last(name: str, value: Any) -> Any:
    """The tokens of an entry: some have places as well."""
    return [token for _, token in value] if name == "forced_decoder_ids" else value


def _tokens(entry: Any) -> Any:
    """The tokens of an entry of a list, which may come with a bias."""
    biased = isinstance(entry, list | tuple) and bool(entry) and isinstance(entry[-1], float)
    return entry[0] if biased else entry


def _entries(config: Any) -> Iterator[tuple[Any, str, Any]]:
    """Holder, name and value of every entry that names tokens."""
    for name, value in list(vars(config).items()):
        if name.startswith("_") or value is None:
            continue
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from _entries(value)
        elif not isinstance(value, Mapping | list | tuple | int) or isinstance(value, bool):
            continue
        elif _IDS.search(name) or _LISTS.search(name):
            yield config, name, value
