"""A model and its tokenizer without the tokens that a text does not use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxprune.data.chat import tokens
from fxprune.data.text import Text
from fxprune.errors import ShrinkError, VocabularyError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.groups.parameters import count_parameters, parameter_shapes
from fxprune.hf.open.architecture import is_transformers
from fxprune.hf.shrink.shrink import shrink
from fxprune.hf.shrink.token_ids import named
from fxprune.hf.vocabulary import tokenizer as tokenizers
from fxprune.hf.vocabulary.choose import choose, counted
from fxprune.hf.vocabulary.pieces import Pieces
from fxprune.plan import Plan
from fxprune.proof import oracle
from fxprune.rewrite.compose import whole
from fxprune.rewrite.history import Step, begun, without_weights
from fxprune.rewrite.planned import planned
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Size = Callable[[DependencyGraph, tuple[str, ...]], int]


@dataclass(frozen=True, eq=False)
class Trimmed:
    """A model without some of its tokens, and how it came about.

    Attributes:
        model: the smaller model, of the same class.
        tokenizer: its tokenizer.
        plan: the tokens that stay, as units of groups of the original.
        report: what the oracle measured; None if it did not run.
        before: the original's tokenizer.
        original: the traced original, without weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    report: oracle.VerifyReport | None
    before: PreTrainedTokenizerBase
    original: Traced

    @property
    def size(self) -> int:
        """How many tokens stay."""
        return len(next(iter(self.plan.kept.values())))

    @property
    def freed(self) -> int:
        """How many parameters went."""
        return self.plan.parameters_before - self.plan.parameters_after

    def then(self, traced: Traced, plan: Plan) -> Plan:
        """This and a plan for what is left as one, for the original.

        Args:
            traced: the smaller model.
            plan: for it.
        """
        if not (plan.kept or plan.removed or plan.biases):
            return self.plan
        first = Step.of(*planned(self.original, self.plan), self.plan)
        return whole(begun(self.original, first, Step.of(*planned(traced, plan), plan)))

    def rates(self, text: Text) -> tuple[float, float]:
        """Tokens per word of a text, before and after; words are what spaces part."""
        words = sum(len(record.split()) for record in text.records)
        if not words:
            raise VocabularyError(f"{text.name} has no words in it")
        both = (self.before, self.tokenizer)
        found = [sum(len(tokens(t, record)) for record in text.records) / words for t in both]
        return found[0], found[1]


def trim(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    text: Text,
    size: int | Size,
    *,
    verify: bool = True,
) -> Trimmed:
    """Leave out the tokens that a text uses least; those that stay keep their logits.

    Args:
        model: a model of transformers with its weights. It shares what is not cut.
        tokenizer: its tokenizer, with a ``tokenizer.json``.
        text: whose tokens stay, the most frequent first, see
            :func:`fxprune.hf.vocabulary.choose.choose`.
        size: tokens that stay; or what tells, from the groups of the model and the names of those
            of tokens.
        verify: run the oracle.

    Raises:
        VocabularyError: the tokenizer cannot lose tokens, or not so many, or the model has no such
            axis; the text is empty.
        ShrinkError: no config can say what is left.
        OracleError: logits of tokens that stay are others.
    """
    read = tokenizers.read(tokenizer)
    assert tokenizer is not None
    if isinstance(model, fx.GraphModule) or not is_transformers(model):
        raise VocabularyError(
            f"vocabulary=: {type(model).__name__} is no model of transformers, whose config says "
            "how many tokens there are"
        )
    counts = counted(tokenizer, text.records)
    made: Any = model
    traced = trace(made)
    graph = discover(traced)
    groups, rows = _groups(made, graph)
    wanted = size if isinstance(size, int) else size(graph, groups)
    pieces = Pieces.of(read)
    if max(pieces.texts) >= rows:
        raise VocabularyError(
            f"the tokenizer has a token {max(pieces.texts)}, and the model has {rows} rows for them"
        )
    configs = (made.config, getattr(made, "generation_config", None))
    names = {n for config in configs if config is not None for n in named(config) if n < rows}
    if missing := sorted(names - pieces.texts.keys()):
        raise VocabularyError(
            f"a config names the token {missing[0]}, which the tokenizer has not: mend the config"
        )
    stay = names | tokenizers.referred(tokenizer, read)
    kept = choose(pieces, counts, wanted, stay)
    if len(kept) == rows:
        raise VocabularyError(f"vocabulary={wanted}: the model has {rows} rows, so none would go")
    plan = Plan.of(graph, dict.fromkeys(groups, kept), criterion=f"tokens of {text.name}")
    small = rewrite(traced, plan)
    report = oracle.verify(traced, small, plan) if verify else None
    try:
        smaller = shrink(made, plan, small, traced=traced, share=True)
    except ShrinkError as error:
        raise ShrinkError(f"vocabulary=: {error}") from error
    new = tokenizers.trimmed(tokenizer, kept, read)
    return Trimmed(smaller, new, plan, report, tokenizer, without_weights(traced))


def fitting(share: float) -> Size:
    """As many tokens as a share of the model's parameters, at most, leaves room for."""

    def size(graph: DependencyGraph, groups: tuple[str, ...]) -> int:
        rows = graph[groups[0]].size
        every = sum(map(math.prod, parameter_shapes(graph).values()))
        one = every - count_parameters(graph, {graph[name].dim: rows - 1 for name in groups})
        left = rows - math.ceil((every - share * every) / one - 1e-9)
        if left < 1:
            raise VocabularyError(
                f"tokens are {rows * one / every:.0%} of the parameters: without all of them more "
                f"than {share:.0%} are left"
            )
        return left

    return size


def _groups(model: Any, graph: DependencyGraph) -> tuple[tuple[str, ...], int]:
    """The groups of a model's tokens, and how many rows there are.

    Raises:
        VocabularyError: the graph does not say that these can go.
    """
    weight = getattr(model.get_input_embeddings(), "weight", None)
    held = [n for n, t in graph.traced.tensors.items() if t is weight]
    every = (*graph.groups, *graph.frozen)
    of_tokens = [g for g in every if g.kind == "vocabulary"]
    own = next((g for g in of_tokens for s in g.sites if s.tensor in held and s.axis == 0), None)
    if own is None:
        raise VocabularyError(
            f"vocabulary=: {type(model).__name__} does not look up its tokens in one table by the "
            "numbers that it is given"
        )
    return tuple(g.name for g in of_tokens if g.size == own.size), own.size
