"""A model and its tokenizer without the tokens that a text does not use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxprune.data.text import Text, per_word
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
from fxprune.proof.examples import Example
from fxprune.proof.tokens import kept_tokens, renumbered
from fxprune.rewrite.compose import whole
from fxprune.rewrite.history import Step, begun, without_weights
from fxprune.rewrite.planned import planned
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.budget import Budget
from fxprune.trace import Traced, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        args: example positional inputs for the smaller model.
        kwargs: example keyword inputs.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    report: oracle.VerifyReport | None
    before: PreTrainedTokenizerBase
    original: Traced
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def size(self) -> int:
        """How many tokens stay."""
        return len(self.plan.tokens or ())

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
        """Tokens per word of a text, before and after."""
        return per_word(self.before, text), per_word(self.tokenizer, text)

    def words(self, *texts: Text) -> Iterator[str]:
        """How many tokens there are, and in a word of each text, before and after."""
        old, new = len(self.before), self.size
        yield f"tokens: {old:,} before, {new:,} after"
        for text in texts:
            before, after = self.rates(text)
            yield f"tokens per word of {text.name}: {before:.3f} before, {after:.3f} after"


def trim(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    text: Text | None,
    size: int | None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    goal: Mapping[str, Any] | None = None,
    verify: bool = True,
) -> Trimmed:
    """Leave out the tokens that a text uses least; those that stay keep their logits.

    Args:
        model: a model of transformers with its weights. It shares what is not cut.
        tokenizer: its tokenizer, with a ``tokenizer.json``.
        text: whose tokens stay, the most frequent first, see
            :func:`fxprune.hf.vocabulary.choose.choose`.
        size: tokens that stay; None for what ``goal`` leaves room for.
        args: example positional inputs, see :func:`fxprune.trace`.
        kwargs: example keyword inputs.
        goal: ``pruning_ratio`` of parameters, or a ``budget`` of them.
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
            f"vocabulary=: {type(model).__name__} is not a transformers model, whose config says "
            "how many tokens there are"
        )
    if text is None:
        raise VocabularyError("vocabulary=: tokens are chosen by text: give calibration= a text")
    if (kwargs or {}).get("labels") is not None:
        raise VocabularyError(
            "vocabulary=: a loss over fewer tokens is not the original's, so it proves nothing: "
            "leave labels out of the example, kwargs="
        )
    counts = counted(tokenizer, text.records)
    made: Any = model
    traced = trace(made, args, kwargs)
    graph = discover(traced)
    groups, rows = _groups(made, graph)
    wanted = _fitting(graph, groups, goal or {}) if size is None else size
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
    example = Example(traced.args, dict(traced.kwargs))
    _, example = renumbered(traced.graph_module, example, kept_tokens(graph, plan))
    blank = without_weights(traced)
    return Trimmed(smaller, new, plan, report, tokenizer, blank, example.args, example.kwargs)


def without_tokens(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """A model without the tokens that a plan leaves out; nothing else of the plan is done.

    Args:
        model: one of the architecture that the plan is for. The result shares what is not cut.
        plan: the plan.

    Returns:
        The model itself, if the plan leaves out none.

    Raises:
        PlanError: the plan is for another model.
    """
    if plan.tokens is None:
        return model
    plan.check_model(model)
    traced = trace(model)
    graph = discover(traced)
    of_tokens = {g.name for g in graph.frozen if g.kind == "vocabulary"} & plan.kept.keys()
    alone = Plan.of(graph, {name: plan.kept[name] for name in of_tokens})
    return shrink(model, alone, traced=traced, share=True)


def _fitting(graph: DependencyGraph, groups: tuple[str, ...], goal: Mapping[str, Any]) -> int:
    """As many tokens as a goal for the model's parameters leaves room for.

    Raises:
        VocabularyError: it is about something else, or more than all tokens would have to go.
    """
    every = sum(map(math.prod, parameter_shapes(graph).values()))
    budget: Budget | None = goal.get("budget")
    if budget is not None and set(budget.limits) != {"params"}:
        raise VocabularyError("tokens are parameters, and no other budget is met by them: params=")
    most = 1 - goal["pruning_ratio"] if budget is None else float(budget.params or 0)
    most = most if most > 1 else most * every
    rows = graph[groups[0]].size
    one = every - count_parameters(graph, {graph[name].dim: rows - 1 for name in groups})
    left = rows - math.ceil((every - most) / one - 1e-9)
    if left < 1:
        raise VocabularyError(
            f"tokens are {rows * one / every:.0%} of the parameters, and more are to go"
        )
    return min(left, rows)


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


def check_alone(**given: Any) -> None:
    """Refuse what holds numbers or rows of tokens as they were.

    Raises:
        VocabularyError: there is such an argument.
    """
    for name in (name for name, value in given.items() if value is not None):
        raise VocabularyError(
            f"{name}= has to do with the tokens as they are, and vocabulary= leaves some out "
            "first: prune in two steps"
        )
