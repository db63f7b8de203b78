"""The engine ``transformers-remote``: a checkpoint whose layers have sizes of their own.

Its config holds transformers' ``per_layer_config``, and a small file of code beside the weights
builds the layers: ``from_pretrained(folder, trust_remote_code=True)``. What can be said is what
:func:`fxprune.shrink` can say, tried on ``meta``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import fx

from fxprune.errors import CheckpointError, FxpruneWarning, ServeError, ShrinkError
from fxprune.hf.folder import checkpoint, module_folder
from fxprune.hf.open import architecture
from fxprune.hf.open.quiet import hushed
from fxprune.hf.shrink.rehost import acceptable
from fxprune.hf.shrink.shrink import shrink
from fxprune.plan import Plan
from fxprune.rewrite.history import without_weights
from fxprune.select.target import Target
from fxprune.serve.engine import Engine, Pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group


class Remote(Engine):
    """Every layer to its own sizes, with code in the folder where that is needed."""

    name: ClassVar[str] = "transformers-remote"

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`."""
        self._check_class(graph)
        cache, key = graph.traced.cache, f"target of {self.name}"
        if key not in cache:  # trying takes its time
            cache[key] = self._target(graph)
        found: Target = cache[key]
        return found

    def check(self, plan: Plan, graph: DependencyGraph) -> list[str]:
        """See :meth:`Engine.check`."""
        try:
            self._check_class(graph)
        except ServeError as error:
            return [str(error)]
        if why := self._untold(graph, plan):
            return super().check(plan, graph) or [why]
        # The limits of each kind take many such trials, and say no more of what can be told.
        return Target(self.name).reasons(graph, plan)

    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        """See :meth:`Engine.write`. There are no options."""
        self._check_no_options(options)
        checkpoint.check_target(path)
        try:
            model = self._checked(_shrunk(pruned))
            checkpoint.save(model, path, plan=pruned.plan, tokenizer=pruned.tokenizer)
        except (ShrinkError, CheckpointError) as error:
            raise ServeError(f"{self.name}: {error}") from error
        return module_folder.how_to_open(path, model)

    def _target(self, graph: DependencyGraph) -> Target:
        single: list[str] = []
        own: list[str] = []
        alike: list[str] = []
        for kind, groups in _by_kind(graph).items():
            if len(groups) > 1 and not self._untold(graph, _less(graph, groups[::2])):
                own.append(kind)
            elif not self._untold(graph, _less(graph, groups)):
                (alike if len(groups) > 1 else single).append(kind)
        # Where no layer can have its own sizes, all can have others.
        return Target(self.name, (*(own or alike), *single), even=not own)

    def _checked(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model, if the engine loads it.

        Raises:
            ShrinkError: it does not.
        """
        return model

    def _untold(self, graph: DependencyGraph, plan: Plan) -> str:
        """Why no checkpoint can say what a plan leaves, tried without weights; "" if one can."""
        cache = graph.traced.cache
        if "on meta" not in cache:  # with what is found out of it, which serves every plan
            module: Any = graph.traced.module
            blank = architecture.build(
                module.config,
                architecture=type(module).__name__,
                attn_implementation=module.config._attn_implementation,
            )
            cache["on meta"] = replace(without_weights(graph.traced), module=blank)
        traced = cache["on meta"]
        try:
            with hushed(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FxpruneWarning)  # it is for who saves
                small = shrink(traced.module, plan, traced=traced, share=True)
                self._checked(acceptable(small))
        except (ShrinkError, CheckpointError) as error:
            return str(error)
        return ""

    def _check_class(self, graph: DependencyGraph) -> None:
        module: Any = graph.traced.module
        if not architecture.is_transformers(module) or not architecture.has_class(module):
            raise ServeError(
                f"{type(module).__name__} is not a class of transformers, as {self.name} loads"
            )


def _by_kind(graph: DependencyGraph) -> dict[str, list[Group]]:
    """The groups that may lose units, by kind."""
    found: dict[str, list[Group]] = {}
    for group in graph.groups:
        if group.size - group.multiple >= group.least:
            found.setdefault(group.kind, []).append(group)
    return found


def _less(graph: DependencyGraph, groups: Iterable[Group]) -> Plan:
    """Some groups keep a little less."""
    kept: dict[str, Sequence[int]] = {}
    for group in groups:
        kept[group.name] = range((group.size - 1) // group.multiple * group.multiple)
    return Plan.of(graph, kept)


def _shrunk(pruned: Pruned) -> PreTrainedModel:
    """The pruned model as one of transformers.

    Raises:
        ServeError: it cannot be told of which class.
        ShrinkError: no config can say its sizes.
    """
    if not isinstance(pruned.model, fx.GraphModule):
        if not architecture.is_transformers(pruned.model):
            raise ServeError(f"{type(pruned.model).__name__} is not a model of transformers")
        return cast("PreTrainedModel", pruned.model)
    if pruned.config is None or pruned.plan is None:
        raise ServeError("a graph becomes a checkpoint by the config of its model and its plan")
    blank = architecture.build(pruned.config)
    small: PreTrainedModel = shrink(blank, pruned.plan, pruned.model, share=True)
    return small


ENGINE = Remote()
